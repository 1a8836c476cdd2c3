"""Deciding early: intervals that hold at every moment while windows of a text are drawn at random.

The estimand is the mean over *this* text. Its windows are drawn without replacement in random
order, and an interval of the usual kind, looked at after each of them, would be wrong far more
often than it says. A confidence sequence is right at all times at once with the stated probability.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from klcli.judge.gate import HOLDS, Operator

Method = Literal["exact", "bounded", "asymptotic"]

LEAST_WINDOWS = 30
"""An asymptotic sequence says nothing before so many windows."""
UNSEEN = 3.0
"""How many times as large as any window so far one that was not drawn yet may be."""
BET = 0.5
"""The most a bounded sequence stakes on one window, as a share of its range."""


@dataclass(frozen=True, slots=True)
class Band:
    """What is known of a mean: it lies between ``low`` and ``high``, by which method."""

    low: float
    high: float
    method: Method


@dataclass(slots=True)
class Drawn:
    """Windows drawn so far, of a text of known size.

    Args:
        windows, tokens: how many the text has in all.
        largest: tokens of its largest window.
        upper: the most one token can count; infinite for KL and NLL.
        sums: what the tokens of each drawn window sum to, and ``counts`` how many they are.
    """

    windows: int
    tokens: int
    largest: int
    upper: float = math.inf
    sums: list[float] = field(default_factory=list)
    seen: int = 0

    def add(self, total: float, tokens: int) -> None:
        """One more window: the sum over its tokens."""
        self.sums.append(total)
        self.seen += tokens

    def band(self, alpha: float) -> Band:
        """An interval for the mean over all tokens, valid at all times with 1 − ``alpha``.

        After the last window it is the mean itself. Every token counts at least 0, so the sum so
        far is a lower bound that is certain.
        """
        certain = sum(self.sums) / self.tokens
        if len(self.sums) == self.windows:
            return Band(certain, certain, "exact")
        if not math.isfinite(certain):
            return Band(certain, certain, "bounded")
        if math.isfinite(self.upper):
            low, high = _bounded(self._scaled(), self.windows, alpha)
            scale = self.windows * self.largest * self.upper / self.tokens
            rest = certain + (self.tokens - self.seen) * self.upper / self.tokens
            return Band(max(certain, low * scale), min(rest, high * scale), "bounded")
        low, high = _asymptotic(np.array(self.sums), self.windows, alpha)
        scale = self.windows / self.tokens
        return Band(max(certain, low * scale), high * scale, "asymptotic")

    def _scaled(self) -> npt.NDArray[np.float64]:
        """The sums as shares of the most a window could sum to."""
        return np.array(self.sums) / (self.largest * self.upper)


def decide(band: Band, operator: Operator, limit: float) -> bool | None:
    """Whether a limit holds for certain or for certain not; None while that is open."""
    ends = (band.low, band.high)
    holds = {HOLDS[operator](end, limit) for end in ends}
    return None if len(holds) > 1 or any(map(math.isnan, ends)) else holds.pop()


def _bounded(x: npt.NDArray[np.float64], population: int, alpha: float) -> tuple[float, float]:
    """Empirical-Bernstein confidence sequence for the mean of a finite population in [0, 1].

    Waudby-Smith and Ramdas 2020, "Confidence sequences for sampling without replacement", theorem
    3.2: what remains of the population shrinks as it is drawn from, and so does the interval. The
    intersection over all times holds too, and is what is given.
    """
    drawn = np.arange(1, len(x) + 1)
    before = np.concatenate([[0.0], np.cumsum(x)[:-1]])
    left = population - drawn + 1
    mean_before = (0.5 + before) / drawn  # of what was drawn before, and one half
    spread = (0.25 + np.concatenate([[0.0], np.cumsum((x - mean_before) ** 2)[:-1]])) / drawn
    stake = np.sqrt(2 * math.log(2 / alpha) / (spread * drawn * np.log(drawn + 1)))
    stake = np.minimum(stake, BET)
    weight = np.cumsum(stake * (1 + (drawn - 1) / left))
    centre = np.cumsum(stake * (x + before / left)) / weight
    cost = (x - mean_before) ** 2 * (-np.log1p(-stake) - stake)
    half = (np.cumsum(cost) + math.log(2 / alpha)) / weight
    return float(np.max(centre - half)), float(np.min(centre + half))


def _asymptotic(x: npt.NDArray[np.float64], population: int, alpha: float) -> tuple[float, float]:
    """Asymptotic confidence sequence for a mean (Waudby-Smith et al., arXiv 2103.06476, thm 2.2).

    Tuned to be narrowest at half of the population. Drawing without replacement only makes the mean
    vary less than the sequence allows for. Of heavy tails the largest windows are often unseen for
    long, and until then mean and spread are both too small: the upper end therefore counts on one
    more window, ``UNSEEN`` times as large as any so far. (Without it sequences of 5 % passed up to
    27 % of limits wrongly in simulations; see the tests.)
    """
    if len(x) < LEAST_WINDOWS:
        return -math.inf, math.inf
    low = float(x.mean()) - _half_width(x, population, alpha)
    with_unseen = np.append(x, UNSEEN * x.max())
    high = float(with_unseen.mean()) + _half_width(with_unseen, population, alpha)
    return low, high


def _half_width(x: npt.NDArray[np.float64], population: int, alpha: float) -> float:
    t, best = len(x), max(LEAST_WINDOWS, population / 2)
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / best
    growth = 2 * (t * rho + 1) / (t * t * rho) * math.log(math.sqrt(t * rho + 1) / alpha)
    return math.sqrt(growth) * float(x.std(ddof=1))


def draw_order(windows: int, seed: int) -> Sequence[int]:
    """The windows of a text in random order."""
    order: list[int] = np.random.default_rng(seed).permutation(windows).tolist()
    return order
