"""95 % intervals of means, proportions and quantiles whose tokens stand together in clusters."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.judge.clusters import Bools, Clusters, Floats
from klcli.judge.student import student_t
from klcli.measure.scores import blocks

Metric = dict[str, float | None]
"""One metric by field; None is a number that is not known, or not computed."""

Bounds = tuple[float, float]
"""The least and the most that a number can be."""

UNBOUNDED: Bounds = (-math.inf, math.inf)
ROUNDING = 1e-6
"""How far beyond its bounds the rounding of a kernel may take a number."""

ERROR_FIELDS = ("se", "ci_low", "ci_high", "design_effect", "n_eff")


def half_width(error: float, clusters: Clusters) -> float:
    """Half of the interval around an estimate with that standard error, by Student's t."""
    return -student_t((1 - clusters.level) / 2, clusters.degrees) * error


def mean_with_error(x: npt.NDArray[Any], clusters: Clusters) -> Metric:
    """Mean with its clustered error; the design effect is that to the error of lone tokens.

    Var = Var(Σ_i(x_i - m)) / N²: see ``Clusters.variance``. n_eff = N / design effect.
    """
    mean = float(x.mean()) if np.isfinite(x).all() else _mean_of_extended(x)
    metric: Metric = {"mean": mean, **dict.fromkeys(ERROR_FIELDS)}
    n = len(x)
    if len(clusters) < 2 or not math.isfinite(mean):
        return metric
    variance = clusters.variance(clusters.sums(x, shift=mean)) / n**2
    squares = sum(float(((x[start:stop] - mean) ** 2).sum()) for start, stop in blocks(n))
    independent = squares / (n - 1) / n
    half = half_width(math.sqrt(variance), clusters)
    return metric | {
        "se": math.sqrt(variance),
        "ci_low": mean - half,
        "ci_high": mean + half,
        "design_effect": variance / independent if independent > 0 else None,
        "n_eff": n * independent / variance if variance > 0 else None,
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
    n, share = len(hits), float(hits.mean())
    metric: Metric = {"value": share, **dict.fromkeys(ERROR_FIELDS)}
    if len(clusters) < 2:
        return metric
    variance, effect = share_error(clusters.counts(hits), clusters)
    n_eff = n / max(effect or 1.0, 1.0)
    low, high = wilson(share, n_eff, half_width(1.0, clusters))
    return metric | {
        "se": math.sqrt(variance),
        "ci_low": low,
        "ci_high": high,
        "design_effect": effect,
        "n_eff": n_eff,
    }


def share_error(hits: npt.NDArray[Any], clusters: Clusters) -> tuple[float, float | None]:
    """Variance and design effect of a share, by the hits of each cluster; None where all alike."""
    n = clusters.tokens
    share = float(hits.sum()) / n
    variance = clusters.variance(hits - share * clusters.sizes) / n**2
    independent = share * (1 - share) / (n - 1)
    return variance, variance / independent if independent > 0 else None


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
    _, effect = share_error(clusters.counts(x > q), clusters)
    if effect is None:
        _, effect = share_error(clusters.counts(x < q), clusters)
    error = math.sqrt(max(effect or 1.0, 1.0) * share * (1 - share) / (len(x) - 1))
    half = half_width(error, clusters)
    low = quantile(ordered, share - half) if share >= half else None
    return low, quantile(ordered, share + half) if share + half <= 1 else None


def _mean_of_extended(x: Floats) -> float:
    """A mean with infinities in it: infinite, or NaN where they have both signs or one is NaN."""
    infinite = x[~np.isfinite(x)]
    return float(infinite[0]) if (infinite == infinite[0]).all() else math.nan
