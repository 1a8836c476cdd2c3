"""Intervals: against NumPy, by hand, by a bootstrap of clusters."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from klcli.judge.clusters import Clusters
from klcli.judge.intervals import (
    mean_with_error,
    proportion,
    quantile,
    quantile_interval,
    wilson,
)

Floats = npt.NDArray[np.float64]


def documents(count: int, size: int) -> Clusters:
    return Clusters(np.full(count, size), np.zeros(count, dtype=bool))


def clustered(count: int, size: int, seed: int) -> Floats:
    """Heavy-tailed numbers that share an effect with their cluster."""
    rng = np.random.default_rng(seed)
    return np.exp(np.repeat(rng.normal(size=count) / 2, size) + rng.normal(size=count * size))


def number(x: float | None) -> float:
    assert x is not None
    return x


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.9, 0.99, 1])
def test_quantiles_are_those_of_numpy(share: float) -> None:
    x = np.sort(np.random.default_rng(1).normal(size=37))
    assert quantile(x, share) == pytest.approx(np.quantile(x, share))


def test_a_quantile_among_infinities_is_not_nan() -> None:
    assert quantile(np.array([0.0, math.inf, math.inf]), 0.75) == math.inf


class TestMeans:
    def test_effective_tokens_are_the_tokens_over_the_design_effect(self) -> None:
        x, clusters = clustered(40, 25, 0), documents(40, 25)
        found = mean_with_error(x, clusters)
        assert number(found["design_effect"]) > 1.5
        assert found["n_eff"] == pytest.approx(1000 / number(found["design_effect"]))

    def test_equal_tokens_of_a_cluster_count_once(self) -> None:
        x = np.repeat(np.random.default_rng(2).normal(size=50), 10)
        found = mean_with_error(x, documents(50, 10))
        assert found["n_eff"] == pytest.approx(50, rel=0.03)

    @pytest.mark.parametrize("level", [0.5, 0.95, 0.99999, 1 - 1e-13, 1 - 2**-53])
    def test_half_of_an_interval_is_scipys_quantile_however_sure_it_is(self, level: float) -> None:
        for count in (2, 3, 4, 40):
            sizes = np.ones(count, dtype=int)
            clusters = Clusters(sizes, np.zeros(count, dtype=bool), level)
            found = mean_with_error(np.arange(count) ** 2.0, clusters)
            expected = number(found["se"]) * stats.t.isf((1 - level) / 2, count - 1)
            half = number(found["ci_high"]) - number(found["mean"])
            assert half == pytest.approx(expected, rel=1e-12)


class TestProportions:
    @pytest.mark.parametrize(
        ("share", "n", "ends"),
        [(0.0, 10, (0.0, 0.2775)), (0.5, 10, (0.2366, 0.7634)), (0.9, 50, (0.7864, 0.9565))],
    )
    def test_wilson_is_that_of_the_tables(
        self, share: float, n: int, ends: tuple[float, float]
    ) -> None:
        assert wilson(share, n, 1.959964) == pytest.approx(ends, abs=5e-5)

    def test_tokens_that_flip_together_count_once(self) -> None:
        hits = np.repeat(np.random.default_rng(0).random(100) < 0.2, 10)
        found = proportion(hits, documents(100, 10))
        assert found["design_effect"] == pytest.approx(10, rel=0.02)
        low, high = wilson(number(found["value"]), number(found["n_eff"]), 1.9842)
        assert (found["ci_low"], found["ci_high"]) == pytest.approx((low, high), rel=1e-4)

    @pytest.mark.parametrize("share", [0, 1])
    def test_what_never_happened_may_still_happen(self, share: int) -> None:
        found = proportion(np.full(600, bool(share)), documents(30, 20))
        assert (found["se"], found["design_effect"], found["n_eff"]) == (0, None, 600)
        width = number(found["ci_high"]) - number(found["ci_low"])
        assert 1 / 600 < width < 10 / 600
        assert share in (found["ci_low"], found["ci_high"])

    def test_there_are_never_more_effective_tokens_than_tokens(self) -> None:
        found = proportion(np.tile([True, False], 50), documents(50, 2))
        assert found["design_effect"] == 0
        assert found["n_eff"] == 100


class TestQuantiles:
    @pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
    def test_the_interval_is_about_that_of_a_bootstrap_of_clusters(self, share: float) -> None:
        count, size = 120, 40
        x = clustered(count, size, 5)
        rng, rows = np.random.default_rng(6), x.reshape(count, size)
        draws = [np.quantile(rows[rng.integers(0, count, count)], share) for _ in range(1000)]
        expected = np.quantile(draws, [0.025, 0.975])
        found = quantile_interval(x, np.sort(x), share, documents(count, size))
        middle, width = np.quantile(x, share), expected[1] - expected[0]
        assert number(found[0]) < middle < number(found[1])
        np.testing.assert_allclose(np.array(found, dtype=float), expected, atol=0.2 * width)

    def test_an_end_beyond_the_data_is_not_known(self) -> None:
        x = np.arange(100.0)
        low, high = quantile_interval(x, x, 0.99, documents(100, 1))
        assert low is not None
        assert high is None

    def test_where_nearly_all_are_alike_so_are_the_ends(self) -> None:
        x = np.array([0.5] * 20 + [1.0] * 980)
        assert quantile_interval(x, x, 0.5, documents(100, 10)) == (1, 1)

    def test_ties_at_the_largest_number_do_not_hide_the_clusters(self) -> None:
        x = np.repeat([0.0, 1.0], 500)
        low, high = quantile_interval(x, x, 0.55, documents(20, 50))
        assert (low, high) == (0, 1)

    def test_infinities_have_their_place(self) -> None:
        x = np.array([0.0] * 500 + [math.inf] * 500)
        clusters = Clusters(np.ones(1000, dtype=int), np.zeros(1000, dtype=bool))
        assert quantile_interval(x, x, 0.5, clusters) == (0, math.inf)
