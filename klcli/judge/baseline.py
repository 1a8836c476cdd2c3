"""An earlier run that a new one is held against: pair by pair where both hold the same tokens."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from klcli.errors import Notice, UsageError
from klcli.judge.clusters import LEVEL, Clusters, cosine_degrees, degrees_of_freedom
from klcli.judge.gate import Gate, interval_of
from klcli.judge.intervals import Metric, mean_with_error
from klcli.judge.metrics import BOUNDS
from klcli.judge.one_text import text_of
from klcli.judge.report import Command, Report
from klcli.judge.student import student_t
from klcli.judge.token_means import token_mean
from klcli.measure.scores import TokenScores
from klcli.runs.folder import SavedRun
from klcli.storage.tables import windows_digest
from klcli.text.windows import WindowTable


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRun:
    """A run as it was saved: its report, and its tokens where it was saved as a folder."""

    name: str
    report: Report
    run: SavedRun | None

    def check_command(self, command: Command) -> None:
        """Hold the command that the run is of against the one that it is a baseline for.

        Raises:
            UsageError: they are not the same.
        """
        if self.report.command != command:
            raise UsageError(
                f"--baseline {self.name} is a run of klcli {self.report.command}, and this is "
                f"klcli {command}: give one of the same command"
            )

    def against(
        self, scores: TokenScores, table: WindowTable, clusters: Clusters
    ) -> "BaselineComparison":
        """The baseline, with the run that is held against it.

        Raises:
            UsageError: the two are of different commands.
        """
        self.check_command("compare" if scores.paired else "perplexity")
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
        """The baseline's number; that of the same text for a gate on one."""
        try:
            text = text_of(self.baseline.report, gate)
        except UsageError:  # there is no such text
            return None
        return text.metrics.get(gate.metric, {}).get(gate.field)

    def difference(
        self, gate: Gate, metric: Metric, confidence: float
    ) -> tuple[float, float] | None:
        """The interval of this run's number less the limit's share of the baseline's.

        Paired: by what each token gives to it. Unpaired the two errors add up as squares.
        """
        number = token_mean(gate.metric, gate.field)
        if self.others is None or (number.scale != "plain" and gate.limit <= 0):
            return self._unpaired(gate, metric, confidence)
        pairs = number.differences(self.scores, self.others, gate.limit)
        if pairs is None:
            return None
        own = _interval(gate, metric)
        if pairs.same and own is not None:  # so many times itself: as sure as it is
            low, high = sorted((1 - gate.limit) * end for end in own)
            return low, high
        clusters = replace(self.clusters, level=confidence).among(pairs.of)
        found = mean_with_error(pairs.d, clusters)
        if found["ci_low"] is None or found["ci_high"] is None:
            return None
        limit = gate.limit * (self.value(gate) or 0.0)
        low, high = (
            number.from_limit(end, limit, gate.limit) for end in (found["ci_low"], found["ci_high"])
        )
        return low, high

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
        """The interval of the difference of two runs whose tokens do not pair.

        Perplexities are held against each other by their logarithms, as their intervals are made.
        """
        number, report = token_mean(gate.metric, gate.field), self.baseline.report
        is_ratio = number.scale == "exp" and gate.limit > 0
        widening = _widening(report.clusters, confidence)
        own = _half(gate, metric, self.clusters.degrees, confidence, logarithm=is_ratio)
        degrees = _degrees(report.clusters)[0]
        theirs = _half(gate, report.metrics[gate.metric], degrees, LEVEL, logarithm=is_ratio)
        if own is None or theirs is None or widening is None:
            return None
        times = 1.0 if is_ratio else gate.limit
        middle = own[0] - times * theirs[0]
        width = math.hypot(own[1], times * theirs[1] * widening)
        low, high = middle - width, middle + width
        if is_ratio:
            limit = gate.limit * math.exp(theirs[0])
            low, high = (number.from_limit(end, limit, gate.limit) for end in (low, high))
        return low, high


def _interval(gate: Gate, metric: Metric) -> tuple[float, float] | None:
    """The interval of a gate's number, where both ends are known."""
    low, high = (metric.get(name) for name in interval_of(gate))
    return None if low is None or high is None else (low, high)


def _degrees(clusters: Mapping[str, Any]) -> list[int]:
    """The degrees of freedom of a report's errors: by clusters, and by cosines where there are any.

    A report that does not say whether clusters follow on each other has fewer: most do.
    """
    count, neighbours = clusters.get("count") or 0, bool(clusters.get("neighbours", True))
    by_cosines = cosine_degrees(count, neighbours=neighbours)
    by_clusters = degrees_of_freedom(count, neighbours=neighbours)
    return [by_clusters] if by_cosines is None else [by_clusters, by_cosines]


def _widening(clusters: Mapping[str, Any], confidence: float) -> float | None:
    """How much longer an interval of a report is at another confidence, by Student's t.

    By whichever error the interval was made of, and at most so much. None where the report tells of
    no clusters.
    """
    if confidence == LEVEL:
        return 1.0
    if not clusters.get("count"):
        return None
    tails = (1 - confidence) / 2, (1 - LEVEL) / 2
    return max(student_t(tails[0], d) / student_t(tails[1], d) for d in _degrees(clusters))


def _half(
    gate: Gate, metric: Metric, degrees: int, confidence: float, *, logarithm: bool
) -> tuple[float, float] | None:
    """A number, and the longer half of its interval: the other may be cut off at a bound.

    Where both are cut off, half of the interval is that of the standard error.
    """
    ends, value = _interval(gate, metric), metric.get(gate.field)
    if ends is None or value is None:
        return None
    low, high = ends
    if logarithm:
        low, value, high = math.log(low), math.log(value), math.log(high)
    half = max(high - value, value - low)
    if (low, high) == BOUNDS.get(gate.metric):
        if (error := metric.get("se")) is None:
            return None
        half = max(half, -student_t((1 - confidence) / 2, degrees) * error)
    return (value, half) if math.isfinite(value) and math.isfinite(half) else None
