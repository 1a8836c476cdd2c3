"""Which tokens are hidden from a masked model, and what it reads to score each.

Pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659): every token of a text is masked in
turn and scored in the light of all others, on both sides. The ``word`` variant (Kauf and Ivanova
2023, arXiv 2305.10588) masks the later tokens of the same word too, so that a word's own pieces do
not give it away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from klcli.choices import Pll, SpecialTokens
from klcli.errors import CorpusError, UsageError
from klcli.text.protocols import DEFAULT_CONTEXT
from klcli.text.vocabulary import IntArray, Vocabulary
from klcli.text.windows import Masking, TokenizedDocument, Window, WindowTable

STRIDES_IN_CONTEXT = 4
"""A window that does not hold its whole document scores a quarter of what it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedProtocol:
    """How documents become windows of a masked model.

    ``context`` is the number of ids the model reads at once, special tokens included; ``stride``
    how many tokens a window scores at most where it does not hold the whole document. ``pll`` says
    what is hidden with a token: nothing else, or the rest of its word. ``mask_every`` = K hides
    every K-th token at once, which is faster and an approximation; None hides one at a time.
    """

    name: str = "masked"
    context: int
    stride: int
    pll: Pll
    mask_every: int | None
    special_tokens: SpecialTokens


def choose_masked_protocol(
    *,
    vocabulary: Vocabulary,
    longest: int | None,
    context: int | None = None,
    stride: int | None = None,
    pll: Pll = "original",
    mask_every: int | None = None,
    special_tokens: SpecialTokens | None = None,
) -> MaskedProtocol:
    """Fill in what is not given by hand.

    The context is what the model can read (``longest``), or 512 where that has no limit.

    Raises:
        UsageError: values that contradict each other or the model.
    """
    if vocabulary.mask_id is None:
        raise UsageError("this tokenizer has no mask token: give the model's own tokenizer")
    if longest is not None and context is not None and context > longest:
        raise UsageError(
            f"--context {context} is more than the {longest} tokens the model can read: give "
            f"--context {longest} or less"
        )
    context = context or longest or DEFAULT_CONTEXT
    frame = sum(len(part) for part in vocabulary.frame)
    if context <= frame:
        raise UsageError(
            f"--context {context} is too short: the special tokens around a text take {frame}"
        )
    room = context - frame
    if stride is not None and stride > room:
        raise UsageError(
            f"--stride {stride} is more than the {room} tokens of text that --context {context} "
            "leaves room for"
        )
    if pll == "word" and mask_every is not None:
        raise UsageError("--mask-every hides single tokens: leave out --pll word")
    return MaskedProtocol(
        context=context,
        stride=stride or max(1, room // STRIDES_IN_CONTEXT),
        pll=pll,
        mask_every=mask_every,
        special_tokens=special_tokens or "text",
    )


def plan_masked_windows(
    documents: Sequence[TokenizedDocument], protocol: MaskedProtocol, vocabulary: Vocabulary
) -> WindowTable:
    """Cut documents into windows of which every token is scored once.

    A document that fits the context is one window. A longer one is cut into runs of ``stride``
    tokens, and each is read in the middle of as much text as the context holds: a token then has
    the whole context around it, at least 3/8 of it on either side by default, and at the ends of
    the document all that there is. A stride of 1 puts every token in the very middle.

    Special tokens, in the frame or in the text, are never scored.

    Raises:
        CorpusError: nothing would be scored.
    """
    cuts = (
        window
        for number, document in enumerate(documents)
        for window in _around(number, document, protocol, vocabulary)
    )
    windows = tuple(replace(window, number=number) for number, window in enumerate(cuts))
    if not windows:
        raise CorpusError("nothing to score: the text has no tokens but special ones")
    return WindowTable(documents=tuple(documents), windows=windows)


def _around(
    number: int, document: TokenizedDocument, protocol: MaskedProtocol, vocabulary: Vocabulary
) -> Iterator[Window]:
    before, after = (np.array(part, dtype=np.int32) for part in vocabulary.frame)
    room = protocol.context - len(before) - len(after)
    ids = document.ids
    fits = len(ids) <= room
    for first, stop in _runs(ids, vocabulary.control_ids, len(ids) if fits else protocol.stride):
        start = min(max(0, first - (room - (stop - first)) // 2), max(0, len(ids) - room))
        yield Window(
            document=number,
            inputs=np.concatenate([before, ids[start : start + room], after]),
            score_from=first - start + len(before),
            targets=ids[first:stop],
            position=first,
            masking=_masking(document, protocol, vocabulary, first, stop, start - len(before)),
        )


def _runs(ids: IntArray, control_ids: IntArray, longest: int) -> Iterator[tuple[int, int]]:
    """Runs of scored tokens: at most ``longest`` of them, without a special token among them."""
    text = ~np.isin(ids, control_ids)
    borders = np.flatnonzero(np.diff(text, prepend=False, append=False))
    for begin, end in zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True):
        for first in range(begin, end, longest):
            yield first, min(first + longest, end)


def _masking(
    document: TokenizedDocument,
    protocol: MaskedProtocol,
    vocabulary: Vocabulary,
    first: int,
    stop: int,
    origin: int,
) -> Masking:
    """What is hidden; ``origin`` is where in the document input 0 would stand."""
    assert vocabulary.mask_id is not None
    ends: IntArray = np.arange(first + 1, stop + 1)
    if protocol.pll == "word" and document.encoding is not None:
        assert document.encoding.word_ends is not None
        ends = document.encoding.word_ends[first:stop]
    last = origin + protocol.context - len(vocabulary.frame[1])
    ends = np.minimum(ends, min(last, len(document.ids))) - origin
    return Masking(
        mask_id=vocabulary.mask_id, ends=ends.astype(np.int32), every=protocol.mask_every
    )


class MaskedRows(NamedTuple):
    """What a masked model reads to score some windows.

    ``ids`` (sequences, length), and where in them, flattened, each scored token is hidden:
    ``hidden`` (tokens,), window by window.
    """

    ids: IntArray
    hidden: IntArray


@lru_cache(maxsize=1)
def masked_rows(windows: tuple[Window, ...]) -> MaskedRows:
    """The masked copies of windows of one length; made once for the two models that read them."""
    parts = [_masked_copies(window) for window in windows]
    length = len(windows[0].inputs)
    starts = np.cumsum([0, *(len(part.ids) for part in parts)]) * length
    return MaskedRows(
        ids=np.concatenate([part.ids for part in parts]),
        hidden=np.concatenate(
            [part.hidden + start for part, start in zip(parts, starts[:-1], strict=True)]
        ),
    )


def _masked_copies(window: Window) -> MaskedRows:
    masking = window.masking
    assert masking is not None
    token = np.arange(len(window.targets))
    copy = token % window.forward_rows
    place = window.score_from + token
    ids = np.tile(window.inputs, (window.forward_rows, 1))
    for row, first, end in zip(copy, place, masking.ends, strict=True):
        ids[row, first:end] = masking.mask_id
    return MaskedRows(ids=ids, hidden=copy * len(window.inputs) + place)
