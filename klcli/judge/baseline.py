"""An earlier run that a new one is held against: pair by pair where both hold the same tokens."""

import math
from dataclasses import dataclass, replace

import numpy as np

from klcli.errors import Notice, UsageError
from klcli.judge.clusters import LEVEL, Clusters, degrees_of_freedom
from klcli.judge.gate import Gate
from klcli.judge.intervals import Metric, mean_with_error
from klcli.judge.report import Report
from klcli.judge.statistics import BOUNDS
from klcli.judge.student import student_t
from klcli.measure.scores import TokenScores
from klcli.runs.folder import SavedRun
from klcli.storage.tables import windows_digest
from klcli.text.windows import WindowTable

_MANY = 10**6
"""Degrees of freedom with which t is normal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRun:
    """A run as it was saved: its report, and its tokens where it was saved as a folder."""

    name: str
    report: Report
    run: SavedRun | None

    def against(
        self, scores: TokenScores, table: WindowTable, clusters: Clusters
    ) -> "BaselineComparison":
        """The baseline, with the run that is held against it.

        Raises:
            UsageError: the two are of different commands.
        """
        command = "compare" if scores.paired else "perplexity"
        if self.report.command != command:
            raise UsageError(
                f"--baseline {self.name} is a run of klcli {self.report.command}, and this is "
                f"klcli {command}: give one of the same command"
            )
        others = None
        if self.run is not None and self.run.request["windows"] == windows_digest(table):
            others = self.run.evaluation().scores
        return BaselineComparison(baseline=self, scores=scores, others=others, clusters=clusters)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineComparison:
    """A ``Baseline`` for gates. ``others`` are its scores, None where tokens do not pair."""

    baseline: BaselineRun
    scores: TokenScores
    others: TokenScores | None
    clusters: Clusters

    def value(self, gate: Gate) -> float | None:
        """The baseline's number."""
        return self.baseline.report.metrics.get(gate.metric, {}).get(gate.field)

    def difference(
        self, gate: Gate, metric: Metric, confidence: float
    ) -> tuple[float, float] | None:
        """The interval of this run's number less the limit's share of the baseline's.

        Paired: of the mean of x_i - limit · y_i. Unpaired the two errors add up as squares.
        """
        clusters = replace(self.clusters, level=confidence)
        if self.others is None or gate.field != "mean":
            return self._unpaired(gate, metric, confidence)
        both = ~self.scores["excluded"] & ~self.others["excluded"]
        x = self.scores[gate.metric][both].astype(float)
        d = x - gate.limit * self.others[gate.metric][both].astype(float)
        if not len(d) or not np.isfinite(d).all():
            return None
        found = mean_with_error(d, clusters.among(both))
        return _ends(found["ci_low"], found["ci_high"])

    def notices(self) -> list[Notice]:
        """That the comparison is not paired, where it is not."""
        if self.others is not None:
            return []
        why = (
            "is a report and holds no tokens"
            if self.baseline.run is None
            else "was made on other tokens or windows"
        )
        return [
            Notice(
                code="unpaired_baseline",
                message=f"{self.baseline.name} {why}: relative gates are not paired token by "
                "token, and their intervals are wider; keep the baseline with --run",
            )
        ]

    def _unpaired(
        self, gate: Gate, metric: Metric, confidence: float
    ) -> tuple[float, float] | None:
        other = self.baseline.report.metrics[gate.metric]
        if gate.field not in ("mean", "value") or other.get("ci_low") is None:
            return None
        degrees = _degrees(self.baseline.report)
        usual = _quantile(LEVEL, degrees)
        own = _half(gate, metric, _quantile(confidence, self.clusters.degrees))
        theirs = _half(gate, other, usual)
        if own is None or theirs is None:
            return None
        distance = own[0] - gate.limit * theirs[0]
        widening = _quantile(confidence, degrees) / usual
        width = math.hypot(own[1], gate.limit * theirs[1] * widening)
        return distance - width, distance + width


def _degrees(report: Report) -> int:
    """The degrees of freedom of a report's intervals; very many where it tells of no clusters."""
    if not (count := report.clusters.get("count")):
        return _MANY
    neighbours = report.clusters.get("lag1_correlation") is not None
    return max(1, degrees_of_freedom(count, neighbours=neighbours))


def _quantile(confidence: float, degrees: int) -> float:
    """How many standard errors half of an interval is long."""
    return -student_t((1 - confidence) / 2, degrees)


def _half(gate: Gate, metric: Metric, errors: float) -> tuple[float, float] | None:
    """A number, and the longer half of its interval: the other may be cut off at a bound.

    Where both are cut off, half of the interval is so many standard ``errors``.
    """
    low, value, high = metric["ci_low"], metric[gate.field], metric["ci_high"]
    if low is None or value is None or high is None:
        return None
    half = max(high - value, value - low)
    if (low, high) == BOUNDS.get(gate.metric):
        half = max(half, errors * (metric["se"] or 0.0))
    return value, half


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)
