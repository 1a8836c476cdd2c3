"""Which tokens stand together: the clusters over which all errors are taken.

Tokens of one text are not independent. Where there are many documents each is a cluster; a long
document is cut into runs of consecutive windows. Neighbours may still correlate: paragraphs and
lines are documents too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.measure.scores import blocks

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]

LEVEL = 0.95
"""How sure an interval is where nothing else is asked for."""
DOCUMENTS_ENOUGH = 20
MOST_RUNS = 32
COSINES_BELOW = 30
"""With fewer clusters that follow on each other, errors are taken by cosines as well."""


def cluster_windows(document: Ints) -> Ints:
    """The cluster of every window of a corpus, from 0 on, by the document of each, in order.

    Documents where there are at least 20; otherwise runs of consecutive windows of a document, at
    most about 32 in all: single windows of one text correlate with their neighbours.
    """
    begins = np.flatnonzero(np.diff(document, prepend=-1))
    counts = np.diff(np.append(begins, len(document)))
    if len(begins) >= DOCUMENTS_ENOUGH:
        return np.repeat(np.arange(len(begins)), counts)
    length = max(1, math.ceil(len(document) / MOST_RUNS))
    place = np.arange(len(document)) - np.repeat(begins, counts)
    starts_cluster = place % length == 0
    return np.cumsum(starts_cluster) - 1


def follow(cluster: Ints, corpus: Ints) -> Bools:
    """Whether each cluster follows on one of the same corpus.

    ``cluster`` and ``corpus`` have one number a window, in order.
    """
    first = np.flatnonzero(np.diff(cluster, prepend=-1))
    same: Bools = np.diff(corpus[first], prepend=-1) == 0
    return same


def degrees_of_freedom(clusters: int, *, neighbours: bool) -> int:
    """Degrees of freedom of an error over G clusters: G - 1.

    Half of that where clusters follow on each other: the covariance of neighbours is estimated too,
    and costs about that much (bench/interval_coverage.py simulates the coverage).
    """
    free = clusters - 1
    return max(1, free // 2) if neighbours else free


def cosine_degrees(clusters: int, *, neighbours: bool) -> int | None:
    """Degrees of freedom of an error by cosines, their number; None where it is not taken.

    A fifth of the clusters, from 3 to 8, and fewer than there are clusters.
    """
    if not neighbours or not 1 < clusters < COSINES_BELOW:
        return None
    return min(clusters - 1, max(3, min(8, clusters // 5)))


@dataclass(frozen=True)
class Clusters:
    """How many tokens each cluster has, in their order, and whether it ``follows`` on the last one.

    ``level`` is how sure intervals over them shall be.

    Clusters of different corpora do not, and are taken as independent.
    """

    sizes: Ints
    follows: Bools
    level: float = LEVEL

    def among(self, chosen: Bools) -> "Clusters":
        """The clusters of some of the tokens."""
        return replace(self, sizes=self.counts(chosen))

    def __len__(self) -> int:
        """How many clusters have a token."""
        return int((self.sizes > 0).sum())

    @cached_property
    def tokens(self) -> int:
        """How many tokens there are."""
        return int(self.sizes.sum())

    @cached_property
    def has_neighbours(self) -> bool:
        """Whether some cluster follows on another."""
        return bool(self._pairs.any())

    @cached_property
    def _pairs(self) -> Bools:
        """Whether each cluster but the first follows on the one before it, and both have tokens."""
        present = self.sizes > 0
        return present[1:] & present[:-1] & self.follows[1:]

    @property
    def degrees(self) -> int:
        """Degrees of freedom of an error over these clusters."""
        return degrees_of_freedom(len(self), neighbours=self.has_neighbours)

    def sums(self, x: npt.NDArray[Any], shift: float = 0.0) -> Floats:
        """The sum of ``x - shift`` (one a token) over each cluster."""
        return self._added_up(x, lambda part: part - shift)

    def counts(self, chosen: Bools) -> Ints:
        """How many of the ``chosen`` tokens each cluster has."""
        return self._added_up(chosen, lambda part: part).astype(np.int64)

    def _added_up(
        self, x: npt.NDArray[Any], term: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    ) -> Floats:
        """The sum of ``term`` of ``x`` over each cluster, in blocks: ``x`` may be long."""
        ends, found = np.cumsum(self.sizes), np.zeros(len(self.sizes))
        for start, stop in blocks(len(x)):
            first = int(np.searchsorted(ends, start, side="right"))
            last = int(np.searchsorted(ends, stop, side="left")) + 1
            begins = np.maximum(ends[first:last] - self.sizes[first:last], start) - start
            own = np.flatnonzero(self.sizes[first:last]) + first
            part = term(x[start:stop]).astype(np.float64)
            found[own] += np.add.reduceat(part, begins[own - first])
        return found

    def variance(self, sums: Floats) -> float:
        """The variance of a total, by the sums s_g of its residuals over each cluster.

        G/(G-1) · Σ s_g² (CR1; Cameron and Miller 2015), and where clusters follow on each other
        2 · Σ s_g·s_(g+1) more, if that is positive (Newey and West 1987 with one lag, untapered).
        That residuals add up to 0 makes each product -Σ s_g²/G² by itself, which is taken back.
        """
        g, own = len(self), float((sums**2).sum())
        pairs = self._pairs
        neighbours = float((sums[1:] * sums[:-1])[pairs].sum()) + int(pairs.sum()) * own / g**2
        return g / (g - 1) * (own + 2 * max(neighbours, 0.0))

    def variance_by_cosines(self, sums: Floats) -> tuple[float, int] | None:
        """The variance of a total by equal-weighted cosines, and its degrees of freedom.

        G times the mean square of the projections of the sums s_g on sqrt(2/G)·cos(πj(g - 1/2)/G),
        j = 1 … ν: what varies slowly, whichever lags correlate (Lazarus, Lewis, Stock and Watson
        2018). None where it is not taken: see ``cosine_degrees``.
        """
        g = len(self)
        count = cosine_degrees(g, neighbours=self.has_neighbours)
        if count is None:
            return None
        waves = np.outer(np.arange(1, count + 1), np.arange(g) + 0.5) * (math.pi / g)
        projections = math.sqrt(2 / g) * np.cos(waves) @ sums[self.sizes > 0]
        return g * float((projections**2).mean()), count

    def lag1_correlation(self, sums: Floats) -> float | None:
        """How the means over clusters, by their sums, correlate with those that they follow.

        None where no cluster follows on another, or all means are alike.
        """
        if not self.has_neighbours:
            return None
        present = self.sizes > 0
        means = sums / np.maximum(self.sizes, 1)
        deviations = np.where(present, means - means[present].mean(), 0.0)
        spread = float((deviations**2).mean()) * len(present) / len(self)
        together = float((deviations[1:] * deviations[:-1])[self._pairs].mean())
        return together / spread if spread > 0 else None
