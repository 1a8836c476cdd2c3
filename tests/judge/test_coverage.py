"""95 % intervals hold the truth about as often as they say: see ``bench/interval_coverage.py``."""

import math

import pytest

from bench.interval_coverage import Design, coverage, designs

REQUIRED = [design for design in designs() if design.required]


def named(design: Design) -> str:
    return f"{design.pieces} {design.layout}, correlation {design.correlation}"


def coverage_of_mean(design: Design, replicates: int) -> float:
    return float(coverage(design, replicates, seed=7)[0])


@pytest.mark.parametrize("design", [d for d in REQUIRED if d.pieces == 50], ids=named)
def test_intervals_of_means_hold_the_truth(design: Design) -> None:
    replicates = 500
    slack = 2 * math.sqrt(0.95 * 0.05 / replicates)
    assert 0.93 - slack < coverage_of_mean(design, replicates) < 0.98 + slack


@pytest.mark.slow
@pytest.mark.parametrize("design", REQUIRED, ids=named)
def test_intervals_of_means_hold_the_truth_in_93_to_98_percent(design: Design) -> None:
    assert 0.93 <= coverage_of_mean(design, 10_000) <= 0.98
