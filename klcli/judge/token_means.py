"""Numbers as means over tokens, so that two runs can be held against each other token by token."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from klcli.judge.clusters import Bools, Floats
from klcli.measure.scores import SIDES, TokenScores

Scale = Literal["plain", "exp", "root"]
"""What a number is of its mean: the mean itself, e to the mean, or its square root."""
Unit = Literal["token", "byte", "word"]
"""What a mean is for each of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMean:
    """A number that is the mean of a term of each token, on a scale.

    ``at_target``: over tokens whose target is known. ``divisor`` is that of the sum over a text, as
    ln 2 in bits.
    """

    term: Callable[[TokenScores], Floats]
    at_target: bool
    scale: Scale = "plain"
    unit: Unit = "token"
    divisor: float = 1.0

    def differences(self, ours: TokenScores, theirs: TokenScores, times: float) -> "Pairs | None":
        """Our number less so many times theirs: on its scale, a mean of what each token gives.

        The tokens are those that count in both. None where a token's number is not finite, or
        there are no words or bytes to divide by.
        """
        both = self._counts(ours) & self._counts(theirs)
        units = self._units(ours, both)
        if not units:
            return None
        factor = np.count_nonzero(both) / units / self.divisor
        x, y = (factor * self.term(scores)[both] for scores in (ours, theirs))
        weight = {"plain": times, "exp": 1.0, "root": times**2}[self.scale]
        with np.errstate(invalid="ignore"):
            d = x - weight * y
        return Pairs(d, both, np.array_equal(x, y)) if np.isfinite(d).all() else None

    def _counts(self, scores: TokenScores) -> Bools:
        """The tokens over which the mean is taken."""
        usable: Bools = ~scores["excluded"]
        return usable & (scores["token_id"] >= 0) if self.at_target else usable

    def _units(self, scores: TokenScores, both: Bools) -> int:
        """How many tokens, bytes or words there are."""
        if self.unit == "token":
            return int(np.count_nonzero(both))
        if self.unit == "word":
            return int(scores["words"][both].sum())
        return int((scores["byte_end"][both] - scores["byte_start"][both]).sum())

    def from_limit(self, end: float, limit: float, times: float) -> float:
        """How far from its limit a number is whose pairs have this mean.

        ``limit`` is so many ``times`` the other number, and above 0 where the scale is not plain.
        """
        if self.scale == "plain":
            return end
        if self.scale == "exp":
            return limit * math.expm1(min(end - math.log(times), 700.0))
        root = math.sqrt(max(0.0, limit**2 + end))
        return end / (root + limit) if root > 0 else -limit


@dataclass(frozen=True, slots=True)
class Pairs:
    """The terms of pairs of tokens, one less the other; and which of all tokens they are.

    ``same``: both runs hold the same.
    """

    d: Floats
    of: Bools
    same: bool


def token_mean(metric: str, field: str) -> TokenMean:
    """How a number comes of its tokens: a mean, a value, or the net or volume of flips."""
    if metric == "flips":
        return TokenMean(term=_net if field == "net" else _volume, at_target=True)
    if metric == "perplexity_ratio":
        return TokenMean(term=_column("nll_difference"), at_target=True, scale="exp")
    name, side = _parted(metric)
    if name in _OF_NLL:
        return replace(_OF_NLL[name], term=_column(f"nll{side}"))
    return _OTHERS.get(metric) or TokenMean(term=_column(metric), at_target=name in _AT_TARGET)


def _parted(metric: str) -> tuple[str, str]:
    """The name of a metric without its side, and ``_side``, or nothing."""
    for side in SIDES:
        if metric.endswith(f"_{side}"):
            return metric.removesuffix(f"_{side}"), f"_{side}"
    return metric, ""


def _column(name: str) -> Callable[[TokenScores], Floats]:
    def term(scores: TokenScores) -> Floats:
        x: Floats = scores[name].astype(np.float64)
        if name.startswith("rank"):
            x[x < 0] = np.nan  # outside of a list
        return x

    return term


def _agrees(scores: TokenScores) -> Floats:
    same: Floats = (scores["top1_reference"] == scores["top1_candidate"]).astype(np.float64)
    return same


def _squared(scores: TokenScores) -> Floats:
    squares: Floats = scores["delta_p"].astype(np.float64) ** 2
    return squares


def _net(scores: TokenScores) -> Floats:
    """1 where only the candidate predicts what came, -1 where only the reference does."""
    right = [(scores[f"top1_{side}"] == scores["token_id"]).astype(float) for side in SIDES]
    net: Floats = right[1] - right[0]
    return net


def _volume(scores: TokenScores) -> Floats:
    return np.abs(_net(scores))


_AT_TARGET = ("nll", "nll_difference", "delta_p", "rank")
_NLL = TokenMean(term=_column("nll"), at_target=True)
_OF_NLL = {
    "perplexity": replace(_NLL, scale="exp"),
    "bits_per_byte": replace(_NLL, unit="byte", divisor=math.log(2)),
    "word_perplexity": replace(_NLL, scale="exp", unit="word"),
    "byte_perplexity": replace(_NLL, scale="exp", unit="byte"),
}
_OTHERS = {
    "top1_agreement": TokenMean(term=_agrees, at_target=False),
    "delta_p_rms": TokenMean(term=_squared, at_target=True, scale="root"),
}
