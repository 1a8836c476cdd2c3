"""TokenScores → estimates: means, derived numbers and quantiles, with clustered intervals.

Tokens of one text are not independent, so standard errors are taken over clusters of them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.measure.scores import SIDES, TokenScores

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
Metric = dict[str, float | None]
"""One metric by field; None is a number that is not known, or not computed."""

LEVEL = 0.95
QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
P999_NEEDS = 5000

MEAN_FIELDS = (
    "mean", "se", "ci_low", "ci_high", "design_effect",
    "median", "min", "max", "p90", "p95", "p99", "p999",
)  # fmt: skip
VALUE_FIELDS = ("value", "se", "ci_low", "ci_high")
FLIP_FIELDS = ("lost", "gained", "net", "volume", "p")

COMPARE_METRICS: Mapping[str, tuple[str, ...]] = {
    "kl": MEAN_FIELDS,
    "kl_reverse": MEAN_FIELDS,
    "jsd": MEAN_FIELDS,
    "tv": MEAN_FIELDS,
    "nll_reference": MEAN_FIELDS,
    "nll_candidate": MEAN_FIELDS,
    "nll_difference": MEAN_FIELDS,
    "perplexity_reference": VALUE_FIELDS,
    "perplexity_candidate": VALUE_FIELDS,
    "perplexity_ratio": VALUE_FIELDS,
    "bits_per_byte_reference": VALUE_FIELDS,
    "bits_per_byte_candidate": VALUE_FIELDS,
    "top1_agreement": VALUE_FIELDS,
    "overlap_5": MEAN_FIELDS,
    "delta_p": MEAN_FIELDS,
    "delta_p_rms": VALUE_FIELDS,
    "flips": FLIP_FIELDS,
    "entropy_reference": MEAN_FIELDS,
    "entropy_candidate": MEAN_FIELDS,
    "rank_reference": MEAN_FIELDS,
    "rank_candidate": MEAN_FIELDS,
}
"""Every metric of a comparison, with its fields, in the order of the report."""

PERPLEXITY_METRICS: Mapping[str, tuple[str, ...]] = {
    "nll": MEAN_FIELDS,
    "perplexity": VALUE_FIELDS,
    "bits_per_byte": VALUE_FIELDS,
    "word_perplexity": VALUE_FIELDS,
    "byte_perplexity": VALUE_FIELDS,
    "entropy": MEAN_FIELDS,
    "rank": MEAN_FIELDS,
}
"""Every metric of one model."""

DOCUMENTS_ENOUGH = 20
MOST_BLOCKS = 32


def summarise(
    scores: TokenScores, cluster: Ints, chosen: npt.NDArray[np.bool_]
) -> dict[str, Metric]:
    """All metrics over the ``chosen`` tokens (bool, one a token), excluded ones left out.

    ``cluster`` (one a token) says which tokens stand together: see ``cluster_windows``.
    """
    usable = chosen & ~scores["excluded"]
    known = usable & (scores["token_id"] >= 0)
    view = _View(scores, cluster, usable, known)
    return _compare(view) if scores.paired else _single(view, "")


def cluster_windows(document: Ints) -> Ints:
    """The cluster of every window of a corpus, from 0 on, by the document of each, in order.

    Documents where there are at least 20; otherwise runs of consecutive windows of a document, at
    most about 32 in all: single windows of one text correlate with their neighbours.
    """
    begins = np.flatnonzero(np.diff(document, prepend=-1))
    counts = np.diff(np.append(begins, len(document)))
    if len(begins) >= DOCUMENTS_ENOUGH:
        return np.repeat(np.arange(len(begins)), counts)
    length = max(1, math.ceil(len(document) / MOST_BLOCKS))
    place = np.arange(len(document)) - np.repeat(begins, counts)
    starts_cluster = place % length == 0
    return np.cumsum(starts_cluster) - 1


def mean_metric(x: Floats, cluster: Ints) -> Metric:
    """Mean, clustered standard error and 95 % interval, design effect, and quantiles of ``x``.

    Nothing is known where a number of any token is not (NaN): a mean over the others would be the
    mean of something else.
    """
    if not len(x) or bool(np.isnan(x).any()):
        return dict.fromkeys(MEAN_FIELDS)
    metric: Metric = {**_mean_with_error(x, cluster)}
    ordered = np.sort(x)
    metric["min"], metric["max"] = float(ordered[0]), float(ordered[-1])
    for name, share in QUANTILES.items():
        too_few = name == "p999" and len(x) < P999_NEEDS
        metric[name] = None if too_few else quantile(ordered, share)
    return {field: metric[field] for field in MEAN_FIELDS}


def quantile(ordered: Floats, share: float) -> float:
    """The quantile of sorted numbers, interpolated (type 7, as NumPy does), infinities allowed."""
    at = share * (len(ordered) - 1)
    low, high = float(ordered[math.floor(at)]), float(ordered[math.ceil(at)])
    return low if low == high else low + (high - low) * (at - math.floor(at))


def student_t(probability: float, degrees: int) -> float:
    """Quantile of Student's t.

    Exact for 1 and 2 degrees of freedom, else the expansion in 1/degrees around the normal quantile
    (Abramowitz and Stegun, 26.7.5): within 0.2 % from 3 degrees on.
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))


@dataclass(frozen=True, slots=True)
class _View:
    """Scores of some tokens: the ``usable`` ones, of those the ones whose target is ``known``."""

    scores: TokenScores
    cluster: Ints
    usable: Bools
    known: Bools

    def mean(self, column: str) -> Metric:
        """A metric over every usable token."""
        return mean_metric(
            self.scores[column][self.usable].astype(float), self.cluster[self.usable]
        )

    def mean_at_target(self, column: str) -> Metric:
        """A metric over the tokens whose target is known."""
        return mean_metric(self.at_target(column), self.cluster[self.known])

    def at_target(self, column: str) -> npt.NDArray[np.float64]:
        """A column where the target is known; NaN for a rank outside of a list."""
        x = self.scores[column][self.known].astype(float)
        return np.where(x < 0, np.nan, x) if column.startswith("rank") else x

    def total(self, start: str, stop: str) -> int | None:
        """Bytes of the known tokens, None where the text is not known."""
        ends, starts = self.scores[stop][self.known], self.scores[start][self.known]
        return int((ends - starts).sum()) if len(ends) and bool((ends >= 0).all()) else None


def _compare(view: _View) -> dict[str, Metric]:
    metrics = {name: view.mean(name) for name in ("kl", "kl_reverse", "jsd", "tv", "overlap_5")}
    for name in ("nll_difference", "delta_p"):
        metrics[name] = view.mean_at_target(name)
    for side in SIDES:
        single = _single(view, f"_{side}")
        metrics |= {f"{name}_{side}": metric for name, metric in single.items()}
    same = view.scores["top1_reference"] == view.scores["top1_candidate"]
    metrics["perplexity_ratio"] = _transformed(metrics["nll_difference"], exp)
    metrics["top1_agreement"] = _value(_mean_of(same[view.usable]))
    metrics["delta_p_rms"] = _delta_p_rms(view)
    metrics["flips"] = _flips(view)
    return {name: metrics[name] for name in COMPARE_METRICS}


def _single(view: _View, suffix: str) -> dict[str, Metric]:
    nll = view.mean_at_target(f"nll{suffix}")
    tokens = int(view.known.sum())
    text_bytes = view.total("byte_start", "byte_end")
    words = int(view.scores["words"][view.known].sum()) if text_bytes is not None else 0

    def per(count: int | None, unit: float, transform: Callable[[float], float]) -> Metric:
        if not count:
            return dict.fromkeys(VALUE_FIELDS)
        return _transformed(nll, lambda mean: transform(mean * tokens / count / unit))

    return {
        "nll": nll,
        "perplexity": _transformed(nll, exp),
        "bits_per_byte": per(text_bytes, math.log(2), float),
        "word_perplexity": per(words, 1.0, exp),
        "byte_perplexity": per(text_bytes, 1.0, exp),
        "entropy": view.mean(f"entropy{suffix}"),
        "rank": view.mean_at_target(f"rank{suffix}"),
    }


def _delta_p_rms(view: _View) -> Metric:
    squares = view.at_target("delta_p") ** 2
    if not len(squares) or bool(np.isnan(squares).any()):
        return dict.fromkeys(VALUE_FIELDS)
    mean = _mean_with_error(squares, view.cluster[view.known])
    rms = math.sqrt(float(squares.mean()))
    error = mean["se"] / (2 * rms) if mean["se"] is not None and rms > 0 else None
    return _value(rms) | {"se": error}


def _flips(view: _View) -> Metric:
    """Tokens that only the reference (lost), or only the candidate (gained), predicts first."""
    if not view.known.any():
        return dict.fromkeys(FLIP_FIELDS)
    target = view.scores["token_id"][view.known]
    right = {side: view.scores[f"top1_{side}"][view.known] == target for side in SIDES}
    lost = int((right["reference"] & ~right["candidate"]).sum())
    gained = int((~right["reference"] & right["candidate"]).sum())
    tokens = len(target)
    return {
        "lost": lost,
        "gained": gained,
        "net": (gained - lost) / tokens,
        "volume": (gained + lost) / tokens,
        "p": None,
    }


def _mean_of(x: Bools) -> float | None:
    return float(x.mean()) if len(x) else None


def _value(value: float | None) -> Metric:
    return {**dict.fromkeys(VALUE_FIELDS), "value": value}


def _transformed(mean: Metric, transform: Callable[[float], float]) -> Metric:
    """A number that grows with a mean: the interval is the transform of the mean's ends."""
    ends = {"value": "mean", "ci_low": "ci_low", "ci_high": "ci_high"}
    metric: Metric = {"value": None, "se": None, "ci_low": None, "ci_high": None}
    for field, of in ends.items():
        number = mean[of]
        metric[field] = None if number is None else transform(number)
    return metric


def exp(x: float) -> float:
    """e^x, infinite where float64 ends."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _mean_with_error(x: Floats, cluster: Ints) -> Metric:
    """Mean with the CR1 cluster-robust error: Var = G/(G-1) · Σ_g(Σ_{i∈g}(x_i - m))² / N²."""
    mean = float(x.mean()) if np.isfinite(x).all() else _mean_of_extended(x)
    metric: Metric = {"mean": mean, **dict.fromkeys(("se", "ci_low", "ci_high", "design_effect"))}
    n, g = len(x), int((np.bincount(cluster) > 0).sum())
    if g < 2 or not math.isfinite(mean):
        return metric
    residuals = x - mean
    sums = np.bincount(cluster, weights=residuals)
    variance = g / (g - 1) * float((sums**2).sum()) / n**2
    independent = float((residuals**2).sum()) / (n - 1) / n
    half = student_t((1 + LEVEL) / 2, g - 1) * math.sqrt(variance)
    return metric | {
        "se": math.sqrt(variance),
        "ci_low": mean - half,
        "ci_high": mean + half,
        "design_effect": variance / independent if independent > 0 else None,
    }


def _mean_of_extended(x: Floats) -> float:
    """A mean with infinities in it: infinite, or NaN where they have both signs or one is NaN."""
    infinite = x[~np.isfinite(x)]
    return float(infinite[0]) if (infinite == infinite[0]).all() else math.nan
