"""Settings in which the configs of two models differ, and which of them the text could show."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_target_positions",
    "seq_length",
)
"""How long a model reads: of itself this changes no prediction."""
_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "local_attention")
_WITH_WINDOWS = ("layer_types", "max_window_layers", "sliding_window_pattern")
"""Which layers have a sliding window."""
_SAME = 1e-5
"""Relative difference below which two floats are one number, rounded once more."""


class Difference(NamedTuple):
    """A setting with the value of each model; None where it is not set."""

    name: str
    reference: Any
    candidate: Any

    def __str__(self) -> str:
        return f"{self.name} {_said(self.reference)} → {_said(self.candidate)}"


def differing(models: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """The settings that differ; between two architectures those that both of them have."""
    one, other = (models[role].get("settings") for role in ("reference", "candidate"))
    if one is None or other is None:
        return []
    is_one_kind = models["reference"].get("architecture") == models["candidate"].get("architecture")
    names = [*one, *(name for name in other if name not in one)]
    shared = [n for n in names if is_one_kind or (n in one and n in other)]
    found = [Difference(name, one.get(name), other.get(name)) for name in shared]
    return [one for one in found if not _equal(one.reference, one.candidate)]


def visible_in(found: Iterable[Difference], longest: int) -> list[Difference]:
    """The differences that windows of up to ``longest`` tokens can show."""
    found = list(found)
    hides = any(one.name in _WINDOWS for one in found) and not _reach(found, longest)
    hidden = {*_LENGTHS}
    if hides:
        hidden |= {*_WINDOWS, *_WITH_WINDOWS}
    return [one for one in found if one.name.removeprefix("_") not in hidden]


def unseen_in(found: Iterable[Difference], longest: int) -> Iterator[tuple[Difference, int]]:
    """Differences that only longer windows would show, and from which length on."""
    for one in found:
        limits = [n for n in (one.reference, one.candidate) if type(n) is int and n > 0]
        if one.name in (*_LENGTHS, *_WINDOWS) and limits and longest <= min(limits):
            yield one, min(limits)


def _reach(found: Iterable[Difference], longest: int) -> bool:
    """Whether windows are longer than a sliding window in which the models differ."""
    return any(
        longest > limit
        for one in found
        if one.name in _WINDOWS
        for limit in (one.reference, one.candidate)
        if type(limit) is int
    )


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are the same, but for rounding."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if _is_number(one) and _is_number(other):
        return math.isclose(one, other, rel_tol=_SAME)
    return bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _said(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return f"list of {len(value)}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
