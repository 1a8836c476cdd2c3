"""Times and peaks as ratios of one run, for absolute times of a shared machine mean little."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
KLCLI = (sys.executable, "-m", "klcli")
MEGABYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure: what it is, its value, and the most it should be.

    ``spread`` has the smallest and the largest value of single rounds. With ``at_least`` the goal
    is the least it should be. Without a goal it is there to read the others by.
    """

    measure: str
    value: float
    spread: tuple[float, float]
    goal: float | None
    unit: str = "×"
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is as it should be; None without a goal."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def wanted(self) -> str:
        """The goal in words."""
        return "" if self.goal is None else f"{'≥' if self.at_least else '≤'} {self.goal:g}"


def figure(measure: str, values: Sequence[float], goal: float | None, **more: Any) -> Figure:
    """The median of the values of single rounds."""
    spread = (min(values), max(values))
    return Figure(
        measure=measure, value=statistics.median(values), spread=spread, goal=goal, **more
    )


def ratio(
    measure: str,
    job: Callable[[], object],
    baseline: Callable[[], object],
    *,
    goal: float | None,
    rounds: int = 5,
) -> Figure:
    """How many times as long as ``baseline`` a ``job`` takes: the median over rounds."""
    times = in_turns(rounds, lambda: seconds(job), lambda: seconds(baseline))
    return figure(measure, [taken / bare for taken, bare in times], goal)


def in_turns(rounds: int, *takes: Callable[[], float], warm_up: bool = True) -> list[list[float]]:
    """What several kinds of measurement give in each of some rounds.

    They take turns, forwards and backwards, so that what else the machine does falls on all. With
    ``warm_up`` each is taken once before, for nothing.
    """
    found: list[list[float]] = []
    for turn in range(-1 if warm_up else 0, rounds):
        order = reversed(range(len(takes))) if turn % 2 else range(len(takes))
        values = {number: takes[number]() for number in order}
        found.append([values[number] for number in range(len(takes))])
    return found[-rounds:]


def seconds(job: Callable[[], object]) -> float:
    """How long a job takes."""
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that has ended: how long it took, its peak memory in bytes, its output."""

    seconds: float
    peak: int
    output: str


def run_process(*command: str | Path, **environment: str) -> Finished:
    """Run a command to its end, with as many threads as this process uses.

    A small process starts it and waits for it: the peak of a child begins with that of its parent.

    Raises:
        RuntimeError: it failed.
    """
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory(prefix="klcli-bench-") as folder:
        found = Path(folder) / "found.json"
        done = subprocess.run(
            [sys.executable, "-IS", HERE / "launch.py", found, *map(str, command)],
            env=os.environ | threads | environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
        usage: Mapping[str, Any] = json.loads(found.read_text())
    return Finished(usage["seconds"], usage["peak"], done.stdout)
