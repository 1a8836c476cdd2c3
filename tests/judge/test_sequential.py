"""Sequences that may be looked at after every window: see ``bench/stopping.py``."""

import math
from typing import Any

import numpy as np
import pytest

from bench.stopping import ALPHA, LIMITS, TOKENS, Design, designs, endings
from klcli.judge.sequential import LEAST_WINDOWS, Band, Drawn, decide, draw_order

DESIGNS = list(designs())


def named(design: Design) -> str:
    return f"{design.metric}, {design.windows} windows, {design.shape:g}"


def drawn_of(design: Design) -> Drawn:
    windows = design.windows
    return Drawn(windows=windows, tokens=windows * TOKENS, largest=TOKENS, upper=design.upper)


def text_of(windows: int, *, upper: float, seed: int) -> list[tuple[float, int]]:
    """The sum and the size of each window, in random order; the sizes differ."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 65, windows)
    if math.isfinite(upper):
        shares = rng.beta(0.5, 2.0, windows)
        return [(float(s * p * upper), int(s)) for s, p in zip(sizes, shares, strict=True)]
    effects = np.exp(rng.normal(size=windows))
    return [(float(s * e), int(s)) for s, e in zip(sizes, effects, strict=True)]


def bands_of(text: list[tuple[float, int]], *, upper: float, alpha: float = 0.05) -> list[Band]:
    """The band before the first window, and after each."""
    sizes = [size for _, size in text]
    drawn = Drawn(windows=len(text), tokens=sum(sizes), largest=max(sizes), upper=upper)
    bands = [drawn.band(alpha)] if math.isinf(upper) else []
    for total, size in text:
        drawn.add(total, size)
        bands.append(drawn.band(alpha))
    return bands


def mean_of(text: list[tuple[float, int]]) -> float:
    return sum(total for total, _ in text) / sum(size for _, size in text)


# One text


@pytest.mark.parametrize("upper", [math.inf, 1.0, math.log(2), 20.0])
def test_after_the_last_window_the_mean_is_known(upper: float) -> None:
    text = text_of(50, upper=upper, seed=3)
    last = bands_of(text, upper=upper)[-1]
    assert last.method == "exact"
    assert last.low == last.high == pytest.approx(mean_of(text))


@pytest.mark.parametrize(("upper", "method"), [(math.inf, "asymptotic"), (1.0, "bounded")])
def test_before_the_last_window_the_band_says_by_which_method(upper: float, method: str) -> None:
    bands = bands_of(text_of(50, upper=upper, seed=3), upper=upper)
    assert {band.method for band in bands[:-1]} == {method}


@pytest.mark.parametrize("upper", [math.inf, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_what_was_seen_is_a_lower_bound_that_is_certain(upper: float, seed: int) -> None:
    text = text_of(60, upper=upper, seed=seed)
    tokens, seen = sum(size for _, size in text), 0.0
    for (total, _), band in zip(text, bands_of(text, upper=upper)[-60:], strict=True):
        seen += total
        assert seen / tokens <= band.low * (1 + 1e-12)
        assert band.low <= band.high or band.method == "bounded"


@pytest.mark.parametrize("upper", [1.0, math.log(2), 20.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_bounded_band_lies_in_what_is_possible(upper: float, seed: int) -> None:
    for band in bands_of(text_of(60, upper=upper, seed=seed), upper=upper):
        assert 0 <= band.low <= band.high <= upper * (1 + 1e-12)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_bounded_band_closes_on_what_never_varies(share: float) -> None:
    bands = bands_of([(share * 64.0, 64)] * 200, upper=1.0)
    assert bands[99].high - bands[99].low < 0.25
    for band in bands:
        assert band.low <= share <= band.high


def test_an_asymptotic_band_knows_no_upper_end_at_first() -> None:
    bands = bands_of(text_of(60, upper=math.inf, seed=1), upper=math.inf)
    assert [math.isinf(band.high) for band in bands] == [n < LEAST_WINDOWS for n in range(61)]


@pytest.mark.parametrize("upper", [math.inf, 1.0])
def test_more_certainty_takes_a_wider_band(upper: float) -> None:
    text = text_of(200, upper=upper, seed=2)
    at = [bands_of(text, upper=upper, alpha=alpha)[100] for alpha in (0.2, 0.05, 0.001)]
    widths = [band.high - band.low for band in at]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


@pytest.mark.parametrize("upper", [math.inf, 1.0])
@pytest.mark.parametrize(
    ("bad", "below", "above"), [(math.nan, None, None), (math.inf, False, True)]
)
@pytest.mark.parametrize("place", [3, 39])
def test_a_sum_that_is_no_finite_number_is_below_no_limit(
    upper: float, bad: float, below: bool | None, above: bool | None, place: int
) -> None:
    text = text_of(40, upper=upper, seed=1)
    text[place] = (bad, 8)
    for band in bands_of(text, upper=upper)[-(40 - place) :]:
        assert decide(band, "<=", 1e9) is below
        assert decide(band, ">=", 0.0) is above


# Decisions


@pytest.mark.parametrize(
    ("low", "high", "operator", "limit", "expected"),
    [
        (1.0, 2.0, "<=", 3.0, True),
        (1.0, 2.0, "<=", 2.0, True),
        (1.0, 2.0, "<=", 1.5, None),
        (1.0, 2.0, "<=", 1.0, None),
        (1.0, 2.0, "<=", 0.5, False),
        (1.0, 2.0, ">=", 0.5, True),
        (1.0, 2.0, ">=", 1.0, True),
        (1.0, 2.0, ">=", 1.5, None),
        (1.0, 2.0, ">=", 2.0, None),
        (1.0, 2.0, ">=", 2.5, False),
        (1.0, 1.0, "<=", 1.0, True),
        (1.0, 1.0, ">=", 1.0, True),
        (1.0, math.inf, "<=", 0.5, False),
        (-math.inf, math.inf, "<=", 0.5, None),
        (math.nan, math.nan, "<=", 0.5, None),
        (math.nan, math.nan, ">=", 0.5, None),
    ],
)
def test_a_limit_is_decided_by_where_the_band_lies(
    low: float, high: float, operator: Any, limit: float, expected: bool | None
) -> None:
    assert decide(Band(low, high, "bounded"), operator, limit) is expected


# Order


def test_windows_are_drawn_in_an_order_that_the_seed_repeats() -> None:
    assert sorted(draw_order(100, 7)) == list(range(100))
    assert draw_order(100, 7) == draw_order(100, 7)
    assert draw_order(100, 7) != draw_order(100, 8)
    assert list(draw_order(100, 0)) != list(range(100))


# Many texts


@pytest.mark.parametrize("design", DESIGNS, ids=named)
def test_the_simulation_has_the_bands_of_the_program(design: Design) -> None:
    texts = design.texts(2, np.random.default_rng(11))
    lows, highs = design.bands(texts, ALPHA)
    looks = {1, 2, LEAST_WINDOWS - 1, LEAST_WINDOWS, design.windows - 1, design.windows}
    looks |= set(range(5, design.windows, design.windows // 12))
    for sums, low, high in zip(texts, lows, highs, strict=True):
        drawn = drawn_of(design)
        for t, total in enumerate(sums, 1):
            drawn.add(float(total), TOKENS)
            if t in looks:
                band = drawn.band(ALPHA)
                assert low[t - 1] == pytest.approx(band.low, rel=1e-6)
                assert high[t - 1] == pytest.approx(band.high, rel=1e-6)


def most_by_chance(replicates: int) -> float:
    """The largest rate that α still allows for in so many texts: 4 standard errors above."""
    return ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / replicates)


def check_endings(design: Design, replicates: int) -> None:
    found = endings(design, replicates, seed=7)
    rates = [wrong for wrong, _ in found]
    assert max(rates) <= most_by_chance(replicates), rates
    assert all(0 < used <= 1 for _, used in found)


@pytest.mark.parametrize(
    "design", [one for one in DESIGNS if one.required and one.windows < 1000], ids=named
)
def test_verdicts_are_seldom_wrong_although_every_window_is_looked_at(design: Design) -> None:
    check_endings(design, 200)


@pytest.mark.slow
@pytest.mark.parametrize("design", [one for one in DESIGNS if one.required], ids=named)
def test_verdicts_are_wrong_in_5_percent_at_most(design: Design) -> None:
    check_endings(design, 5000)


@pytest.mark.parametrize("design", [one for one in DESIGNS if one.windows == 1000], ids=named)
def test_a_limit_far_off_is_decided_by_a_part_of_the_text(design: Design) -> None:
    if design.metric == "agreement" or design.shape <= 1:
        found = dict(zip(LIMITS, endings(design, 50, seed=7), strict=True))
        assert found[0.7][1] < 0.25
        assert found[1.5][1] < 0.25


@pytest.mark.parametrize("design", [one for one in DESIGNS if one.metric == "agreement"], ids=named)
def test_a_bounded_band_holds_the_mean_at_all_times(design: Design) -> None:
    texts = design.texts(200, np.random.default_rng(5))
    low, high = design.bands(texts, ALPHA)
    means = texts.mean(axis=1, keepdims=True) / TOKENS
    missed = ((low > means * (1 + 1e-9)) | (high < means * (1 - 1e-9))).any(axis=1)
    assert missed.mean() <= most_by_chance(200)
