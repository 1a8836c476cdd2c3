"""The 95 % intervals hold the truth about as often as they say: see ``interval_coverage.py``."""

import math
import runpy
from pathlib import Path
from typing import Any

import pytest

SIMULATION = runpy.run_path(str(Path(__file__).with_name("interval_coverage.py")))
REQUIRED = [design for design in SIMULATION["designs"]() if design.required]


def named(design: Any) -> str:
    return f"{design.pieces} {design.layout}, correlation {design.correlation}"


def coverage_of_mean(design: Any, replicates: int) -> float:
    return float(SIMULATION["coverage"](design, replicates, seed=7)[0])


@pytest.mark.parametrize("design", [d for d in REQUIRED if d.pieces == 50], ids=named)
def test_intervals_of_means_hold_the_truth(design: Any) -> None:
    replicates = 500
    slack = 2 * math.sqrt(0.95 * 0.05 / replicates)
    assert 0.93 - slack < coverage_of_mean(design, replicates) < 0.97 + slack


@pytest.mark.slow
@pytest.mark.parametrize("design", REQUIRED, ids=named)
def test_intervals_of_means_hold_the_truth_in_93_to_97_percent(design: Any) -> None:
    assert 0.93 <= coverage_of_mean(design, 10_000) <= 0.97
