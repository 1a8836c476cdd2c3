"""95 % intervals of means, proportions and quantiles whose tokens stand together in clusters."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.judge.clusters import Bools, Clusters, Floats
from klcli.judge.standard_error import StandardError, standard_error
from klcli.measure.scores import blocks

Metric = dict[str, float | None]
"""One metric by field; None is a number that is not known, or not computed."""

Bounds = tuple[float, float]
"""The least and the most that a number can be."""

UNBOUNDED: Bounds = (-math.inf, math.inf)
ROUNDING = 1e-6
"""How far beyond its bounds the rounding of a kernel may take a number."""

ERROR_FIELDS = ("se", "ci_low", "ci_high", "design_effect", "n_eff", "lag1_correlation")


def mean_with_error(x: npt.NDArray[Any], clusters: Clusters) -> Metric:
    """Mean with its clustered error; the design effect is that to the error of lone tokens.

    Var = Var(Σ_i(x_i - m)) / N²: see ``Clusters.variance``. n_eff = N / design effect. Where all
    clusters are alike both are those of lone tokens.
    """
    mean = float(x.mean()) if np.isfinite(x).all() else _mean_of_extended(x)
    metric: Metric = {"mean": mean, **dict.fromkeys(ERROR_FIELDS)}
    if len(clusters) < 2 or not math.isfinite(mean):
        return metric
    sums = clusters.sums(x, shift=mean)
    error = standard_error(sums, independent_error(x, mean), clusters)
    half = error.half_width(clusters.level)
    return metric | _told(error, sums, clusters) | {"ci_low": mean - half, "ci_high": mean + half}


def independent_error(x: npt.NDArray[Any], mean: float) -> float:
    """The error of a mean of independent tokens."""
    squares = sum(float(((x[start:stop] - mean) ** 2).sum()) for start, stop in blocks(len(x)))
    return math.sqrt(squares / (len(x) - 1) / len(x))


def _told(error: StandardError, sums: Floats, clusters: Clusters) -> Metric:
    """What is told of an error; ``sums`` are those of the residuals over each cluster."""
    return {
        "se": error.value,
        "design_effect": error.design_effect,
        "n_eff": clusters.tokens * error.share_of_tokens,
        "lag1_correlation": None if error.is_tied else clusters.lag1_correlation(sums),
    }


def within(metric: Metric, bounds: Bounds, seen: Bounds) -> Metric:
    """A metric whose interval ends where its number does: no end lies outside of the bounds.

    ``seen`` are the least and the most of any token. Where they lie beyond the bounds by more than
    rounding these do not hold, as for KL by llama.cpp's rule, and nothing is changed.
    """
    middle = metric["mean"] if "mean" in metric else metric["value"]
    low, high = metric["ci_low"], metric["ci_high"]
    is_bounded = seen[0] >= bounds[0] - ROUNDING and seen[1] <= bounds[1] + ROUNDING
    if middle is None or low is None or high is None or not is_bounded:
        return metric
    return metric | {
        "ci_low": min(middle, max(low, bounds[0])),
        "ci_high": max(middle, min(high, bounds[1])),
    }


def proportion(hits: Bools, clusters: Clusters) -> Metric:
    """The share of tokens that are hits, with Wilson's interval for n_eff tokens.

    n_eff = N / design effect, and never more than N. Where all tokens are alike there is nothing to
    tell the design effect by, and n_eff is N: seeing nothing is not certainty. The quantile
    of t stands in the place of the normal one, because the design effect is an estimate.
    """
    share = float(hits.mean())
    metric: Metric = {"value": share, **dict.fromkeys(ERROR_FIELDS)}
    if len(clusters) < 2:
        return metric
    counts = clusters.counts(hits)
    error = share_error(counts, clusters)
    told = _told(error, counts - share * clusters.sizes, clusters)
    assert told["n_eff"] is not None
    low, high = wilson(share, told["n_eff"], error.quantile(clusters.level))
    return metric | told | {"ci_low": low, "ci_high": high}


def share_error(hits: npt.NDArray[Any], clusters: Clusters) -> StandardError:
    """The error of a share, by the hits of each cluster."""
    n = clusters.tokens
    share = float(hits.sum()) / n
    independent = math.sqrt(share * (1 - share) / (n - 1))
    return standard_error(hits - share * clusters.sizes, independent, clusters, counted=True)


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """The ends of Wilson's interval (1927) of a share of n independent draws."""
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def quantile(ordered: Floats, share: float) -> float:
    """The quantile of sorted numbers, interpolated (type 7, as NumPy does), infinities allowed."""
    at = share * (len(ordered) - 1)
    low, high = float(ordered[math.floor(at)]), float(ordered[math.ceil(at)])
    return low if low == high else low + (high - low) * (at - math.floor(at))


def quantile_interval(
    x: Floats, ordered: Floats, share: float, clusters: Clusters
) -> tuple[float | None, float | None]:
    """The ends of the interval of a quantile q, by Woodruff (1952).

    The clustered interval of the share of numbers up to q, as quantiles. The design effect is that
    of 1{x ≤ q}, or of 1{x < q} where q is the largest number, and not below 1. An end that would
    lie beyond the data is not known (None).
    """
    if len(clusters) < 2:
        return None, None
    q = quantile(ordered, share)
    error = share_error(clusters.counts(x > q), clusters)
    if error.design_effect is None:
        error = share_error(clusters.counts(x < q), clusters)
    widening = math.sqrt(max(error.design_effect or 1.0, 1.0)) * error.quantile(clusters.level)
    half = widening * math.sqrt(share * (1 - share) / (len(x) - 1))
    low = quantile(ordered, share - half) if share >= half else None
    return low, quantile(ordered, share + half) if share + half <= 1 else None


def _mean_of_extended(x: Floats) -> float:
    """A mean with infinities in it: infinite, or NaN where they have both signs or one is NaN."""
    infinite = x[~np.isfinite(x)]
    return float(infinite[0]) if (infinite == infinite[0]).all() else math.nan
