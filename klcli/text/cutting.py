"""The cutters: how a document becomes windows.

A *window* is one sequence of ids that a model reads at once. Row i of it is the distribution after
reading ids 0…i. A protocol cuts every document into windows and says which rows are scored; each
token is scored at most once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from klcli.errors import CorpusError
from klcli.text.corpus import Document
from klcli.text.protocols import PRESETS, Cut, Protocol, ProtocolName
from klcli.text.vocabulary import Encoding, IntArray, Vocabulary
from klcli.text.windows import TokenizedDocument, Window, WindowTable


def encode_document(document: Document, vocabulary: Vocabulary, protocol: Protocol) -> Encoding:
    """Tokenise one document as the protocol wants it, or as what made it did."""
    if document.is_rendered:
        return encode_rendered(document, vocabulary)
    text = text_read_by(document.text, protocol.name)
    return vocabulary.encode(text, parse_special=protocol.special_tokens == "parse")


def encode_rendered(document: Document, vocabulary: Vocabulary) -> Encoding:
    """The tokens of a document that has them, or of what a chat template made."""
    if document.ids is not None:
        return vocabulary.encoding_of(document.ids)
    return vocabulary.encode(document.text, parse_special=True)


def text_read_by(text: str, protocol: str) -> str:
    """What a protocol reads of a document; all of it if the protocol has no preset."""
    preset = PRESETS.get(cast("ProtocolName", protocol))
    return text.removesuffix("\n") if preset is not None and preset.drops_newline else text


def plan_windows(
    documents: Sequence[TokenizedDocument],
    protocol: Protocol,
    prefix_id: int | None,
    whole: int | None = None,
) -> WindowTable:
    """Cut documents into windows by a protocol.

    ``prefix_id`` is the id that ``protocol.bos`` puts in front, and ``whole`` the context of
    documents with parts, None for that of the protocol.

    Raises:
        CorpusError: nothing would be scored, or a document is too short to be cut so.
    """
    prefix = np.array([] if prefix_id is None else [prefix_id], dtype=np.int32)
    cuts = (
        window
        for number, document in enumerate(documents)
        for window in _cut(number, document, protocol, prefix, whole)
        if len(window.targets)
    )
    windows = [replace(window, number=number) for number, window in enumerate(cuts)]
    if not windows:
        raise CorpusError(_why_nothing(documents, protocol))
    return WindowTable(documents=tuple(documents), windows=tuple(windows))


def _cut(
    number: int,
    document: TokenizedDocument,
    protocol: Protocol,
    prefix: IntArray,
    whole: int | None,
) -> Iterator[Window]:
    """The windows of a document, of which only its scored parts are scored."""
    if document.is_rendered:
        protocol = replace(protocol, bos="none")
    if document.parts and whole is not None:
        protocol = replace(protocol, context=whole, stride=whole)
    windows = CUTTERS[protocol.preset.cut](number, document, protocol, prefix)
    if not document.parts:
        return windows
    is_scored = document.is_scored
    return (window.only(is_scored) for window in windows)


def _why_nothing(documents: Sequence[TokenizedDocument], protocol: Protocol) -> str:
    """Why no token would be scored."""
    longest = max(documents, key=lambda document: len(document.ids))
    tokens = len(longest.ids)
    has = f"{longest.name}, the longest document, has {tokens} token{'' if tokens == 1 else 's'}"
    if protocol.preset.cut == "rows":
        return (
            f"{has}, and --protocol {protocol.name} needs more than --context {protocol.context}; "
            "give more text or a smaller --context"
        )
    advice = "a lower --score-from" if protocol.score_from else "--bos document"
    read = protocol.score_from + 1
    first = "the first token of a window is" if read == 1 else f"the first {read} of a window are"
    return f"nothing to score: {has}, and {first} only read; give more text or {advice}"


def _roll(
    number: int, document: TokenizedDocument, protocol: Protocol, prefix: IntArray
) -> Iterator[Window]:
    """Runs of ``context`` inputs, each predicting its successor.

    The last input of a run predicts the first token of the next, so that every token but the first
    is scored, and the first too where a BOS stands before it. A protocol that ``fills_last`` fills
    the last run up with the tokens before it, as context.
    """
    begins_with_bos = protocol.bos != "none"
    ids = np.concatenate([prefix, document.ids]) if begins_with_bos else document.ids
    shift = 1 if begins_with_bos else 0
    start, scored_to = 0, 0  # rows of `ids`: row i predicts ids[i + 1]
    while scored_to < len(ids) - 1:
        repeats_bos = protocol.bos == "window" and start > 0
        length = protocol.context - 1 if repeats_bos else protocol.context
        stop = min(start + length, len(ids) - 1)
        if protocol.preset.fills_last and not repeats_bos:
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
        yield _window(number, ids[start:stop], start, first, shift)
        scored_to = stop
        if stop == len(ids):
            return


def _window(number: int, inputs: IntArray, start: int, first: int, shift: int) -> Window:
    """Ids from ``start`` on, scored from id ``first`` on, behind ``shift`` BOS of the document."""
    return Window(
        document=number,
        inputs=inputs,
        score_from=first - 1 - start,
        targets=inputs[first - start :],
        position=first - shift,
    )


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
        yield _window(number, ids[start:stop], start, first, shift)
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
            f"{document.name} has {len(ids)} tokens, and --protocol {protocol.name} needs "
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


Cutter = Callable[[int, TokenizedDocument, Protocol, IntArray], Iterator[Window]]

CUTTERS: Mapping[Cut, Cutter] = {
    "runs": _roll,
    "slides": _slide,
    "rows": _rows,
    "chunks": _chunks,
}
"""How each ``Preset.cut`` cuts a document, given its number, the protocol and the prefix token."""
