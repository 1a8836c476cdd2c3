"""The protocols as data: a row each. A protocol says how a text becomes windows.

A new protocol is its name, its row, and perhaps a cutter in ``cutting.py``. docs/protocols.md says
what each is for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from klcli.choices import Bos, BosPlace, DocumentSplit, SpecialTokens
from klcli.errors import UsageError

if TYPE_CHECKING:
    from klcli.text.vocabulary import Vocabulary

ProtocolName = Literal["rolling", "llama.cpp", "lm-eval", "strided", "evaluate", "exllamav3"]
Cut = Literal["runs", "slides", "rows", "chunks"]
"""The cutters of ``cutting.py``."""

DEFAULT_PROTOCOL: ProtocolName = "rolling"
BASE_FILE_PROTOCOL: ProtocolName = "llama.cpp"
"""That of llama.cpp's base files."""
DEFAULT_CONTEXT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a protocol sets where nothing is given by hand.

    Attributes:
        says: what it does, for the help of ``--protocol``.
        cut: how a document is cut into windows.
        context: how many ids a model reads at once, BOS included.
        context_is: ``at_most`` cuts ``context`` down to what the model can read, ``fixed`` does
            not, and ``all`` reads all the model can, or ``context`` if the model has no limit.
        strides_in_context: a window begins every ``context`` / this many ids.
        scores_second_half: the first half of a window is context only.
        bos: where a BOS is put.
        only_if_added: a BOS is put there only if the tokenizer adds one to a text by itself.
        allowed_bos: where a user may have one put.
        is_disjoint: no id is read twice.
        drops_newline: one final newline of a document is not read.
        fills_last: the last, short window of a document is filled up with the ids before it.
        documents: what one document of a plain text file is.
    """

    says: str
    cut: Cut
    context: int = DEFAULT_CONTEXT
    context_is: Literal["at_most", "fixed", "all"] = "at_most"
    strides_in_context: int = 1
    scores_second_half: bool = False
    bos: BosPlace = "window"
    only_if_added: bool = True
    allowed_bos: tuple[BosPlace, ...] = ("none", "document", "window")
    is_disjoint: bool = False
    drops_newline: bool = False
    fills_last: bool = False
    documents: DocumentSplit = "file"

    def context_for(self, longest: int | None) -> int:
        """How many ids a model that can read ``longest`` reads at once."""
        if longest is None or self.context_is == "fixed":
            return self.context
        return longest if self.context_is == "all" else min(self.context, longest)

    def bos_for(self, vocabulary: "Vocabulary") -> BosPlace:
        """Where a BOS of this vocabulary is put."""
        return "none" if self.only_if_added and not vocabulary.adds_bos else self.bos


PRESETS: Mapping[ProtocolName, Preset] = {
    "rolling": Preset(
        says="scores every token but the first of a document once",
        cut="runs",
    ),
    "llama.cpp": Preset(
        says="the second half of disjoint chunks",
        cut="chunks",
        context_is="fixed",
        scores_second_half=True,
        allowed_bos=("none", "window"),
        is_disjoint=True,
        drops_newline=True,
    ),
    "lm-eval": Preset(
        says="rolling, with a prefix token and the last window filled up",
        cut="runs",
        context=2048,
        context_is="all",
        bos="document",
        only_if_added=False,
        allowed_bos=("none", "document"),
        fills_last=True,
    ),
    "strided": Preset(
        says="the sliding window of the Hugging Face guide",
        cut="slides",
        context=1024,
        strides_in_context=2,
        bos="document",
        allowed_bos=("none", "document"),
    ),
    "evaluate": Preset(
        says="each line behind a BOS",
        cut="runs",
        context=1024,
        context_is="all",
        bos="document",
        only_if_added=False,
        allowed_bos=("none", "document"),
        documents="line",
    ),
    "exllamav3": Preset(
        says="disjoint rows",
        cut="rows",
        context=2048,
        bos="none",
        allowed_bos=("none", "document"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How documents become windows: a preset, with what was given by hand.

    ``context`` is the number of ids a model reads at once, BOS included; ``stride`` how far ahead
    the next window lies; ``score_from`` the first row of a window that may be scored; ``bos`` where
    a BOS is put: nowhere, before each document, or before each window.
    """

    name: ProtocolName
    context: int
    stride: int
    score_from: int
    bos: BosPlace
    special_tokens: SpecialTokens

    @property
    def preset(self) -> Preset:
        """The row of its name."""
        return PRESETS[self.name]


def choose_protocol(
    name: ProtocolName,
    *,
    vocabulary: "Vocabulary",
    longest: int | None,
    context: int | None = None,
    stride: int | None = None,
    score_from: int | None = None,
    bos: Bos = "auto",
    special_tokens: SpecialTokens | None = None,
) -> Protocol:
    """Fill in a protocol's preset where nothing is given by hand.

    ``longest`` is the most ids that every model of the run can read, None if it has no limit.

    Raises:
        UsageError: values that contradict each other or the model.
    """
    preset = PRESETS[name]
    if context is None:
        context = preset.context_for(longest)
    if longest is not None and context > longest:
        raise UsageError(
            f"--protocol {name} reads {context} tokens at once, and the model can read {longest}: "
            f"give --context {longest} or less"
        )
    if stride is None:
        stride = max(1, context // preset.strides_in_context)
    if score_from is None:
        score_from = context // 2 if preset.scores_second_half else 0
    place = preset.bos_for(vocabulary) if bos == "auto" else bos
    if place != "none" and vocabulary.prefix_id is None:
        raise UsageError(f"--bos {place}: this tokenizer has neither a BOS nor an EOS token")
    protocol = Protocol(
        name=name,
        context=context,
        stride=stride,
        score_from=score_from,
        bos=place,
        special_tokens=special_tokens or "text",
    )
    _check_shape(protocol)
    _check_preset(protocol)
    return protocol


def _check_shape(protocol: Protocol) -> None:
    """Hold the numbers of a protocol against each other."""
    context, stride, score_from = protocol.context, protocol.stride, protocol.score_from
    shortest = 2 if protocol.bos == "window" else 1
    if context < shortest:
        raise UsageError(
            f"--context {context} is too short: at least {shortest} with --bos {protocol.bos}"
        )
    if not 1 <= stride <= context:
        raise UsageError(f"--stride {stride} must lie between 1 and --context {context}")
    if not 0 <= score_from < context:
        raise UsageError(f"--score-from {score_from} must lie between 0 and {context - 1}")


def _check_preset(protocol: Protocol) -> None:
    """Hold what was given by hand against what the protocol of that name can do."""
    name, preset, context = protocol.name, protocol.preset, protocol.context
    if preset.is_disjoint and protocol.stride != context:
        raise UsageError(f"--protocol {name} has disjoint windows: leave out --stride")
    if preset.cut == "chunks" and protocol.score_from > context - 2:
        raise UsageError(
            f"--protocol {name} scores positions {protocol.score_from} to {context - 2} of a chunk "
            f"of {context}, which is none: give a larger --context or a smaller --score-from"
        )
    if protocol.bos not in preset.allowed_bos:
        raise UsageError(
            f"--protocol {name} takes --bos {' or '.join(preset.allowed_bos)}, not {protocol.bos}"
        )
