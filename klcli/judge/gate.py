"""Limits on metrics: what fails a build.

A gate such as ``kl.p99<=0.5`` passes when the comparison is true, so a NaN fails. The point
estimate decides: the corpus is the population, and the answer is reproducible.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from klcli.errors import UsageError
from klcli.judge.intervals import Metric

Verdict = Literal["pass", "fail", "inconclusive"]

_GATE = re.compile(r"\s*(\w+)(?:\.(\w+))?\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One limit: ``metric.field`` on one side, a number on the other."""

    text: str
    metric: str
    field: str
    operator: Literal["<=", ">="]
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """What became of a gate. ``reason`` says why it failed where the comparison does not."""

    gate: str
    value: float | None
    limit: float
    verdict: Verdict
    reason: str | None = None


def parse_gate(text: str, metrics: Mapping[str, Sequence[str]]) -> Gate:
    """Parse ``kl.mean<=0.01``; ``kl`` alone means ``kl.mean``.

    ``metrics`` are the known metrics with their fields.

    Raises:
        UsageError: no gate, or an unknown metric or field.
    """
    match = _GATE.fullmatch(text)
    limit = _number(match[4]) if match else None
    if match is None or limit is None:
        raise UsageError(f"--gate {text!r} is no gate: write one like 'kl.mean<=0.01'")
    metric, field = match[1], match[2]
    if metric not in metrics:
        raise UsageError(f"--gate {text!r}: unknown metric {metric!r}; one of {', '.join(metrics)}")
    fields = metrics[metric]
    if field is None and fields[0] in ("mean", "value"):
        field = fields[0]
    if field not in fields:
        what = f"{metric} has no field {field!r}" if field else f"{metric} has several numbers"
        raise UsageError(f"--gate {text!r}: {what}; one of {', '.join(fields)}")
    operator: Literal["<=", ">="] = "<=" if match[3] == "<=" else ">="
    return Gate(text=text, metric=metric, field=field, operator=operator, limit=limit)


def judge(
    gates: Sequence[Gate],
    metrics: Mapping[str, Metric],
    *,
    excluded: int,
    allow_excluded: bool,
    lower_bounds: Sequence[str] = (),
) -> list[GateResult]:
    """Hold every gate against the metrics.

    Excluded positions fail a gate unless allowed. Of a metric among ``lower_bounds`` it cannot be
    shown that it is below a limit, so such a gate fails too.
    """
    return [
        _judge_one(gate, metrics[gate.metric], _doubt(gate, excluded, allow_excluded, lower_bounds))
        for gate in gates
    ]


def overall(results: Sequence[GateResult]) -> Verdict | None:
    """One verdict of many: a failed gate beats an inconclusive one; None without gates."""
    verdicts = {result.verdict for result in results}
    for verdict in ("fail", "inconclusive", "pass"):
        if verdict in verdicts:
            return verdict
    return None


def _doubt(
    gate: Gate, excluded: int, allow_excluded: bool, lower_bounds: Sequence[str]
) -> str | None:
    """Why a gate cannot pass, whatever the value."""
    if excluded and not allow_excluded:
        return f"{excluded} tokens are excluded (NaN or +inf); --allow-excluded lets them pass"
    if gate.metric in lower_bounds and gate.operator == "<=":
        return f"{gate.metric} is only known to be at least this: the limit cannot be shown to hold"
    return None


def _judge_one(gate: Gate, metric: Metric, doubt: str | None) -> GateResult:
    value = metric[gate.field]
    holds = value is not None and (
        value <= gate.limit if gate.operator == "<=" else value >= gate.limit
    )
    reason = doubt if holds or value is None else None
    if value is None and reason is None:
        reason = f"{gate.metric}.{gate.field} is not known in this run"
    elif value is not None and math.isnan(value):
        reason = f"{gate.metric}.{gate.field} is not a number"
    verdict: Verdict = "pass" if holds and reason is None else "fail"
    return GateResult(gate=gate.text, value=value, limit=gate.limit, verdict=verdict, reason=reason)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
