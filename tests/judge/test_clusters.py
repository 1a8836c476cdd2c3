"""Clusters: documents, or runs of windows; errors by hand."""

import numpy as np
import pytest

from klcli.judge.clusters import Clusters, cluster_windows, follow


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


class TestCorrelation:
    def test_a_trend_correlates(self) -> None:
        # Deviations -1.5 -.5 .5 1.5: products .75 -.25 .75, mean 5/12, over the variance 5/4.
        x, clusters = runs(1, 2, 3, 4)
        assert clusters.lag1_correlation(x) == pytest.approx(1 / 3)

    def test_turns_correlate_negatively(self) -> None:
        x, clusters = runs(1, -1, 1, -1)
        assert clusters.lag1_correlation(x) == pytest.approx(-1)

    def test_clusters_of_different_corpora_and_equal_ones_have_none(self) -> None:
        x, clusters = runs(2, 2, 2)
        assert clusters.lag1_correlation(x) is None
        apart = Clusters(np.ones(3, dtype=int), np.zeros(3, dtype=bool))
        assert apart.lag1_correlation(x[:3]) is None
