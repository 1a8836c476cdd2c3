"""Long texts, tokenised a piece at a time: the ids of the whole, without its memory.

A tokenizer's own encoding of a text takes some 470 bytes a token, of which klcli keeps ten. Pieces
overlap, and one ends where the next is shown to go on with the same tokens:

- No token of the vocabulary holds the two characters around the cut, so that no merge of BPE and no
  path of Unigram or WordPiece can cross it, whatever stands elsewhere: with such a border the two
  sides of a text are tokenised independently.
- What splits a text before tokens are made looks at a word, or at a run of white space, and a bit
  further. Both pieces, each of which lacks all that is far away on one side, have the same tokens
  for as far as half the overlap.

Where no such place is found two pieces become one, up to the whole text.
"""

import os
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PIECE = 2**16
"""Characters that a piece has, or a few more."""
AT_ONCE = min(8, os.cpu_count() or 1)
"""Pieces that the tokenizer is given together: it takes a core for each."""
OVERLAP = 2**12
"""Characters that two pieces share."""
CUTTING = " \n"
"""What a piece may begin with; the last one ends before it with a character of another kind."""

Ints = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """The tokens of a text from character ``start`` to ``stop``.

    ``ids`` (tokens,) and ``ends`` (tokens,): the character of the text at which each ends by what
    the tokenizer says. ``word_ids`` has the number of the word that each was made from, a word
    being what the tokenizer splits text into.
    """

    start: int
    stop: int
    ids: Ints
    ends: Ints
    word_ids: Sequence[int | None]


def encode_pieces(
    text: str,
    encode: Callable[[list[str]], Sequence[Any]],
    spanned: Callable[[], Container[bytes]],
    size: int = PIECE,
) -> Iterator[Piece]:
    """The tokens of a text, piece by piece; one piece at least.

    Args:
        text: any length.
        encode: what makes a ``tokenizers.Encoding`` of each of some texts, all at once.
        spanned: what gives the pairs of bytes inside of tokens of which the second is one of
            ``CUTTING``; asked only of a text of several pieces.
        size: characters of a piece.
    """
    stretches = [
        (max(0, place - OVERLAP), min(place + size, len(text)))
        for place in range(0, max(1, len(text)), size)
    ]
    reads = _read(text, stretches, encode)
    begin, start, here = _Border(0, 0, 0), 0, next(reads)
    for following in reads:
        end = _border(text, here, following, spanned)
        if end is not None and start < here.start:
            (here,) = _read(text, [(start, here.stop)], encode)
            end = _border(text, here, following, spanned)
        if end is not None:
            yield here.between(begin, end)
            begin, start = end, following.start
        here = following
    if start < here.start:
        (here,) = _read(text, [(start, here.stop)], encode)
    yield here.between(begin, _Border(len(text), len(here.ids), 0))


class _Border(NamedTuple):
    """A cut: the character, and how many tokens of the piece before it and after it precede it."""

    place: int
    before: int
    after: int


class _Read(NamedTuple):
    """A stretch of a text as the tokenizer encodes it: characters count from the text's first."""

    start: int
    stop: int
    ids: Ints
    begins: Ints
    ends: Ints
    word_ids: Sequence[int | None]

    def between(self, begin: _Border, end: _Border) -> Piece:
        """The tokens from one cut to the next."""
        tokens = slice(begin.after, end.before)
        ids, ends, word_ids = self.ids[tokens], self.ends[tokens], self.word_ids[tokens]
        return Piece(begin.place, end.place, ids, ends, word_ids)

    def tokens_within(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which tokens begin in a stretch."""
        return (self.begins >= start) & (self.begins < stop)

    def tokens_before(self, place: int) -> int | None:
        """How many tokens stand before a character, if the last one ends there; else None."""
        later = np.flatnonzero(self.begins >= place)
        count = int(later[0]) if len(later) else len(self.begins)
        ends, begins = self.ends[:count], self.begins[count:]
        if not len(ends) or not len(begins):  # without a token behind it nothing ends the text
            return None
        clean = ends[-1] == place and (ends <= place).all() and (begins >= place).all()
        return count if clean else None


def _read(
    text: str,
    stretches: Sequence[tuple[int, int]],
    encode: Callable[[list[str]], Sequence[Any]],
) -> Iterator[_Read]:
    for first in range(0, len(stretches), AT_ONCE):
        group = stretches[first : first + AT_ONCE]
        found = encode([text[start:stop] for start, stop in group])
        for (start, stop), encoded in zip(group, found, strict=True):
            offsets = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2) + start
            ids = np.array(encoded.ids, dtype=np.int64)
            yield _Read(start, stop, ids, offsets[:, 0], offsets[:, 1], encoded.word_ids)


def _border(
    text: str, before: _Read, after: _Read, spanned: Callable[[], Container[bytes]]
) -> _Border | None:
    """A cut in the middle of what two stretches share; None where there is none."""
    quarter = (before.stop - after.start) // 4
    start, stop = after.start + quarter, before.stop - quarter
    left, right = before.tokens_within(start, stop), after.tokens_within(start, stop)
    shared = [
        (read.ids[i], read.begins[i], read.ends[i]) for read, i in ((before, left), (after, right))
    ]
    if not all(map(np.array_equal, *shared)):
        return None
    for place in range(start + 1, stop):
        if text[place] not in CUTTING or text[place - 1].isspace():
            continue
        if text[place - 1].encode()[-1:] + text[place].encode() in spanned():
            continue
        counts = before.tokens_before(place), after.tokens_before(place)
        if counts[0] is not None and counts[1] is not None:
            return _Border(place, counts[0], counts[1])
    return None
