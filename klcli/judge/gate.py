"""Limits on metrics: what fails a build.

A gate such as ``kl.p99<=0.5`` passes when the comparison is true, so a NaN fails. Without a
confidence the point estimate decides: the corpus is the population, and the answer can be had
again. With one the whole interval must lie inside the limit to pass, and wholly outside to fail;
between the two a gate is inconclusive. A limit may be relative, as in ``kl.mean<=1.1*baseline``: to
the same number of an earlier run. A number that is only a lower bound can be shown to be above a
limit, and never to be below it: a gate that this leaves open fails.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from klcli.errors import UsageError
from klcli.judge.intervals import Metric
from klcli.judge.metrics import BOUNDS, QUANTILES

Verdict = Literal["pass", "fail", "inconclusive"]

Operator = Literal["<=", ">=", "<", ">"]
HOLDS: Mapping[Operator, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt
}  # fmt: skip

_MEANS = ("mean", "value", "net", "volume")
"""Fields that are a mean over tokens, or follow from one."""
_GROWING = ("mean", "min", "max", *QUANTILES)
"""Fields that are lower bounds where each token is one: no token can grow and they shrink."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One limit: ``metric.field`` on one side, a number on the other.

    A ``relative`` limit is that many times the number of a baseline. ``of`` is the name of the one
    text that it is about, None for all.
    """

    text: str
    metric: str
    field: str
    operator: Operator
    limit: float
    relative: bool = False
    of: str | None = None

    def holds(self, value: float, limit: float) -> bool:
        """Whether a value is inside a limit."""
        return HOLDS[self.operator](value, limit)

    @property
    def is_upper(self) -> bool:
        """Whether the limit is the most that the number may be."""
        return self.operator in ("<=", "<")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """What became of a gate.

    ``reason`` says why it failed where the comparison does not, or why it is inconclusive.
    ``ci_low`` and ``ci_high`` are the interval that decided, None where the point estimate did, and
    ``more_tokens`` about how many more would decide an inconclusive gate. ``baseline`` is the
    number of the baseline that a relative limit is a multiple of.
    """

    gate: str
    value: float | None
    limit: float
    verdict: Verdict
    reason: str | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    more_tokens: int | None = None
    baseline: float | None = None


class Baseline(Protocol):
    """An earlier run that relative gates are held against."""

    def value(self, gate: Gate) -> float | None:
        """The number of the gate's metric in that run; None where it is not known."""
        ...

    def difference(
        self, gate: Gate, metric: Metric, confidence: float
    ) -> "tuple[float, float] | None":
        """The interval of (this run's number − ``gate.limit`` × the baseline's).

        ``metric`` is this run's, with its interval at that confidence.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How gates are judged.

    ``excluded`` tokens fail a gate unless ``allow_excluded``. The metrics among ``lower_bounds``
    are at least what was measured, and those among ``baseline_bounds`` were in the baseline. With a
    ``confidence`` intervals decide, which ``metrics`` must have at that level. ``tokens`` is how
    many were scored.
    """

    excluded: int
    allow_excluded: bool
    lower_bounds: Sequence[str] = ()
    baseline_bounds: Sequence[str] = ()
    confidence: float | None = None
    baseline: Baseline | None = None
    tokens: int = 0

    def about(self, counts: Mapping[str, int | None]) -> "Rules":
        """The same for the tokens of one text, by what was counted of it."""
        return replace(self, excluded=counts["excluded"] or 0, tokens=counts["tokens"] or 0)


def interval_fields(gate: Gate, metrics: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """The fields with the interval of a gate's number.

    Raises:
        UsageError: it has none.
    """
    if gate.relative and gate.field not in _MEANS:
        raise UsageError(
            f"--gate {gate.text!r}: with --gate-confidence only a mean, a value, or the net or "
            "volume of flips can be held against a baseline"
        )
    low, high = interval_of(gate)
    if low not in metrics[gate.metric]:
        raise UsageError(
            f"--gate {gate.text!r}: {gate.metric}.{gate.field} has no interval that a confidence "
            "could be held against; leave out --gate-confidence, or gate a mean or a quantile"
        )
    return low, high


def interval_of(gate: Gate) -> tuple[str, str]:
    """The names of the fields with the interval of a gate's number, where it has one."""
    name = "ci" if gate.field in ("mean", "value") else gate.field
    return f"{name}_low", f"{name}_high"


def judge(
    gates: Sequence[Gate],
    metrics: Mapping[str, Metric],
    rules: Rules,
) -> list[GateResult]:
    """Hold every gate against the metrics."""
    return [judge_one(gate, metrics, rules) for gate in gates]


def judge_one(gate: Gate, metrics: Mapping[str, Metric], rules: Rules) -> GateResult:
    """Hold a gate against the metrics of what it is about."""
    return _judge_one(gate, metrics[gate.metric], rules)


def overall(results: Sequence[GateResult]) -> Verdict | None:
    """One verdict of many: a failed gate beats an inconclusive one; None without gates."""
    verdicts = {result.verdict for result in results}
    for verdict in ("fail", "inconclusive", "pass"):
        if verdict in verdicts:
            return verdict
    return None


def _judge_one(gate: Gate, metric: Metric, rules: Rules) -> GateResult:
    limit = _limit_of(gate, rules.baseline)
    result = GateResult(
        gate=gate.text,
        value=metric.get(gate.field),
        limit=math.nan if limit is None else limit,
        verdict="fail",
        baseline=rules.baseline.value(gate) if gate.relative and rules.baseline else None,
    )
    if why := _unknown(gate, result.value, limit, rules.baseline) or _doubt(gate, rules, result):
        return replace(result, reason=why)
    assert result.value is not None
    if rules.confidence is None:
        holds = gate.holds(result.value, result.limit)
        return replace(result, verdict="pass" if holds else "fail")
    return _with_confidence(gate, metric, result, rules)


def _with_confidence(gate: Gate, metric: Metric, result: GateResult, rules: Rules) -> GateResult:
    """Three verdicts, by where the interval lies."""
    ends = _interval(gate, metric, result.limit, rules)
    if ends == (None, None):
        return replace(
            result, verdict="inconclusive", reason="the text is too short for an interval"
        )
    result = replace(result, ci_low=ends[0], ci_high=ends[1])
    low = -math.inf if ends[0] is None else ends[0]
    high = math.inf if ends[1] is None else ends[1]
    inside = [gate.holds(end, result.limit) for end in (low, high)]
    if all(inside):
        return replace(result, verdict="pass")
    assert result.value is not None
    if not any(inside) and not gate.holds(result.value, result.limit):
        return result
    more = _more_tokens(gate, result, (low, high), rules.tokens)
    return replace(
        result,
        verdict="inconclusive",
        more_tokens=more,
        reason="the limit lies inside the interval; "
        + (
            "more tokens are unlikely to decide it"
            if more is None
            else f"about {more:,} more tokens would decide"
        ),
    )


def _more_tokens(
    gate: Gate, result: GateResult, ends: tuple[float, float], tokens: int
) -> int | None:
    """How many more tokens shrink the interval to the limit: its width goes with 1/√tokens."""
    assert result.value is not None
    distance = abs(result.value - result.limit)
    half = _reach(gate, result.value, result.limit, ends)
    if distance == 0 or not math.isfinite(half / distance):
        return None
    return max(1, math.ceil(tokens * ((half / distance) ** 2 - 1)))


def _reach(gate: Gate, value: float, limit: float, ends: tuple[float, float]) -> float:
    """How far the interval reaches from its number to the side of the limit.

    An end of a mean that is the most or the least that this can be was cut off there, and only the
    other half tells how long the interval was.
    """
    halves, side = (value - ends[0], ends[1] - value), limit > value
    is_mean = gate.field in _MEANS
    was_cut = is_mean and ends[side] in BOUNDS.get(gate.metric, ())
    return max(halves) if was_cut else halves[side]


def _interval(
    gate: Gate, metric: Metric, limit: float, rules: Rules
) -> tuple[float | None, float | None]:
    if not gate.relative:
        low, high = interval_of(gate)
        return metric.get(low), metric.get(high)
    assert rules.baseline is not None
    assert rules.confidence is not None
    difference = rules.baseline.difference(gate, metric, rules.confidence)
    return (None, None) if difference is None else (limit + difference[0], limit + difference[1])


def _limit_of(gate: Gate, baseline: Baseline | None) -> float | None:
    if not gate.relative:
        return gate.limit
    value = baseline.value(gate) if baseline is not None else None
    return None if value is None else gate.limit * value


def _unknown(
    gate: Gate, value: float | None, limit: float | None, baseline: Baseline | None
) -> str | None:
    """Why a gate has nothing to compare."""
    name = f"{gate.metric}.{gate.field}"
    if value is None:
        return f"{name} is not known in this run"
    if limit is None:
        return f"{name} is not known in the baseline"
    if math.isnan(value):
        return f"{name} is not a number"
    if not math.isfinite(limit):
        given = baseline.value(gate) if baseline is not None else None
        return f"the limit is not finite ({limit:g}): {name} is {given:g} in the baseline"
    return None


def _doubt(gate: Gate, rules: Rules, result: GateResult) -> str | None:
    """Why a gate fails although its comparison is true, or although the truth may be otherwise."""
    assert result.value is not None
    holds = gate.holds(result.value, result.limit)
    if holds and rules.excluded and not rules.allow_excluded:
        return (
            f"{rules.excluded} tokens are excluded (NaN or +inf); --allow-excluded lets them pass"
        )
    return _open(gate, rules, holds=holds)


def _open(gate: Gate, rules: Rules, *, holds: bool) -> str | None:
    """Why lower bounds leave open on which side of its limit a number lies; None where they do not.

    A number that is a lower bound may be higher. A limit that is a multiple of one may be higher
    too, and where the multiple is negative it may be lower.
    """
    here = gate.metric in rules.lower_bounds
    there = gate.relative and gate.metric in rules.baseline_bounds and gate.limit != 0
    is_below = holds if gate.is_upper else not holds
    may_rise, may_sink = here or (there and gate.limit < 0), there and gate.limit > 0
    if gate.field in _GROWING and not (may_rise if is_below else may_sink):
        return None
    return why_open(gate, holds=holds, here=here, there=there) if here or there else None


def why_open(gate: Gate, *, holds: bool, here: bool = True, there: bool = False) -> str:
    """What cannot be shown, because the number is a lower bound ``here`` or in the baseline."""
    where = "this" if here else "it was in the baseline"
    also = ", and was so in the baseline" if here and there else ""
    if gate.field not in _GROWING:
        return f"{gate.metric} is only known to be at least {where}{also}: its {gate.field} is open"
    shown = "the limit cannot be shown to hold" if holds else "it may lie on the other side"
    return (
        f"{gate.metric} is only known to be at least {where}{also}: {shown}; compare whole "
        "distributions, not lists of top tokens"
    )
