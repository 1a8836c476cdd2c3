"""TokenScores → estimates: means, derived numbers and quantiles, with clustered intervals.

Tokens of one text are not independent, so standard errors are taken over clusters of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.judge.clusters import Bools, Clusters, Floats
from klcli.judge.intervals import (
    UNBOUNDED,
    Bounds,
    Metric,
    mean_with_error,
    proportion,
    quantile,
    quantile_interval,
    within,
)
from klcli.judge.metrics import (
    BOUNDS,
    COMPARE_METRICS,
    FLIP_FIELDS,
    MEAN_FIELDS,
    PROPORTION_FIELDS,
    QUANTILES,
    VALUE_FIELDS,
)
from klcli.judge.standard_error import standard_error
from klcli.measure.scores import SIDES, TokenScores

P999_NEEDS = 5000


def summarise(
    scores: TokenScores, clusters: Clusters, chosen: Bools, *, is_text: bool = True
) -> dict[str, Metric]:
    """All metrics over the ``chosen`` tokens (bool, one a token), excluded ones left out.

    Where the tokens do not determine the text (``is_text``) its bytes and words are not known.
    """
    usable, known = chosen.copy(), chosen.copy()
    for rows, part in scores.blocks():
        usable[rows] &= ~part["excluded"]
        known[rows] = usable[rows] & (part["token_id"] >= 0)
    view = _View(scores, usable, known, clusters.among(usable), clusters.among(known), is_text)
    return _compare(view) if scores.paired else _single(view, "")


def mean_metric(x: Floats, clusters: Clusters, bounds: Bounds = UNBOUNDED) -> Metric:
    """Mean, clustered standard error and interval, design effect, and quantiles of ``x``.

    ``bounds`` are the least and the most that any token can count; the interval lies within them.
    Nothing is known where a number of any token is not (NaN): a mean over the others would be the
    mean of something else.
    """
    if not len(x) or bool(np.isnan(x).any()):
        return dict.fromkeys(MEAN_FIELDS)
    ordered = np.sort(x)
    least, most = float(ordered[0]), float(ordered[-1])
    metric: Metric = dict.fromkeys(MEAN_FIELDS) | {"min": least, "max": most}
    metric |= within(mean_with_error(x, clusters), bounds, (least, most))
    for name, share in QUANTILES.items():
        if name == "p999" and len(x) < P999_NEEDS:
            continue
        low, high = quantile_interval(x, ordered, share, clusters)
        metric |= {name: quantile(ordered, share), f"{name}_low": low, f"{name}_high": high}
    return metric


@dataclass(frozen=True, slots=True)
class _View:
    """Scores of some tokens: the ``usable`` ones, of those the ones whose target is ``known``."""

    scores: TokenScores
    usable: Bools
    known: Bools
    usable_clusters: Clusters
    known_clusters: Clusters
    is_text: bool

    def mean(self, column: str) -> Metric:
        """A metric over every usable token."""
        x = self._gather(itemgetter(column), self.usable)
        return mean_metric(x, self.usable_clusters, BOUNDS.get(column, UNBOUNDED))

    def mean_at_target(self, column: str) -> Metric:
        """A metric over the tokens whose target is known."""
        bounds = BOUNDS.get(column, UNBOUNDED)
        return mean_metric(self.at_target(column), self.known_clusters, bounds)

    def at_target(self, column: str) -> Floats:
        """A column where the target is known; NaN for a rank outside of a list."""
        x = self._gather(itemgetter(column), self.known)
        if column.startswith("rank"):
            x[x < 0] = np.nan
        return x

    def where(self, is_so: Callable[[TokenScores], Bools], chosen: Bools) -> Bools:
        """Whether something is so, at each of the chosen tokens."""
        return self._gather(is_so, chosen, np.bool_)

    def total(self, start: str, stop: str) -> int | None:
        """Bytes of the known tokens, None where the text is not known."""
        if not self.is_text:
            return None
        total = 0
        for rows, part in self.scores.blocks():
            ends, starts = part[stop][self.known[rows]], part[start][self.known[rows]]
            if bool((ends < 0).any()):
                return None
            total += int((ends - starts).sum())
        return total if self.known.any() else None

    def words(self) -> int:
        """Words that begin in the known tokens."""
        parts = self.scores.blocks()
        return sum(int(part["words"][self.known[rows]].sum()) for rows, part in parts)

    def _gather(
        self,
        read: Callable[[TokenScores], npt.NDArray[Any]],
        chosen: Bools,
        dtype: npt.DTypeLike = np.float64,
    ) -> npt.NDArray[Any]:
        """What is read at each of the chosen tokens, an array of its own."""
        gathered, done = np.empty(np.count_nonzero(chosen), dtype), 0
        for rows, part in self.scores.blocks():
            values = read(part)[chosen[rows]]
            gathered[done : done + len(values)] = values
            done += len(values)
        return gathered


def _compare(view: _View) -> dict[str, Metric]:
    metrics = {name: view.mean(name) for name in ("kl", "kl_reverse", "jsd", "tv")}
    metrics["overlap_5"] = _overlap(view)
    for name in ("nll_difference", "delta_p"):
        metrics[name] = view.mean_at_target(name)
    for side in SIDES:
        single = _single(view, f"_{side}")
        metrics |= {f"{name}_{side}": metric for name, metric in single.items()}
    metrics["perplexity_ratio"] = _transformed(metrics["nll_difference"], exp)
    metrics["top1_agreement"] = _agreement(view)
    metrics["delta_p_rms"] = _delta_p_rms(view)
    metrics["flips"] = _flips(view)
    return {name: metrics[name] for name in COMPARE_METRICS}


def _single(view: _View, suffix: str) -> dict[str, Metric]:
    nll = view.mean_at_target(f"nll{suffix}")
    tokens = view.known_clusters.tokens
    text_bytes = view.total("byte_start", "byte_end")
    words = view.words() if text_bytes is not None else 0

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


def _agreement(view: _View) -> Metric:
    same = view.where(lambda part: part["top1_reference"] == part["top1_candidate"], view.usable)
    return proportion(same, view.usable_clusters) if len(same) else dict.fromkeys(PROPORTION_FIELDS)


def _overlap(view: _View) -> Metric:
    """A mean of counts, k of 5. Where all tokens are alike that is no certainty.

    Its interval is then as long as that of a share of which all tokens are hits.
    """
    metric = view.mean("overlap_5")
    mean = metric["mean"]
    if mean is None or metric["ci_low"] is None or metric["min"] != metric["max"]:
        return metric
    alike = proportion(np.ones(view.usable_clusters.tokens, np.bool_), view.usable_clusters)
    reach = 1 - (alike["ci_low"] or 0.0)
    ends: Metric = {"ci_low": mean - reach, "ci_high": mean + reach}
    return within(metric | ends, BOUNDS["overlap_5"], (mean, mean))


def _delta_p_rms(view: _View) -> Metric:
    """√mean(Δp²), with the error se(mean Δp²) / (2 · RMS) that follows by the delta method."""
    metric: Metric = dict.fromkeys(VALUE_FIELDS)
    squares = view.at_target("delta_p")
    np.square(squares, out=squares)
    if not len(squares) or bool(np.isnan(squares).any()):
        return metric
    mean = mean_with_error(squares, view.known_clusters)
    rms = math.sqrt(float(squares.mean()))
    if mean["se"] is None or mean["ci_high"] is None or rms == 0:
        return metric | {"value": rms}
    half = (mean["ci_high"] - float(squares.mean())) / (2 * rms)
    ends = {"ci_low": max(0.0, rms - half), "ci_high": rms + half}
    metric |= {"value": rms, "se": mean["se"] / (2 * rms)} | ends
    return within(metric, BOUNDS["delta_p_rms"], (0.0, math.sqrt(float(squares.max()))))


def _flips(view: _View) -> Metric:
    """Tokens that only the reference (lost), or only the candidate (gained), predicts first."""
    metric: Metric = dict.fromkeys(FLIP_FIELDS)
    if not view.known.any():
        return metric
    reference, candidate = (view.where(_predicts(side), view.known) for side in SIDES)
    lost, gained = reference & ~candidate, ~reference & candidate
    volume = proportion(lost | gained, view.known_clusters)
    metric |= {"lost": int(lost.sum()), "gained": int(gained.sum())}
    metric |= {"volume": volume["value"]}
    metric |= {"volume_low": volume["ci_low"], "volume_high": volume["ci_high"]}
    return metric | _net(gained.astype(np.int8) - lost, volume, view.known_clusters)


def _net(flips: npt.NDArray[np.int8], volume: Metric, clusters: Clusters) -> Metric:
    """The net of flips (-1, 0, 1), its interval, and how probable it is without a direction.

    t of the paired difference over its error, which is the clustered one, or that of McNemar's
    test, √(lost + gained) / N, if that is larger: tokens stand together, and few clusters may tie.
    Without a flip there is no error, and the net is known no better than that there are few flips.
    """
    net, count = float(flips.mean()), np.count_nonzero(flips)
    most = volume["ci_high"]
    if len(clusters) < 2 or most is None:
        return {"net": net}
    if count == 0:
        return {"net": net, "net_low": -most, "net_high": most, "p": 1.0}
    mcnemar = math.sqrt(count) / len(flips)
    error = standard_error(clusters.sums(flips, net), mcnemar, clusters, counted=True)
    half, (least, largest) = error.half_width(clusters.level), BOUNDS["flips"]
    ends = {"net_low": max(least, net - half), "net_high": min(largest, net + half)}
    return {"net": net, **ends, "p": error.p(net)}


def _predicts(side: str) -> Callable[[TokenScores], Bools]:
    """Whether a side holds what came to be the most probable token."""
    return lambda part: part[f"top1_{side}"] == part["token_id"]


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
