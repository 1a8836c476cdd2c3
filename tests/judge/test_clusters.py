"""Clusters: documents, or runs of windows; errors by hand."""

import numpy as np
import pytest

from klcli.judge.clusters import Clusters, cluster_windows, follow
from klcli.judge.standard_error import StandardError, standard_error
from klcli.judge.student import student_t


class TestForming:
    def test_twenty_documents_are_the_clusters(self) -> None:
        document = np.repeat(np.arange(20), 2)
        cluster = cluster_windows(document)
        assert cluster.tolist() == document.tolist()

    def test_clusters_follow_within_a_corpus(self) -> None:
        cluster, corpus = np.array([0, 0, 1, 2, 3, 3]), np.array([0, 0, 0, 1, 1, 1])
        assert follow(cluster, corpus).tolist() == [False, True, False, True]

    @pytest.mark.parametrize("windows", [1, 5, 32, 33, 100, 1000])
    def test_windows_of_one_document_make_at_most_32_equal_runs(self, windows: int) -> None:
        cluster = cluster_windows(np.zeros(windows, dtype=int))
        runs = np.unique(cluster, return_counts=True)[1]
        assert len(runs) == windows if windows <= 32 else 16 <= len(runs) <= 32
        assert set(runs[:-1]) <= {runs[0]}
        assert (np.diff(cluster) >= 0).all()

    def test_no_run_reaches_from_one_document_into_the_next(self) -> None:
        document = np.array([0] * 33 + [1] * 67)
        cluster = cluster_windows(document)
        assert not set(cluster[:33]) & set(cluster[33:])
        assert cluster.max() + 1 == len(np.unique(cluster))


def runs(*means: float, size: int = 2) -> tuple[np.ndarray, Clusters]:
    """Runs of one document, each of some tokens with the same number."""
    follows = np.arange(len(means)) > 0
    return np.repeat(means, size), Clusters(np.full(len(means), size), follows)


class TestVariance:
    def test_independent_clusters_have_the_plain_clustered_variance(self) -> None:
        clusters = Clusters(np.ones(3, dtype=int), np.zeros(3, dtype=bool))
        assert clusters.variance(np.array([-2.0, 1.0, 1.0])) == pytest.approx(3 / 2 * 6)
        assert clusters.degrees == 2

    def test_runs_that_go_together_have_their_covariance_too(self) -> None:
        _, clusters = runs(0, 0, 0, 0)
        assert clusters.variance(np.array([-1.0, -1, 1, 1])) == pytest.approx(
            4 / 3 * (4 + 2 * (1 + 3 * 4 / 16))
        )
        assert clusters.degrees == 1

    def test_runs_that_go_against_each_other_make_no_error_smaller(self) -> None:
        _, clusters = runs(0, 0, 0, 0)
        assert clusters.variance(np.array([-2.0, 2, -2, 2])) == pytest.approx(4 / 3 * 16)

    def test_clusters_of_which_no_token_is_left_do_not_count(self) -> None:
        _, clusters = runs(0, 0, 0)
        left = clusters.among(np.array([True, True, False, False, True, True]))
        assert len(left) == 2
        assert not left.has_neighbours


class TestCosines:
    """Equal-weighted cosines (Lazarus, Lewis, Stock and Watson 2018)."""

    def test_the_variance_is_the_mean_square_of_the_projections(self) -> None:
        # cos(π/8·(1, 3, 5, 7)) and so on, by hand for s = (-1, -1, 1, 1): Λ₁ = -√½·2·1.30656,
        # Λ₂ = 0, Λ₃ = √½·2·0.54120; G · (Λ₁² + Λ₂² + Λ₃²)/3 = 4 · (3.41421 + 0.58579)/3.
        _, clusters = runs(0, 0, 0, 0)
        found = clusters.variance_by_cosines(np.array([-1.0, -1, 1, 1]))
        assert found is not None
        assert found[0] == pytest.approx(16 / 3)
        assert found[1] == 3

    @pytest.mark.parametrize(
        ("count", "cosines"), [(2, 1), (3, 2), (4, 3), (19, 3), (20, 4), (25, 5), (29, 5)]
    )
    def test_there_are_a_fifth_as_many_as_clusters(self, count: int, cosines: int) -> None:
        _, clusters = runs(*range(count))
        found = clusters.variance_by_cosines(np.arange(float(count)) - (count - 1) / 2)
        assert found is not None
        assert found[1] == cosines

    def test_many_clusters_and_those_that_do_not_follow_have_none(self) -> None:
        _, many = runs(*range(30))
        assert many.variance_by_cosines(np.zeros(30)) is None
        apart = Clusters(np.ones(5, dtype=int), np.zeros(5, dtype=bool))
        assert apart.variance_by_cosines(np.zeros(5)) is None

    def test_noise_has_the_variance_of_its_total(self) -> None:
        _, clusters = runs(*range(20))
        rng, found = np.random.default_rng(0), []
        for _ in range(2000):
            x = rng.normal(size=20)
            result = clusters.variance_by_cosines(x - x.mean())
            assert result is not None
            found.append(result[0])
        assert np.mean(found) == pytest.approx(20, rel=0.05)

    def test_a_slow_wave_that_neighbours_tell_little_of_widens_the_interval(self) -> None:
        x = np.cos(np.pi * (np.arange(20) + 0.5) / 20)
        tokens, clusters = runs(*x)
        found = standard_error(clusters.sums(tokens, tokens.mean()), 0.0, clusters)
        alone = StandardError(clustered=found.clustered, degrees=found.degrees, independent=0.0)
        assert found.half_width(0.95) > 1.5 * alone.half_width(0.95)
        assert found.p(0.5) > alone.p(0.5)

    def test_where_neighbours_do_not_differ_otherwise_the_clusters_decide(self) -> None:
        tokens, clusters = runs(*np.tile([1.0, -1.0], 10))
        found = standard_error(clusters.sums(tokens, tokens.mean()), 0.0, clusters)
        assert found.half_width(0.95) == -student_t(0.025, 9) * found.clustered

    @pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
    def test_the_p_is_that_of_the_interval_that_ends_at_0(self, level: float) -> None:
        for seed in range(20):
            x = np.random.default_rng(seed).normal(size=12)
            tokens, clusters = runs(*x)
            found = standard_error(clusters.sums(tokens, tokens.mean()), 0.0, clusters)
            assert found.p(found.half_width(level)) == pytest.approx(1 - level)


class TestCorrelation:
    def test_a_trend_correlates(self) -> None:
        # Deviations -1.5 -.5 .5 1.5: products .75 -.25 .75, mean 5/12, over the variance 5/4.
        x, clusters = runs(1, 2, 3, 4)
        assert clusters.lag1_correlation(clusters.sums(x)) == pytest.approx(1 / 3)

    def test_turns_correlate_negatively(self) -> None:
        x, clusters = runs(1, -1, 1, -1)
        assert clusters.lag1_correlation(clusters.sums(x)) == pytest.approx(-1)

    def test_clusters_of_different_corpora_and_equal_ones_have_none(self) -> None:
        x, clusters = runs(2, 2, 2)
        assert clusters.lag1_correlation(clusters.sums(x)) is None
        apart = Clusters(np.ones(3, dtype=int), np.zeros(3, dtype=bool))
        assert apart.lag1_correlation(apart.sums(x[:3])) is None
