"""Which tokens stand out.

A KL of 0.1 nats is nothing where the reference is unsure and much where it is certain, and what is
usual differs from run to run, so there is no fixed limit: a token is held against its like.
"""

from dataclasses import dataclass

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
class Standing:
    """How far each token stands out.

    ``score`` (tokens,) is the robust z of ln(KL + 1e-9) among tokens of like reference confidence,
    NaN where all of them are alike; ``flagged`` says which stand out.
    """

    score: Floats
    flagged: Bools


def rate(scores: TokenScores) -> Standing:
    """Rate every token of a comparison.

    z = (x - median) / (1.4826 · MAD) within bins of the reference's largest probability; flagged
    above 3.5. Where the MAD is 0 those above the bin's 99th percentile are flagged instead.
    """
    x = np.log(np.maximum(scores["kl"], 0.0) + 1e-9)  # base files may have it below 0
    bins = _merge_small_bins(
        np.digitize(scores["confidence_reference"], CONFIDENCE_EDGES).astype(np.int8), x
    )
    score, flagged = np.full(len(x), np.nan), np.zeros(len(x), dtype=np.bool_)
    for one in np.unique(bins[bins >= 0]):
        inside = bins == one
        median = np.median(x[inside])
        with np.errstate(invalid="ignore"):
            deviation = NORMAL_MAD * np.median(np.abs(x[inside] - median))
            if 0 < deviation < np.inf:
                score[inside] = (x[inside] - median) / deviation
                flagged[inside] = score[inside] > THRESHOLD
            else:
                flagged[inside] = x[inside] > np.quantile(x[inside], 0.99, method="lower")
    return Standing(score=score, flagged=flagged)


def choose(scores: TokenScores, standing: Standing, count: int) -> list[int]:
    """The tokens to show, largest KL first.

    The ``count`` largest KL, and of the flagged tokens the ``count`` that stand out most. A token
    without any divergence is never shown.
    """
    kl = np.nan_to_num(scores["kl"], nan=-1.0, posinf=np.inf)
    weight = np.where(standing.flagged, np.nan_to_num(standing.score, nan=0.0), -1.0)
    by_kl = np.argsort(-kl, kind="stable")[:count]
    by_score = np.lexsort((-kl, -weight))[:count]
    chosen = {int(i) for i in by_kl if kl[i] > 0} | {int(i) for i in by_score if weight[i] >= 0}
    return sorted(chosen, key=lambda i: (-kl[i], i))


def _merge_small_bins(bins: npt.NDArray[np.int8], x: Floats) -> npt.NDArray[np.int8]:
    """Bins where one with fewer than 20 tokens joins its neighbour; -1 for tokens without a KL."""
    bins = np.where(np.isnan(x), -1, bins)
    present = [int(one) for one in np.unique(bins[bins >= 0])]
    for place, one in enumerate(present):
        if (bins == one).sum() >= SMALLEST_BIN:
            continue
        later, earlier = present[place + 1 :], np.unique(bins[(bins >= 0) & (bins < one)])
        if later:
            bins = np.where(bins == one, later[0], bins)
        elif len(earlier):
            bins = np.where(bins == one, earlier[-1], bins)
    return bins
