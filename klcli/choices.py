"""The words that options take, a ``Literal`` each.

Click, the type checker and the checks of requests all take them from here. (The names of protocols
stand beside what they mean, in ``text/protocols.py``.)
"""

from collections.abc import Mapping
from dataclasses import Field, field, fields
from numbers import Integral
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from klcli.errors import UsageError, choose_from

Task = Literal["causal", "masked"]
TaskChoice = Literal["auto", "causal", "masked"]
Engine = Literal["transformers", "llama.cpp"]
KvCacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
FlashAttention = Literal["auto", "on", "off"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
ValueKind = Literal["logits", "log_probs", "probs"]
ValueChoice = Literal["auto", "logits", "log_probs", "probs"]
BosPlace = Literal["none", "document", "window"]
Bos = Literal["auto", "none", "document", "window"]
SpecialTokens = Literal["text", "parse"]
DocumentSplit = Literal["file", "line", "blank"]
Pll = Literal["original", "word"]
NoiseFloor = Literal["batch", "dtype", "attention"]
RecordingKind = Literal["hidden", "logits", "topk"]
RecordingChoice = Literal["auto", "hidden", "logits", "topk"]
RowKind = Literal["logits", "log_probs", "truncated", "topk"]
SliceBy = Literal["confidence", "position", "kind", "role", "turn", "generated", "regex"]
Score = Literal["assistant", "all", "last"]
TokenChoice = Literal["all", "outliers", "none"]
KeepTop = Literal["outliers", "all"]
Format = Literal["table", "json", "jsonl", "csv", "markdown", "github"]
FileFormat = Literal[
    "json", "jsonl", "csv", "markdown", "html", "junit", "badge", "card", "parquet", "svg", "png"
]
RankFormat = Literal["table", "json", "csv", "markdown"]
LayersFormat = Literal["table", "json", "markdown"]

ENDINGS: Mapping[str, FileFormat] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".md": "markdown",
    ".html": "html",
    ".xml": "junit",
    ".badge.json": "badge",
    ".yaml": "card",
    ".parquet": "parquet",
    ".svg": "svg",
    ".png": "png",
}
"""The format of a file by the ending of its name; of several endings the longest counts."""

RANK_ENDINGS: Mapping[str, FileFormat] = {
    ".json": "json",
    ".csv": "csv",
    ".md": "markdown",
    ".html": "html",
    ".svg": "svg",
    ".png": "png",
}
"""The same of the files that ``rank`` writes."""

LAYERS_ENDINGS: Mapping[str, FileFormat] = {".json": "json", ".md": "markdown"}
"""The same of the files that ``layers`` writes."""

DEFAULT_OUTLIERS = 10
FIRST_OUTLIERS = 3
"""How many of them the first screen shows."""
DEFAULT_TOP_K = 1024
DEFAULT_NEW_TOKENS = 512


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The words of a ``Literal``, or of an optional one; none for any other type."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for part in get_args(annotation) if (found := choices_of(part))), ())


def at_least(least: int, default: Any = None) -> Any:
    """A field of a request that holds a whole number, ``least`` or more."""
    return field(default=default, metadata={"least": least})


def check_fields(request: Any) -> None:
    """Hold each field of a request against its choices, or its least number.

    Raises:
        UsageError: a value is not one of the choices, or too small.
    """
    for one in fields(request):
        if one.init:
            check_value(f"--{one.name.replace('_', '-')}", getattr(request, one.name), one)


def check_value(option: str, value: Any, of: Field[Any]) -> None:
    """Hold the value of an option against what the field of a request takes.

    Raises:
        UsageError: it is not one of the choices, not a whole number, or too small.
    """
    choices, least = choices_of(of.type), of.metadata.get("least")
    if value is None and NoneType in get_args(of.type):
        return
    if choices and value not in choices:
        raise UsageError(f"{option} {value} is not known{choose_from(str(value), choices)}")
    if least is None:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise UsageError(f"{option} must be at least {least}, a whole number, not {value!r}")
