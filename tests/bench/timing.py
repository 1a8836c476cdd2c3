"""Times as ratios of one run, for absolute times of a shared machine mean little."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure: what it is, its value, and the most it should be.

    ``spread`` has the smallest and the largest value of single rounds.
    """

    measure: str
    value: float
    spread: tuple[float, float]
    goal: float | None
    unit: str = "×"


def ratio(
    measure: str,
    job: Callable[[], object],
    baseline: Callable[[], object],
    *,
    goal: float | None,
    rounds: int = 3,
) -> Figure:
    """How many times as long as ``baseline`` a ``job`` takes: the median over rounds.

    The two take turns, so that what else the machine does falls on both; each runs once unmeasured.
    """
    job()
    baseline()
    ratios = [seconds(job) / seconds(baseline) for _ in range(rounds)]
    return Figure(
        measure=measure,
        value=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        goal=goal,
    )


def seconds(job: Callable[[], object]) -> float:
    """How long a job takes."""
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin
