"""Ending a run early: when every gate is decided, or a number is known well enough."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from klcli.errors import UsageError
from klcli.judge.gate import Gate, GateResult, why_open
from klcli.judge.metrics import BOUNDS
from klcli.judge.sequential import Band, Drawn, decide
from klcli.measure.gathered import ScoredBatch
from klcli.text.windows import WindowTable

MEANS = ("kl", "kl_reverse", "jsd", "tv", "overlap_5", "top1_agreement", "nll_reference",
         "nll_candidate", "nll", "entropy_reference", "entropy_candidate", "entropy")  # fmt: skip
"""Metrics of which part of a text can tell: means of tokens that count 0 at least."""

_PRECISION = re.compile(r"\s*(\w+)(?:\.mean)?\s*(?:±|\+-)\s*(\S+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A number that shall be known to within a distance: ``kl.mean±0.001``."""

    metric: str
    distance: float


Goal = str | Precision
"""What ends a run early: "decided", when every gate is, or a number that is known well enough."""


@dataclass(slots=True)
class Until:
    """Watches a run, and says when it may end. It is a ``Watch`` of ``evaluate``.

    Args:
        goal: "decided", or a precision.
        gates: those that "decided" speaks of; they share ``alpha`` equally.
        alpha: the probability of a wrong decision.
        kl_bound: the most nats that a token's KL can be, where the user knows such a bound.
        lower_bounds: metrics that are only known to be at least what is measured: that one is below
            a limit cannot be shown, and a gate that this leaves open fails.
        table: the text, all of its windows.
    """

    goal: Goal
    gates: Sequence[Gate]
    alpha: float
    kl_bound: float | None
    table: WindowTable
    lower_bounds: Sequence[str] = ()
    excluded: int = field(init=False, default=0)
    drawn: dict[str, Drawn] = field(init=False)

    def __post_init__(self) -> None:
        metrics = {gate.metric for gate in self.gates} if self.goal == "decided" else set()
        if isinstance(self.goal, Precision):
            metrics = {self.goal.metric}
        self.drawn = {metric: self._start(metric) for metric in metrics}

    def __call__(self, windows: Sequence[int], batch: ScoredBatch) -> bool:
        """Take the windows of one batch; True when nothing is open any more.

        Raises:
            UsageError: a token has more KL than ``kl_bound``.
        """
        self.excluded += int(batch.columns["excluded"].sum())
        self._check_bound(batch)
        ends = np.cumsum([len(self.table.windows[number].targets) for number in windows])
        for metric, drawn in self.drawn.items():
            for part in np.split(_per_token(metric, batch), ends[:-1]):
                drawn.add(float(part.sum()), len(part))
        return self.is_over()

    def is_over(self) -> bool:
        """Whether everything is decided, or known well enough."""
        if self.excluded and self.goal == "decided":
            return True
        if isinstance(self.goal, Precision):
            band = self.band(self.goal.metric)
            return (band.high - band.low) / 2 <= self.goal.distance
        return all(self.decision(gate) is not None for gate in self.gates)

    def decision(self, gate: Gate) -> bool | None:
        """Whether a gate is known to hold, or not to; None while that is open."""
        if self.excluded:
            return False
        decided = decide(self.band(gate.metric), gate.operator, gate.limit)
        return False if self._is_never_shown(gate, decided) else decided

    def _is_never_shown(self, gate: Gate, decided: bool | None) -> bool:
        """Whether a gate can never pass, as a limit above a lower bound cannot."""
        return gate.metric in self.lower_bounds and gate.operator == "<=" and decided is not False

    def band(self, metric: str) -> Band:
        """What is known of a metric's mean over the whole text."""
        shares = len(self.gates) if self.goal == "decided" else 1
        return self.drawn[metric].band(self.alpha / max(1, shares))

    def results(self) -> list[GateResult]:
        """The verdicts on the gates, as far as they are decided."""
        words = {True: "pass", False: "fail", None: "inconclusive"}
        found = []
        for gate in self.gates:
            band = self.band(gate.metric)
            drawn = self.drawn[gate.metric]
            found.append(
                GateResult(
                    gate=gate.text,
                    value=sum(drawn.sums) / drawn.seen if drawn.seen else None,
                    limit=gate.limit,
                    verdict=words[self.decision(gate)],  # type: ignore[arg-type]
                    ci_low=_finite(band.low),
                    ci_high=_finite(band.high),
                    reason=self._reason(gate),
                )
            )
        return found

    def _reason(self, gate: Gate) -> str | None:
        if self.excluded:
            return "tokens are excluded (NaN or +inf), and no mean over the text can be known"
        if gate.metric not in self.lower_bounds:
            return None
        decided = decide(self.band(gate.metric), gate.operator, gate.limit)
        if self._is_never_shown(gate, decided):
            return why_open(gate, holds=True)
        return why_open(gate, holds=False) if decided is False and gate.operator == ">=" else None

    def _check_bound(self, batch: ScoredBatch) -> None:
        if self.kl_bound is None or "kl" not in self.drawn:
            return
        largest = float(np.nanmax(batch.columns["kl"], initial=0.0))
        if largest > self.kl_bound:
            raise UsageError(
                f"--kl-bound {self.kl_bound:g}: a token has a KL of {largest:.4g}; give a bound "
                "that holds, or none"
            )

    def summary(self) -> dict[str, Any]:
        """What the report says: how much of the text was needed, and by which method."""
        first = next(iter(self.drawn.values()))
        bands = {metric: self.band(metric) for metric in self.drawn}
        return {
            "goal": self.goal
            if isinstance(self.goal, str)
            else f"{self.goal.metric}.mean±{self.goal.distance:g}",
            "reached": self.is_over(),
            "windows": len(first.sums),
            "windows_in_all": first.windows,
            "tokens": first.seen,
            "tokens_in_all": first.tokens,
            "confidence": 1 - self.alpha,
            "bands": {
                metric: {"low": _finite(b.low), "high": _finite(b.high), "method": b.method}
                for metric, b in bands.items()
            },
        }

    def _start(self, metric: str) -> Drawn:
        sizes = self.table.window_tokens
        upper = BOUNDS[metric][1]
        if self.kl_bound is not None and metric == "kl":
            upper = self.kl_bound
        return Drawn(windows=len(sizes), tokens=sum(sizes), largest=max(sizes), upper=upper)


def parse_until(text: str, gates: Sequence[Gate], *, known: Mapping[str, Any]) -> Goal:
    """Parse ``decided`` or ``kl.mean±0.001``; ``known`` are the metrics of the command.

    Raises:
        UsageError: it is neither, there is no gate to decide, or a gate is about something that
            cannot be known from part of a text.
    """
    if text == "decided":
        if not gates:
            raise UsageError("--until decided: there is nothing to decide; give a --gate")
        for gate in gates:
            if gate.relative or gate.field not in ("mean", "value") or gate.metric not in MEANS:
                raise UsageError(
                    f"--until decided: {gate.text!r} cannot be decided from part of the text; gate "
                    f"one of {', '.join(m for m in known if m in MEANS)}, against a number"
                )
        return text
    match = _PRECISION.fullmatch(text)
    try:
        distance = float(match[2]) if match else math.nan
    except ValueError:
        distance = math.nan
    if (
        match is None
        or not 0 < distance < math.inf
        or match[1] not in known
        or match[1] not in MEANS
    ):
        raise UsageError(
            f"--until {text!r}: give 'decided', or a mean and a distance as in 'kl.mean±0.001' (or "
            "'kl.mean+-0.001')"
        )
    return Precision(metric=match[1], distance=distance)


def _per_token(metric: str, batch: ScoredBatch) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A metric of every token of a batch; a token that was excluded makes the sum NaN."""
    if metric == "top1_agreement":
        same = batch.columns["top1_reference"] == batch.columns["top1_candidate"]
        return np.where(batch.columns["excluded"], np.nan, same)
    return batch.columns[metric].astype(np.float64)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
