"""Which tokens stand out.

A KL of 0.1 nats is nothing where the reference is unsure and much where it is certain, and what is
usual differs from run to run, so there is no fixed limit: a token is held against its like.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from klcli.measure.scores import CONFIDENCE_EDGES, TokenScores

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

THRESHOLD = 3.5
SMALLEST_BIN = 20
NORMAL_MAD = 1.4826
"""Makes the median absolute deviation of a normal distribution its standard deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BinScale:
    """What is usual for ln(KL + 1e-9) among the tokens of one bin.

    Beyond ``limit`` a token is flagged, where ``deviation`` is not known because most are alike.
    """

    median: float
    deviation: float | None
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierScale:
    """How far tokens stand out: the scale of each bin, and the bin that each has joined."""

    bins: Mapping[int, BinScale]
    joined: npt.NDArray[np.int8]

    def rate(self, scores: TokenScores) -> tuple[Floats, Bools]:
        """The robust z of each token among its like (NaN where they are alike), and the flagged."""
        x, bin_of = _logarithm(scores), _bins(scores, self.joined)
        score, flagged = np.full(len(x), np.nan), np.zeros(len(x), dtype=np.bool_)
        for one, scale in self.bins.items():
            inside = bin_of == one
            if scale.deviation is None:
                flagged[inside] = x[inside] > scale.limit
            else:
                score[inside] = (x[inside] - scale.median) / scale.deviation
                flagged[inside] = score[inside] > THRESHOLD
        return score, flagged


class Rated(NamedTuple):
    """A token that is shown: its row, its robust z, and whether it is flagged."""

    row: int
    score: float
    flagged: bool


def fit(scores: TokenScores) -> OutlierScale:
    """Find what is usual in each bin of the reference's largest probability.

    z = (x - median) / (1.4826 · MAD); flagged above 3.5. Where the MAD is 0 those above the bin's
    99th percentile are flagged instead. A bin with fewer than 20 tokens joins its neighbour.
    """
    everywhere = np.arange(len(CONFIDENCE_EDGES) + 1, dtype=np.int8)
    counts = np.zeros(len(everywhere), dtype=np.int64)
    for _, part in scores.blocks():
        bins = _bins(part, everywhere)
        counts += np.bincount(bins[bins >= 0], minlength=len(counts))
    joined = _join_small_bins(counts)
    present = np.unique(joined[counts > 0]).tolist()
    return OutlierScale(bins={one: _scale(scores, joined, one) for one in present}, joined=joined)


def find(scores: TokenScores, scale: OutlierScale, count: int) -> tuple[list[Rated], Bools]:
    """The tokens to show, largest KL first, and which of all tokens are flagged.

    The ``count`` largest KL, and of the flagged tokens the ``count`` that stand out most. A token
    without any divergence is never shown.
    """
    best = np.empty((4, 0))  # the index, KL, score and flag of the tokens that may be shown
    flagged_in_all = np.zeros(len(scores), dtype=np.bool_)
    for rows, part in scores.blocks():
        score, flagged = scale.rate(part)
        kl = np.nan_to_num(part["kl"], nan=-1.0, posinf=np.inf)
        index = np.arange(rows.start, rows.stop)
        best = _choose(np.hstack([best, (index, kl, score, flagged)]), count)
        flagged_in_all[rows] = flagged
    order = np.lexsort((best[0], -best[1]))
    shown = [Rated(int(i), float(z), bool(f)) for i, _, z, f in best[:, order].T]
    return shown, flagged_in_all


def _choose(rated: Floats, count: int) -> Floats:
    """Of tokens by index, KL, score and flag those with the largest KL or score, by index."""
    _, kl, score, flagged = rated
    weight = np.where(flagged > 0, np.nan_to_num(score, nan=0.0), -1.0)
    by_kl = np.argsort(-kl, kind="stable")[:count]
    by_score = np.lexsort((-kl, -weight))[:count]
    chosen = np.union1d(by_kl[kl[by_kl] > 0], by_score[weight[by_score] >= 0])
    return rated[:, chosen.astype(int)]


def _logarithm(scores: TokenScores) -> Floats:
    """ln(KL + 1e-9), NaN for excluded tokens."""
    x: Floats = np.log(np.maximum(scores["kl"], 0.0) + 1e-9)  # base files may have it below 0
    return x


def _bins(scores: TokenScores, joined: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """The bin of each token, -1 for tokens without a KL."""
    bins = joined[np.digitize(scores["confidence_reference"], CONFIDENCE_EDGES)]
    return np.where(np.isnan(scores["kl"]), np.int8(-1), bins)


def _join_small_bins(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """The bin that each one joins: itself, or its neighbour if it has fewer than 20 tokens."""
    joined, counts = np.arange(len(counts), dtype=np.int8), counts.copy()
    for one in np.flatnonzero(counts).tolist():
        later = np.flatnonzero(counts[one + 1 :]) + one + 1
        neighbours = later[:1] if len(later) else np.flatnonzero(counts[:one])[-1:]
        if counts[one] >= SMALLEST_BIN or not len(neighbours):
            continue
        counts[neighbours[0]] += counts[one]
        counts[one] = 0
        joined[joined == one] = neighbours[0]
    return joined


def _scale(scores: TokenScores, joined: npt.NDArray[np.int8], one: int) -> BinScale:
    x = np.concatenate(
        [_logarithm(part)[_bins(part, joined) == one] for _, part in scores.blocks()]
    )
    x.sort()
    median, limit = float(np.median(x)), float(np.quantile(x, 0.99, method="lower"))
    with np.errstate(invalid="ignore"):
        distance = np.abs(np.subtract(x, median, out=x), out=x)
        deviation = NORMAL_MAD * float(np.median(distance, overwrite_input=True))
    known = 0 < deviation < np.inf
    return BinScale(median=median, deviation=deviation if known else None, limit=limit)
