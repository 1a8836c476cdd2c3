"""Estimates: by hand, against NumPy, and against the published t table."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from klcli.judge.clusters import Clusters
from klcli.judge.intervals import Metric
from klcli.judge.metrics import BOUNDS, COMPARE_METRICS, MEAN_FIELDS, PERPLEXITY_METRICS
from klcli.judge.statistics import mean_metric as metric_of
from klcli.judge.statistics import summarise
from klcli.measure.columns import Column
from klcli.measure.scores import TokenScores, score_columns


def scores_of(*, paired: bool = True, tokens: int = 6, **given: Sequence[float]) -> TokenScores:
    """Scores of some tokens with zeros wherever nothing is given."""
    columns: dict[str, Column] = {
        name: np.zeros(tokens, dtype=t) for name, t in score_columns(paired=paired).items()
    }
    columns["window"] = np.arange(tokens, dtype=np.int32)
    columns["byte_end"] += 1
    return TokenScores(columns | {name: np.array(values) for name, values in given.items()})


def summary(scores: TokenScores) -> dict[str, Metric]:
    everything = np.ones(len(scores), dtype=bool)
    return summarise(scores, apart(np.arange(len(scores))), everything)


def apart(cluster: npt.NDArray[np.int64]) -> Clusters:
    """Clusters of which none follows on another, such as documents."""
    sizes = np.bincount(cluster)
    return Clusters(sizes, np.zeros(len(sizes), dtype=bool))


def mean_metric(x: npt.NDArray[np.float64], cluster: npt.NDArray[np.int64]) -> Metric:
    return metric_of(x, apart(cluster))


def number(x: float | None) -> float:
    assert x is not None
    return x


class TestMeans:
    def test_a_mean_with_its_clustered_error_by_hand(self) -> None:
        # Two clusters with residual sums -2 and 2 about the mean 2: Var = 2/1 · (4 + 4) / 4² = 1.
        found = mean_metric(np.array([1.0, 1.0, 3.0, 3.0]), np.array([0, 0, 1, 1]))
        assert found["mean"] == 2
        assert found["se"] == pytest.approx(1)
        assert found["ci_high"] == pytest.approx(2 + 12.706, rel=1e-4)
        assert found["design_effect"] == pytest.approx(1 / (4 / 3 / 4))

    def test_one_token_a_cluster_gives_the_textbook_error(self) -> None:
        x = np.random.default_rng(0).normal(size=50)
        found = mean_metric(x, np.arange(50))
        assert found["se"] == pytest.approx(x.std(ddof=1) / math.sqrt(50))
        assert found["design_effect"] == pytest.approx(1)

    def test_one_cluster_says_nothing_about_the_error(self) -> None:
        found = mean_metric(np.array([1.0, 2.0]), np.array([7, 7]))
        assert (found["mean"], found["se"], found["ci_low"]) == (1.5, None, None)

    def test_an_infinite_token_makes_the_mean_infinite(self) -> None:
        found = mean_metric(np.array([1.0, math.inf]), np.array([0, 1]))
        assert (found["mean"], found["se"], found["max"]) == (math.inf, None, math.inf)

    def test_no_token_has_no_mean(self) -> None:
        assert set(mean_metric(np.array([]), np.array([], dtype=int)).values()) == {None}

    def test_p999_needs_five_thousand_tokens(self) -> None:
        few, many = np.arange(4999.0), np.arange(5000.0)
        assert mean_metric(few, few.astype(int))["p999"] is None
        assert mean_metric(many, many.astype(int))["p999"] == pytest.approx(
            np.quantile(many, 0.999)
        )


class TestSummary:
    def test_every_metric_of_the_contract_is_there(self) -> None:
        assert list(summary(scores_of())) == list(COMPARE_METRICS)
        assert list(summary(scores_of(paired=False))) == list(PERPLEXITY_METRICS)
        for name, metric in summary(scores_of()).items():
            assert tuple(metric) == COMPARE_METRICS[name]

    def test_perplexity_is_exp_of_the_mean_and_its_ends(self) -> None:
        found = summary(scores_of(paired=False, nll=[1.0, 2, 3, 1, 2, 3]))
        assert found["perplexity"]["value"] == pytest.approx(math.exp(2))
        low = found["nll"]["ci_low"]
        assert low is not None
        assert found["perplexity"]["ci_low"] == pytest.approx(math.exp(low))

    def test_bits_per_byte_counts_the_bytes_of_scored_tokens(self) -> None:
        found = summary(
            scores_of(paired=False, nll=[math.log(2)] * 6, byte_end=[3] * 6, words=[1, 0, 0] * 2)
        )
        assert found["bits_per_byte"]["value"] == pytest.approx(1 / 3)
        assert found["byte_perplexity"]["value"] == pytest.approx(2 ** (1 / 3))
        assert found["word_perplexity"]["value"] == pytest.approx(2**3)

    def test_without_a_text_there_are_no_bits_per_byte(self) -> None:
        found = summary(scores_of(paired=False, byte_start=[-1] * 6, byte_end=[-1] * 6))
        assert found["bits_per_byte"]["value"] is None
        assert found["word_perplexity"]["value"] is None

    def test_flips_by_hand(self) -> None:
        found = summary(
            scores_of(
                token_id=[1, 1, 1, 1, 1, 1],
                top1_reference=[1, 1, 1, 0, 0, 0],
                top1_candidate=[1, 0, 0, 1, 0, 2],
            )
        )
        flips = {name: found["flips"][name] for name in ("lost", "gained", "net", "volume")}
        assert flips == {"lost": 2, "gained": 1, "net": -1 / 6, "volume": 0.5}
        assert found["top1_agreement"]["value"] == pytest.approx(2 / 6)

    def test_net_flips_have_the_interval_and_p_of_the_paired_t_test(self) -> None:
        # Differences 0 -1 -1 1 0 0: mean -1/6, s = √(17/30), t = -1/6 / (s/√6) with 5 d.f.
        found = summary(
            scores_of(
                token_id=[1, 1, 1, 1, 1, 1],
                top1_reference=[1, 1, 1, 0, 0, 0],
                top1_candidate=[1, 0, 0, 1, 0, 2],
            )
        )["flips"]
        half = 2.5706 * math.sqrt(17 / 30 / 6)
        assert found["net_low"] == pytest.approx(-1 / 6 - half, rel=1e-3)
        assert found["net_high"] == pytest.approx(-1 / 6 + half, rel=1e-3)
        assert found["p"] == pytest.approx(0.610881, abs=1e-6)
        assert number(found["volume_low"]) < 0.5 < number(found["volume_high"])

    def test_no_flips_are_no_certainty(self) -> None:
        found = summary(scores_of())
        flips, agreement = found["flips"], found["top1_agreement"]
        assert (flips["net"], flips["volume"], flips["p"]) == (0, 0, 1)
        assert number(flips["volume_high"]) > 0.3
        assert flips["net_high"] == flips["volume_high"] == -number(flips["net_low"])
        assert (agreement["value"], agreement["ci_high"]) == (1, 1)
        assert number(agreement["ci_low"]) < 0.7

    def test_delta_p_rms_has_an_interval(self) -> None:
        delta_p = np.random.default_rng(3).normal(size=200)
        found = summary(scores_of(tokens=200, delta_p=list(delta_p)))["delta_p_rms"]
        error = (delta_p**2).std(ddof=1) / math.sqrt(200) / (2 * math.sqrt((delta_p**2).mean()))
        assert found["se"] == pytest.approx(error)
        assert found["ci_high"] == pytest.approx(number(found["value"]) + 1.97196 * error)

    def test_equal_models_have_a_delta_p_rms_of_0(self) -> None:
        found = summary(scores_of())["delta_p_rms"]
        assert found == {"value": 0, "se": None, "ci_low": None, "ci_high": None}

    def test_one_cluster_gives_no_interval_at_all(self) -> None:
        scores = scores_of(kl=[1.0, 2, 3, 4, 5, 6], delta_p=[0.1] * 6)
        one = apart(np.zeros(6, dtype=np.int64))
        found = summarise(scores, one, np.ones(6, dtype=bool))
        unknown = ("se", "ci_low", "ci_high", "design_effect", "n_eff", "p", "net_low",
                   "median_low", "p99_high", "volume_high")  # fmt: skip
        for metric in found.values():
            assert {metric[name] for name in unknown if name in metric} <= {None}

    def test_delta_p_rms_is_the_root_of_the_mean_square(self) -> None:
        found = summary(scores_of(delta_p=[0.3, -0.4, 0.0, 0, 0, 0]))
        assert found["delta_p_rms"]["value"] == pytest.approx(math.sqrt(0.25 / 6))
        assert found["delta_p"]["mean"] == pytest.approx(-0.1 / 6)

    def test_excluded_tokens_count_nowhere(self) -> None:
        nan = math.nan
        found = summary(scores_of(kl=[1.0, nan, 2, 1, 2, 1], excluded=[False, True] + [False] * 4))
        assert found["kl"]["mean"] == pytest.approx(1.4)

    def test_tokens_without_a_target_count_for_kl_only(self) -> None:
        found = summary(scores_of(kl=[1.0] * 6, token_id=[-1] * 6, nll_reference=[math.nan] * 6))
        assert found["kl"]["mean"] == 1
        assert found["nll_reference"] == dict.fromkeys(MEAN_FIELDS)
        assert found["perplexity_reference"]["value"] is None
        assert found["flips"]["lost"] is None

    def test_a_perplexity_beyond_float64_is_infinite(self) -> None:
        found = summary(scores_of(paired=False, nll=[1e4] * 6))
        assert found["perplexity"]["value"] == math.inf


COLUMNS = sorted(BOUNDS.keys() & score_columns(paired=True).keys())


class TestBounds:
    """No interval goes on where its number cannot go."""

    def test_every_bounded_number_is_a_metric(self) -> None:
        assert BOUNDS.keys() <= COMPARE_METRICS.keys() | PERPLEXITY_METRICS.keys()

    @pytest.mark.parametrize("name", COLUMNS)
    def test_an_interval_is_cut_off_at_each_bound(self, name: str) -> None:
        low, high = BOUNDS[name]
        high = min(high, 9.0)
        for x in ([low] * 5 + [high], [high] * 5 + [low]):
            columns = {**scores_of().columns, name: np.array(x)}
            found = summary(TokenScores(columns))[name]
            free = mean_metric(np.array(x), np.arange(6))
            assert found["ci_low"] == max(low, number(free["ci_low"])) < number(found["mean"])
            assert found["ci_high"] == min(BOUNDS[name][1], number(free["ci_high"]))
            assert (found["se"], found["n_eff"]) == (free["se"], free["n_eff"])
            assert number(free["ci_low"]) < low or number(free["ci_high"]) > high

    def test_the_shares_of_a_short_text_stay_below_all(self) -> None:
        found = summary(scores_of(overlap_5=[1.0, 1, 1, 1, 1, 0.4], tv=[0, 0, 0, 0.1, 0, 0.9]))
        assert (found["overlap_5"]["ci_high"], found["tv"]["ci_low"]) == (1, 0)

    def test_perplexity_is_1_at_least(self) -> None:
        found = summary(scores_of(paired=False, nll=[0.0, 0, 0, 0, 0, 3], words=[1] * 6))
        assert found["nll"]["ci_low"] == found["bits_per_byte"]["ci_low"] == 0
        for name in ("perplexity", "word_perplexity", "byte_perplexity"):
            assert found[name]["ci_low"] == 1

    def test_the_rms_of_changes_of_probabilities_is_1_at_most(self) -> None:
        found = summary(scores_of(delta_p=[1.0, -1, 1, 0, 1, 1]))["delta_p_rms"]
        assert found["ci_high"] == 1
        assert number(found["value"]) + number(found["se"]) * 2.57 > 1

    def test_net_flips_are_all_tokens_at_most(self) -> None:
        found = summary(
            scores_of(
                tokens=12,
                token_id=[1] * 12,
                top1_reference=[1, 1, 0] * 4,
                top1_candidate=[0] * 12,
            )
        )["flips"]
        assert found["net"] == pytest.approx(-2 / 3)
        assert found["net_low"] == -1
        assert -2 / 3 < number(found["net_high"]) < 0

    def test_a_bound_that_a_token_breaks_is_none(self) -> None:
        """As KL by llama.cpp's rule, of which rounding leaves less than 0."""
        x = [-0.001, 0.002, 0, -0.001, 0.001, 0]
        found = summary(scores_of(kl=x))["kl"]
        assert found == mean_metric(np.array(x), np.arange(6))
        assert number(found["ci_low"]) < 0

    def test_rounding_beyond_a_bound_does_not_lift_it(self) -> None:
        found = summary(scores_of(nll_reference=[-1e-7, 0, 0, 0, 0, 1]))["nll_reference"]
        assert found["ci_low"] == 0
        lowest = summary(scores_of(nll_reference=[-1e-7] * 6))["nll_reference"]
        assert lowest["ci_low"] == lowest["mean"] == lowest["ci_high"]
