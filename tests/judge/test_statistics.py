"""Estimates: by hand, against NumPy, and against the published t table."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from klcli.judge.statistics import (
    COMPARE_METRICS,
    MEAN_FIELDS,
    PERPLEXITY_METRICS,
    cluster_windows,
    mean_metric,
    quantile,
    student_t,
    summarise,
)
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


def summary(scores: TokenScores) -> dict[str, dict[str, float | None]]:
    everything = np.ones(len(scores), dtype=bool)
    return summarise(scores, np.arange(len(scores)), everything)


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


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.9, 0.99, 1])
def test_quantiles_are_those_of_numpy(share: float) -> None:
    x = np.sort(np.random.default_rng(1).normal(size=37))
    assert quantile(x, share) == pytest.approx(np.quantile(x, share))


def test_a_quantile_among_infinities_is_not_nan() -> None:
    assert quantile(np.array([0.0, math.inf, math.inf]), 0.75) == math.inf


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (10, 2.22814), (31, 2.03951)],
)
def test_student_t_is_that_of_the_tables(degrees: int, expected: float) -> None:
    assert student_t(0.975, degrees) == pytest.approx(expected, rel=2e-3)


class TestClusters:
    def test_twenty_documents_are_the_clusters(self) -> None:
        cluster = cluster_windows(np.repeat(np.arange(20), 2))
        assert cluster.tolist() == np.repeat(np.arange(20), 2).tolist()

    @pytest.mark.parametrize("windows", [1, 5, 32, 33, 100, 1000])
    def test_windows_of_one_document_make_at_most_32_equal_runs(self, windows: int) -> None:
        cluster = cluster_windows(np.zeros(windows, dtype=int))
        runs = np.unique(cluster, return_counts=True)[1]
        assert len(runs) == windows if windows <= 32 else 16 <= len(runs) <= 32
        assert set(runs[:-1]) <= {runs[0]}
        assert (np.diff(cluster) >= 0).all()

    def test_no_run_reaches_from_one_document_into_the_next(self) -> None:
        cluster = cluster_windows(np.array([0] * 33 + [1] * 67))
        assert not set(cluster[:33]) & set(cluster[33:])
        assert cluster.max() + 1 == len(np.unique(cluster))


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
        assert found["flips"] == {
            "lost": 2, "gained": 1, "net": -1 / 6, "volume": 0.5, "p": None,
        }  # fmt: skip
        assert found["top1_agreement"]["value"] == pytest.approx(2 / 6)

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
