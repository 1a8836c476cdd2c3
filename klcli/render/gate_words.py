"""What became of a gate, in words: its limit, how far the value is from it, and the baseline."""

import math
from collections.abc import Iterator

from klcli.judge.gate import GateResult
from klcli.render.numbers import apart

_MANY = 2.0
"""From how many times on a distance is a factor, not a percentage."""


def gate_words(gate: GateResult) -> str:
    """Why a gate is as it is: ``limit 0.01, 27 × over``; empty where there is nothing to add."""
    return "; ".join(_words(gate))


def _words(gate: GateResult) -> Iterator[str]:
    failed = gate.verdict == "fail" and gate.reason is None
    limit = f"limit {gate.limit:.6g}"
    if gate.baseline is not None:
        limit = f"baseline {gate.baseline:.6g}, {limit}"
    if failed and gate.value is not None:
        yield f"{limit}, {distance(gate.value, gate.limit)}"
    elif gate.baseline is not None:
        yield limit
    if gate.reason is not None:
        yield gate.reason


def distance(value: float, limit: float) -> str:
    """How far a value is over or under a limit: a factor, a percentage, or the difference."""
    if value == limit:
        return "exactly there"
    side, most, least = ("over", value, limit) if value > limit else ("under", limit, value)
    if least <= 0 or math.isinf(most):
        return f"{apart(most - least, 0.0, 3)} {side}"
    if most / least >= _MANY:
        return f"{most / least:,.3g} × {side}"
    return f"{apart(100 * (most / limit - least / limit), 0.0, 3)} % {side}"
