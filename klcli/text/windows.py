"""Which tokens are scored, and what the model has read before each: the protocols.

A *window* is one sequence of ids that a model reads at once. Row i of it is the distribution after
reading ids 0…i. A protocol cuts every document into windows and says which rows are scored; each
token is scored at most once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from klcli.errors import CorpusError, UsageError
from klcli.text.corpus import Corpus
from klcli.text.vocabulary import Encoding, IntArray, Vocabulary

ProtocolName = Literal["rolling", "llama.cpp", "lm-eval", "strided", "evaluate", "exllamav3"]
Bos = Literal["auto", "none", "document", "window"]
SpecialTokens = Literal["text", "parse"]

DEFAULT_CONTEXT = 512
DEFAULT_BOS: dict[str, Literal["none", "document", "window"]] = {
    "lm-eval": "document",
    "evaluate": "document",
    "exllamav3": "none",
}
"""Where a protocol puts a BOS whatever the tokenizer does by itself."""
LONG_CONTEXT = {"lm-eval": 2048, "evaluate": 1024}
ROW_CONTEXT = 2048
"""Protocols that read all the model can, and how much where that has no limit."""
GUIDE_CONTEXT = 1024
NO_TARGET = -1
"""The target of a row of which nobody knows what came next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedDocument:
    """The ids of one document, and where each ends in its text.

    ``encoding`` says which bytes and words each token covers, None where the text is not known.
    ``corpus`` is the number of the corpus that the document belongs to.
    """

    corpus: int
    name: str
    ids: IntArray
    encoding: Encoding | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masking:
    """How the scored tokens of a window are hidden from a masked model.

    Without ``every`` each scored token has a forward row of its own, in which ``mask_id`` stands in
    its place, and in that of every input up to ``ends`` (scored tokens,), the input after the last
    hidden one. With ``every`` = K there are K forward rows, and row r hides every K-th scored token
    from the r-th on.
    """

    mask_id: int
    ends: IntArray
    every: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """One sequence that a model reads, and the rows of it that are scored.

    Attributes:
        number: its place in the window table as planned, before any limit.
        document: number of the document in the window table.
        inputs: the ids as fed, BOS and other special tokens included.
        score_from: the first scored row; ``len(targets)`` rows from there on are scored.
        targets: the id that each scored row is scored on, ``NO_TARGET`` where unknown.
        position: where in the document ``targets[0]`` stands.
        masking: how a masked model reads the inputs; None for a causal one. Row i of a masked
            window is scored on the token that stands at i itself.
    """

    number: int = 0
    document: int
    inputs: IntArray
    score_from: int
    targets: IntArray
    position: int
    masking: Masking | None = None

    @property
    def forward_rows(self) -> int:
        """How many sequences a model reads to score this window."""
        if self.masking is None:
            return 1
        return min(self.masking.every or len(self.targets), len(self.targets))


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTable:
    """All windows of a run, in reading order, with the documents they are cut from.

    ``protocol`` says how they were cut, as a report shows it, and ``corpora`` whose documents they
    are; both are empty where that is not known.
    """

    documents: tuple[TokenizedDocument, ...]
    windows: tuple[Window, ...]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    corpora: tuple[Corpus, ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens are scored."""
        return sum(self.window_tokens)

    @property
    def window_tokens(self) -> list[int]:
        """How many tokens of each window are scored."""
        return [len(window.targets) for window in self.windows]

    def limited(self, limit: int | None) -> "WindowTable":
        """Only the first ``limit`` windows of each corpus; all for None."""
        if limit is None:
            return self
        taken: dict[int, int] = {}
        kept = []
        for window in self.windows:
            corpus = self.documents[window.document].corpus
            taken[corpus] = taken.get(corpus, 0) + 1
            if taken[corpus] <= limit:
                kept.append(window)
        return replace(self, windows=tuple(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How documents become windows.

    ``context`` is the number of ids a model reads at once, BOS included; ``stride`` how far ahead
    the next window lies; ``score_from`` the first row of a window that may be scored; ``bos`` where
    a BOS is put: nowhere, before each document, or before each window.
    """

    name: str
    context: int
    stride: int
    score_from: int
    bos: Literal["none", "document", "window"]
    special_tokens: SpecialTokens


def choose_protocol(
    name: ProtocolName,
    *,
    vocabulary: Vocabulary,
    longest: int | None,
    context: int | None = None,
    stride: int | None = None,
    score_from: int | None = None,
    bos: Bos = "auto",
    special_tokens: SpecialTokens | None = None,
) -> Protocol:
    """Fill in a protocol's preset where nothing is given by hand.

    ``longest`` is the most ids that every model of the run can read, None if it has no limit.
    ``rolling`` reads ``min(512, longest)`` ids at a time, ``llama.cpp`` 512, ``strided`` 1024 with
    a stride of half of it, ``exllamav3`` 2048, ``lm-eval`` and ``evaluate`` all that the model can.
    ``bos="auto"`` puts
    a BOS before each window if the tokenizer adds one to a text by itself, else nowhere;
    ``strided`` only before the document, ``lm-eval`` and ``evaluate`` before it in any case.

    Raises:
        UsageError: values that contradict each other or the model.
    """
    if context is None:
        context = _default_context(name, longest)
    if longest is not None and context > longest:
        raise UsageError(
            f"--context {context} is more than the {longest} tokens the model can read"
        )
    if stride is None:
        stride = max(1, context // 2) if name == "strided" else context
    if score_from is None:
        score_from = context // 2 if name == "llama.cpp" else 0
    if bos == "auto":
        bos = _default_bos(name, vocabulary)
    if bos != "none" and vocabulary.prefix_id is None:
        raise UsageError(f"--bos {bos}: this tokenizer has neither a BOS nor an EOS token")
    _check_window_shape(name, context, stride, score_from, bos)
    return Protocol(
        name=name,
        context=context,
        stride=stride,
        score_from=score_from,
        bos=bos,
        special_tokens=special_tokens or "text",
    )


def _default_bos(name: str, vocabulary: Vocabulary) -> Literal["none", "document", "window"]:
    if name in DEFAULT_BOS:
        return DEFAULT_BOS[name]
    if not vocabulary.adds_bos:
        return "none"
    return "document" if name == "strided" else "window"


def _default_context(name: str, longest: int | None) -> int:
    if name in LONG_CONTEXT:
        return longest or LONG_CONTEXT[name]
    named = {"strided": GUIDE_CONTEXT, "exllamav3": ROW_CONTEXT}
    context = named.get(name, DEFAULT_CONTEXT)
    return context if name == "llama.cpp" or longest is None else min(context, longest)


def _check_window_shape(name: str, context: int, stride: int, score_from: int, bos: str) -> None:
    shortest = 2 if bos == "window" else 1
    if context < shortest:
        raise UsageError(f"--context {context} is too short: at least {shortest} with --bos {bos}")
    if not 1 <= stride <= context:
        raise UsageError(f"--stride {stride} must lie between 1 and --context {context}")
    if not 0 <= score_from < context:
        raise UsageError(f"--score-from {score_from} must lie between 0 and {context - 1}")
    if name == "llama.cpp" and stride != context:
        raise UsageError("--protocol llama.cpp has disjoint windows: leave out --stride")
    if name == "llama.cpp" and score_from > context - 2:
        raise UsageError(
            f"--protocol llama.cpp scores positions {score_from} to {context - 2} of a chunk of "
            f"{context}, which is none: give a larger --context or a smaller --score-from"
        )
    if name in ("strided", "exllamav3", "lm-eval", "evaluate") and bos == "window":
        raise UsageError(f"--protocol {name} puts a BOS before each document or nowhere")
    if name == "llama.cpp" and bos == "document":
        raise UsageError("--protocol llama.cpp puts a BOS into every window or into none")


def tokenize(text: str, vocabulary: Vocabulary, protocol: Protocol) -> Encoding:
    """Tokenise one document as the protocol wants it."""
    if protocol.name == "llama.cpp":
        text = text.removesuffix("\n")
    return vocabulary.encode(text, parse_special=protocol.special_tokens == "parse")


def plan_windows(
    documents: Sequence[TokenizedDocument], protocol: Protocol, prefix_id: int | None
) -> WindowTable:
    """Cut documents into windows by a protocol.

    ``prefix_id`` is the id that ``protocol.bos`` puts in front.

    Raises:
        CorpusError: nothing would be scored, or a document is too short for ``llama.cpp``.
    """
    cuts_of = {"llama.cpp": _chunks, "strided": _slide, "exllamav3": _rows}
    cut = cuts_of.get(protocol.name, _roll)
    prefix = np.array([] if prefix_id is None else [prefix_id], dtype=np.int32)
    cuts = (
        window
        for number, document in enumerate(documents)
        for window in cut(number, document, protocol, prefix)
        if len(window.targets)
    )
    windows = [replace(window, number=number) for number, window in enumerate(cuts)]
    if not windows:
        longest = max(documents, key=lambda document: len(document.ids))
        if protocol.name == "exllamav3":
            raise CorpusError(
                f"{longest.name}, the longest document, has {len(longest.ids)} tokens, and "
                f"--protocol exllamav3 needs more than --context {protocol.context}; give more "
                "text or a smaller --context"
            )
        raise CorpusError(
            f"nothing to score: {longest.name}, the longest document, has {len(longest.ids)} "
            f"tokens and scoring starts after {protocol.score_from + 1}; give more text, "
            "--bos document or a lower --score-from"
        )
    return WindowTable(documents=tuple(documents), windows=tuple(windows))


def _roll(
    number: int, document: TokenizedDocument, protocol: Protocol, prefix: IntArray
) -> Iterator[Window]:
    """Runs of ``context`` inputs, each predicting its successor.

    The last input of a run predicts the first token of the next, so that every token but the first
    is scored, and the first too where a BOS stands before it. ``lm-eval`` fills its last run up
    with the tokens before it, as context.
    """
    begins_with_bos = protocol.bos != "none"
    ids = np.concatenate([prefix, document.ids]) if begins_with_bos else document.ids
    shift = 1 if begins_with_bos else 0
    start, scored_to = 0, 0  # rows of `ids`: row i predicts ids[i + 1]
    while scored_to < len(ids) - 1:
        repeats_bos = protocol.bos == "window" and start > 0
        length = protocol.context - 1 if repeats_bos else protocol.context
        stop = min(start + length, len(ids) - 1)
        if protocol.name == "lm-eval" and not repeats_bos:
            start = max(0, stop - length)
        lead = prefix if repeats_bos else prefix[:0]
        first = max(scored_to, start + max(0, protocol.score_from - len(lead)))
        yield Window(
            document=number,
            inputs=np.concatenate([lead, ids[start:stop]]) if len(lead) else ids[start:stop],
            score_from=first - start + len(lead),
            targets=ids[first + 1 : stop + 1],
            position=first + 1 - shift,
        )
        scored_to = stop
        start = max(start + 1, stop - (protocol.context - protocol.stride))


def _slide(
    number: int, document: TokenizedDocument, protocol: Protocol, prefix: IntArray
) -> Iterator[Window]:
    """The sliding window of the Hugging Face guide, each scoring what no window before it has.

    It reads the last token that it scores too, so that a window has one input more than it needs.
    """
    shift = 0 if protocol.bos == "none" else 1
    ids = np.concatenate([prefix, document.ids]) if shift else document.ids
    scored_to = 1
    for start in range(0, len(ids), protocol.stride):
        stop = min(start + protocol.context, len(ids))
        first = max(scored_to, start + protocol.score_from + 1)
        yield Window(
            document=number,
            inputs=ids[start:stop],
            score_from=first - 1 - start,
            targets=ids[first:stop],
            position=first - shift,
        )
        scored_to = stop
        if stop == len(ids):
            return


def _rows(
    number: int, document: TokenizedDocument, protocol: Protocol, prefix: IntArray
) -> Iterator[Window]:
    """exllamav3's rows: the first token of each is never scored, and what fills none is dropped.

    A last row that ends with the text is dropped too, as that program does.
    """
    shift = 0 if protocol.bos == "none" else 1
    ids = np.concatenate([prefix, document.ids]) if shift else document.ids
    scored_to = 1
    for start in range(0, len(ids) - protocol.context, protocol.stride):
        stop = start + protocol.context
        first = max(scored_to, start + protocol.score_from + 1)
        yield Window(
            document=number,
            inputs=ids[start:stop],
            score_from=first - 1 - start,
            targets=ids[first:stop],
            position=first - shift,
        )
        scored_to = stop


def _chunks(
    number: int, document: TokenizedDocument, protocol: Protocol, prefix: IntArray
) -> Iterator[Window]:
    """llama.cpp's disjoint chunks: the first half is context only, the remainder is dropped.

    The text has a BOS in front if the tokenizer adds one, and a BOS takes the place of the first
    token of every chunk.
    """
    context = protocol.context
    with_bos = protocol.bos == "window"
    ids = np.concatenate([prefix, document.ids]) if with_bos else document.ids
    if len(ids) < 2 * context:
        raise CorpusError(
            f"{document.name} has {len(ids)} tokens, and --protocol llama.cpp needs "
            f"{2 * context} (twice --context {context}); give more text or a smaller --context"
        )
    for start in range(0, len(ids) - context + 1, context):
        inputs = ids[start : start + context]
        if with_bos:
            inputs = np.concatenate([prefix, inputs[1:]])
        first = start + protocol.score_from + 1
        yield Window(
            document=number,
            inputs=inputs,
            score_from=protocol.score_from,
            targets=ids[first : start + context],
            position=first - (1 if with_bos else 0),
        )


def plan_batches(
    windows: Sequence[Window], budget: int, *, by_length: bool = True
) -> list[list[int]]:
    """Numbers of windows that are read together: equal in length, at most ``budget`` ids in all.

    Equal lengths need no padding. A window longer than the budget is a batch of its own. The plan
    depends on the windows alone, so that every source of a run sees the same batches. They come
    ``by_length``, the longest first, or else in the order of the windows.
    """
    batches: list[list[int]] = []
    order = list(range(len(windows)))
    if by_length:
        order = sorted(order, key=lambda i: -len(windows[i].inputs))
    read, length = 0, -1  # sequences in the last batch, and their length
    for number in order:
        window = windows[number]
        fits = (read + window.forward_rows) * length <= budget
        if len(window.inputs) == length and fits:
            batches[-1].append(number)
            read += window.forward_rows
        else:
            batches.append([number])
            read, length = window.forward_rows, len(window.inputs)
    return batches
