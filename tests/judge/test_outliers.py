"""Outliers: a token is held against tokens of like confidence, never against a fixed limit."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from klcli.judge.outliers import THRESHOLD, find, fit
from klcli.measure.scores import TokenScores


def scores_of(kl: list[float], confidence: list[float] | float = 0.6) -> TokenScores:
    sure = np.broadcast_to(np.array(confidence, dtype=float), (len(kl),))
    return TokenScores(
        {"token_id": np.zeros(len(kl)), "kl": np.array(kl), "confidence_reference": sure}
    )


def rate(scores: TokenScores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The score of every token, and the flagged ones."""
    return fit(scores).rate(scores)


def choose(scores: TokenScores, count: int) -> list[int]:
    """The rows that are shown."""
    return [rated.row for rated in find(scores, fit(scores), count)[0]]


def lognormal(count: int, seed: int = 0, center: float = 0.01) -> list[float]:
    return list(center * np.exp(np.random.default_rng(seed).normal(size=count)))


def test_the_score_is_the_robust_z_of_the_logarithm() -> None:
    kl = lognormal(101)
    x = np.log(np.array(kl) + 1e-9)
    z = (x - np.median(x)) / (1.4826 * np.median(np.abs(x - np.median(x))))
    score, flagged = rate(scores_of(kl))
    np.testing.assert_allclose(score, z)
    np.testing.assert_array_equal(flagged, z > THRESHOLD)


def test_one_token_far_from_its_like_is_flagged() -> None:
    _, flagged = rate(scores_of([*lognormal(200), 5.0]))
    assert flagged[200]
    assert flagged.sum() <= 2


def test_what_is_usual_where_the_reference_is_unsure_stands_out_where_it_is_certain() -> None:
    unsure, certain = lognormal(200, 1, center=0.1), lognormal(200, 2, center=1e-5)
    kl, confidence = [*unsure, *certain, 0.1], [0.3] * 200 + [0.99] * 201
    score, flagged = rate(scores_of(kl, confidence))
    assert flagged[400]
    assert not flagged[:200].any() or score[:200].max() < score[400]


def test_a_bin_with_few_tokens_joins_its_neighbour() -> None:
    kl = [*lognormal(100), *lognormal(19, 3)]
    split = rate(scores_of(kl, [0.1] * 100 + [0.3] * 19))
    whole = rate(scores_of(kl, 0.1))
    np.testing.assert_allclose(split[0], whole[0])


def test_twenty_tokens_are_a_bin_of_their_own() -> None:
    kl = [*lognormal(100), *lognormal(20, 3, center=1.0)]
    split = rate(scores_of(kl, [0.1] * 100 + [0.3] * 20))
    assert abs(np.median(split[0][100:])) < 1e-9


def test_where_most_tokens_are_alike_the_top_hundredth_is_flagged() -> None:
    score, flagged = rate(scores_of([0.5] * 300 + [0.6, 0.7]))
    assert flagged.tolist() == [False] * 300 + [True, True]
    assert np.isnan(score).all()


def test_equal_models_have_no_outliers() -> None:
    scores = scores_of([0.0] * 300)
    _, flagged = rate(scores)
    assert not flagged.any()
    assert choose(scores, 10) == []


def test_excluded_tokens_are_neither_rated_nor_shown() -> None:
    scores = scores_of([*lognormal(100), math.nan])
    _, flagged = rate(scores)
    assert not flagged[100]
    assert 100 not in choose(scores, 200)


def test_an_infinite_kl_comes_first() -> None:
    scores = scores_of([*lognormal(100), math.inf])
    assert choose(scores, 3)[0] == 100


@pytest.mark.parametrize("count", [0, 1, 10])
def test_the_largest_kl_is_always_shown_and_at_most_twice_the_count(count: int) -> None:
    kl = lognormal(500)
    scores = scores_of(kl)
    chosen = choose(scores, count)
    assert set(np.argsort(-np.array(kl))[:count]) <= set(chosen)
    assert len(chosen) <= 2 * count
    assert chosen == sorted(chosen, key=lambda i: -kl[i])
