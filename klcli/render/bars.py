"""Pictures made of characters: a histogram and a line, a cell a column."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from klcli.judge.report import Along, Distribution
from klcli.render.alphabet import Alphabet

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = ".:-=+*#%@"
"""The same for an encoding without blocks, from little ink to much."""

_STEPS = (1, 2, 5, 10, 20, 50, 100)
"""How many bins may be one column: decades then begin with a column."""


class Folded(NamedTuple):
    """Bins from the first to the last that hold a token, ``counts`` in each between two edges."""

    low: float
    high: float
    counts: Sequence[int]


def bars(heights: Sequence[float | None], alphabet: Alphabet) -> str:
    """A column for each height, from 0 to the largest; a blank where it is None."""
    levels = _BLOCKS if alphabet.has(_BLOCKS) else _ASCII
    known = [x for x in heights if x is not None and math.isfinite(x)]
    return "".join(_column(x, max(known, default=0.0), levels) for x in heights)


def _column(x: float | None, most: float, levels: str) -> str:
    if x is None or math.isnan(x):
        return " "
    if x <= 0 or most <= 0:
        return levels[0]
    return levels[min(math.ceil(min(x / most, 1.0) * len(levels)), len(levels)) - 1]


def histogram(distribution: Distribution, width: int, alphabet: Alphabet) -> str:
    """The distribution with the ends of its log axis, in at most ``width`` cells if that can be.

    Empty where no token lies within the bins.
    """
    if not any(distribution.counts):
        return ""
    ends = len("1e-08  1e-08 (log)")
    folded = fold(distribution, max(width - ends, 1))
    drawn = bars([count or None for count in folded.counts], alphabet)
    return f"{folded.low:.2g} {drawn} {folded.high:.2g} (log)"


def fold(distribution: Distribution, columns: int) -> Folded:
    """The bins in at most so many columns, each of as many bins."""
    counts, edges = distribution.counts, distribution.edges
    filled = [number for number, count in enumerate(counts) if count]
    for step in _STEPS:
        first, last = filled[0] // step, filled[-1] // step
        if last - first < columns:
            break
    starts = range(first * step, (last + 1) * step, step)
    return Folded(
        low=edges[starts[0]],
        high=edges[min(starts[-1] + step, len(counts))],
        counts=[sum(counts[start : start + step]) for start in starts],
    )


def line(along: Along, width: int, alphabet: Alphabet) -> str:
    """The means along the text, from 0 up, in at most ``width`` cells."""
    step = math.ceil(len(along.means) / max(width, 1))
    parts = [along.means[start : start + step] for start in range(0, len(along.means), step)]
    return bars([_mean(part) for part in parts], alphabet)


def _mean(parts: Sequence[float | None]) -> float | None:
    """The mean of equal parts of the text, those that are known."""
    known = [mean for mean in parts if mean is not None]
    return sum(known) / len(known) if known else None
