"""The tokens by kind: how much each slice of them differs, and what it carries of the whole."""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from klcli.errors import UsageError
from klcli.judge.clusters import Bools, Floats
from klcli.judge.report import Slice, SliceBy
from klcli.measure.scores import CONFIDENCE_EDGES, TokenScores
from klcli.text.vocabulary import NumberedTokens, TokenNames
from klcli.text.windows import TokenizedDocument, WindowTable

Numbers = npt.NDArray[np.int8]
"""The slice of each token; -1 for a token that is in none."""

KINDS = (
    "word start", "continuation", "digits", "punctuation", "whitespace", "non-ASCII", "URL",
)  # fmt: skip
_START, _CONTINUATION, _DIGITS, _PUNCTUATION, _SPACE, _NON_ASCII, _URL = range(len(KINDS))

_ADDRESS = re.compile(rb"(?:https?://|ftp://|www\.)[^\s<>\"'`\x80-\xff]+", re.IGNORECASE)
_CLOSING = b".,;:!?)]}*_"
"""What ends a sentence, not an address."""


def check_slices(names: Sequence[str]) -> tuple[SliceBy, ...]:
    """The slices that are to be shown, each once, in the order in which they stand in a report.

    Raises:
        UsageError: klcli slices by no such thing.
    """
    if unknown := sorted(set(names) - set(get_args(SliceBy))):
        raise UsageError(f"--slice {unknown[0]}: one of {', '.join(get_args(SliceBy))} is wanted")
    return tuple(by for by in get_args(SliceBy) if by in names)


def slice_tokens(scores: TokenScores, table: WindowTable, names: TokenNames) -> list[Slice]:
    """Every slice that holds a token: by confidence, by position in the window, by kind of text.

    Excluded tokens are in none, and those whose text is not known in no kind of text.
    """
    usable = ~scores["excluded"]
    found: list[Slice] = []
    for by, labels, number in _divisions(scores, table, names):
        found += _measure(by, labels, np.where(usable, number, -1), scores)
    return found


def _divisions(
    scores: TokenScores, table: WindowTable, names: TokenNames
) -> Iterator[tuple[SliceBy, Sequence[str], Numbers]]:
    """Each way to slice, with the labels of its slices and the slice of each token."""
    confidence = scores["confidence_reference" if scores.paired else "confidence"]
    bins = np.digitize(confidence, CONFIDENCE_EDGES).astype(np.int8)
    edges = ["0", *(f"{edge:g}" for edge in CONFIDENCE_EDGES), "1"]
    labels = [f"{low}–{high}" for low, high in pairwise(edges)]
    yield "confidence", labels, np.where(np.isnan(confidence), -1, bins).astype(np.int8)
    yield "position", *_by_position(table)
    if not isinstance(names, NumberedTokens):
        yield "kind", KINDS, _by_kind(scores, table, names)


def _by_position(table: WindowTable) -> tuple[Sequence[str], Numbers]:
    """By the row of the window: 0, 1 to 3, 4 to 15, … ; as many tokens were read before it."""
    rows = np.concatenate(
        [np.arange(len(w.targets), dtype=np.int32) + w.score_from for w in table.windows]
    )
    starts = [0, 1]
    while starts[-1] <= rows.max():
        starts.append(4 * starts[-1])
    labels = ["0", *(f"{a}–{b - 1}" for a, b in pairwise(starts[1:]))]
    number = np.searchsorted(np.array(starts), rows, side="right") - 1
    return labels, number.astype(np.int8)


def _by_kind(scores: TokenScores, table: WindowTable, names: TokenNames) -> Numbers:
    """By what a token is by itself, where its word begins, and whether an address runs there."""
    ids, words = scores["token_id"], scores["words"]
    known = ids >= 0
    of_id = np.full(int(ids.max(initial=0)) + 1, -1, dtype=np.int8)
    for token_id in np.unique(ids[known]).tolist():
        of_id[token_id] = _kind_of_piece(names.piece(token_id))
    number: Numbers = np.where(known, of_id[np.maximum(ids, 0)], -1)
    is_word = (number == _START) | (number == _CONTINUATION)
    number[is_word & (words > 0)] = _START
    number[is_word & (words == 0)] = _CONTINUATION
    number[known & _in_addresses(table, names)] = _URL
    return number


def _kind_of_piece(piece: bytes) -> int:
    """What a token is by its own bytes; with a space before it a word starts."""
    if not piece.isascii():
        return _NON_ASCII
    text = piece.strip()
    if not text:
        return _SPACE
    if any(byte in _LETTERS for byte in text):
        return _START if piece[:1].isspace() else _CONTINUATION
    return _DIGITS if any(byte in _FIGURES for byte in text) else _PUNCTUATION


_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_FIGURES = frozenset(b"0123456789")


def _in_addresses(table: WindowTable, names: TokenNames) -> Bools:
    """Which scored tokens are part of an address such as https://example.org/."""
    texts = _texts(table)
    found = np.zeros(table.tokens, dtype=np.bool_)
    first, current, marked = 0, -1, None
    for window in table.windows:
        if window.document != current:
            current = window.document
            marked = _address_tokens(table.documents[current], texts.get(current), names)
        stop = first + len(window.targets)
        if marked is not None:
            places = np.arange(window.position, window.position + len(window.targets))
            found[first:stop] = marked.take(places, mode="clip")
        first = stop
    return found


def _texts(table: WindowTable) -> dict[int, bytes]:
    """The text of each document, where a corpus brought it."""
    texts: dict[int, bytes] = {}
    for number, corpus in enumerate(table.corpora):
        own = [i for i, document in enumerate(table.documents) if document.corpus == number]
        if len(own) == len(corpus.documents):
            texts |= {i: d.content for i, d in zip(own, corpus.documents, strict=True)}
    return texts


def _address_tokens(
    document: TokenizedDocument, text: bytes | None, names: TokenNames
) -> Bools | None:
    """Which tokens of a document an address runs through; None without any address.

    In the text, or where that is not known in what its tokens read like, one after the other.
    """
    if text is not None and document.encoding is not None:
        content, ends = text, document.encoding.ends
    else:
        pieces = [names.piece(token_id) for token_id in document.ids.tolist()]
        content, ends = b"".join(pieces), np.cumsum([len(piece) for piece in pieces])
    matches = list(_ADDRESS.finditer(content))
    if not matches:
        return None
    marked = np.zeros(len(ends), dtype=np.bool_)
    for match in matches:
        stop = match.start() + len(match[0].rstrip(_CLOSING))
        first, last = np.searchsorted(ends, (match.start(), stop - 1), side="right")
        marked[first : last + 1] = True
    return marked


def _measure(
    by: SliceBy, labels: Sequence[str], number: Numbers, scores: TokenScores
) -> Iterator[Slice]:
    """Tokens, means and share of each slice that holds a token."""
    columns = ("kl", "nll_reference", "nll_candidate") if scores.paired else ("nll",)
    target_known = scores["token_id"] >= 0
    chosen = {name: number >= 0 if name == "kl" else (number >= 0) & target_known
              for name in columns}  # fmt: skip
    totals = {name: _per_slice(number[chosen[name]], scores[name][chosen[name]], len(labels))
              for name in columns}  # fmt: skip
    shares = _shares(totals[columns[0]][1])
    counts = np.bincount(number[number >= 0], minlength=len(labels))
    for place in np.flatnonzero(counts).tolist():
        means: dict[str, float | None] = {}
        for name, (tokens, sums) in totals.items():
            means[name] = _known(sums[place] / tokens[place]) if tokens[place] else None
            if name == columns[0]:
                means["share"] = _known(shares[place])
        yield Slice(by=by, slice=labels[place], tokens=int(counts[place]), means=means)


def _per_slice(
    number: Numbers, values: npt.NDArray[Any], slices: int
) -> tuple[npt.NDArray[np.intp], Floats]:
    """How many tokens each slice has, and their sum."""
    return (
        np.bincount(number, minlength=slices),
        np.bincount(number, weights=values, minlength=slices).astype(np.float64),
    )


def _shares(sums: Floats) -> Floats:
    """What each slice carries of the whole; NaN where that is 0 or not finite."""
    total = float(sums.sum())
    return sums / total if math.isfinite(total) and total > 0 else np.full(len(sums), np.nan)


def _known(x: float) -> float | None:
    return None if math.isnan(x) else float(x)
