"""Relative gates against a report, whose tokens are not known: both errors add up as squares."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from klcli.judge.baseline import BaselineComparison, BaselineRun
from klcli.judge.clusters import COSINES_BELOW, LEVEL, Clusters
from klcli.judge.gate import parse_gate
from klcli.judge.intervals import Metric
from klcli.judge.metrics import BOUNDS, COMPARE_METRICS
from klcli.judge.report import Report
from klcli.judge.statistics import mean_metric
from klcli.measure.scores import TokenScores

Floats = npt.NDArray[np.float64]


def pieces(count: int, *, follow: bool = False, level: float = LEVEL) -> Clusters:
    """Clusters of 40 tokens, one after the other in a text, or documents."""
    return Clusters(np.full(count, 40), np.arange(count) > (0 if follow else count), level)


def tokens(count: int, seed: int, mean: float = 1.0) -> Floats:
    return mean * np.random.default_rng(seed).lognormal(size=40 * count)


def report_of(metric: str, found: Metric, clusters: dict[str, Any]) -> Report:
    return Report(
        command="compare",
        signature="",
        models={},
        protocol={},
        environment={},
        counts={},
        clusters=clusters,
        metrics={metric: found},
    )


def difference(
    text: str, own: Metric, clusters: Clusters, report: Report
) -> tuple[float, float] | None:
    held = BaselineComparison(
        baseline=BaselineRun(name="base.json", report=report, run=None),
        scores=TokenScores({}),
        others=None,
        clusters=clusters,
    )
    return held.difference(parse_gate(text, COMPARE_METRICS), own, clusters.level)


def half(metric: Metric) -> float:
    assert metric["ci_high"] is not None
    assert metric["mean"] is not None
    return metric["ci_high"] - metric["mean"]


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99, 0.99999])
@pytest.mark.parametrize("count", [2, 4, 30])
@pytest.mark.parametrize("follow", [False, True])
def test_the_interval_of_a_report_grows_to_that_of_another_confidence(
    level: float, count: int, follow: bool
) -> None:
    own, theirs = pieces(25, level=level), pieces(count, follow=follow)
    x, y = tokens(25, 0), tokens(count, 1, mean=3)
    correlation = theirs.lag1_correlation(theirs.sums(y))
    assert (correlation is None) is not follow
    told = {"count": count, "neighbours": follow, "lag1_correlation": correlation}
    report = report_of("kl", mean_metric(y, theirs), told)
    mine, surer = mean_metric(x, own), mean_metric(y, replace(theirs, level=level))
    expected = math.hypot(half(mine), 2 * half(surer))
    middle = float(x.mean() - 2 * y.mean())
    found = difference("kl<=2*baseline", mine, own, report)
    assert found is not None
    assert sum(found) / 2 == pytest.approx(middle)
    reach = (found[1] - found[0]) / 2
    if follow and count < COSINES_BELOW:  # which of two errors made the interval is not told
        assert reach >= expected * (1 - 1e-9)
    else:
        assert reach == pytest.approx(expected)


def test_a_report_that_tells_of_no_clusters_has_intervals_of_its_own_level_only() -> None:
    own, theirs = pieces(25), pieces(30)
    mine, their = mean_metric(tokens(25, 0), own), mean_metric(tokens(30, 1), theirs)
    report = report_of("kl", their, {})
    found = difference("kl<=baseline", mine, own, report)
    assert found is not None
    assert found[1] - found[0] == pytest.approx(2 * math.hypot(half(mine), half(their)))
    assert difference("kl<=baseline", mine, replace(own, level=0.99), report) is None


@pytest.mark.parametrize("level", [0.95, 0.999])
@pytest.mark.parametrize("count", [2, 3, 30])
def test_an_interval_that_is_cut_off_at_a_bound_makes_no_difference(
    count: int, level: float
) -> None:
    """The halves that count are those that the intervals have without any bounds."""
    own, theirs = pieces(count, level=level), pieces(count)
    x, y = (np.repeat(seed % 2, 40 * count) * 1.0 for seed in (0, 1))
    x[:60], y[:60] = 0.9, 0.05
    told = {"count": count, "neighbours": False}

    def found(bounds: tuple[float, float]) -> tuple[float, float] | None:
        their = mean_metric(y, theirs, bounds)
        mine = mean_metric(x, own, bounds)
        return difference("overlap_5>=baseline", mine, own, report_of("overlap_5", their, told))

    cut, free = found(BOUNDS["overlap_5"]), found((-math.inf, math.inf))
    assert cut == pytest.approx(free)
