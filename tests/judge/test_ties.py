"""Clusters that happen to tie are no certainty: their error is that of independent tokens."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from klcli.judge.clusters import Clusters
from klcli.judge.intervals import Metric
from klcli.judge.statistics import summarise
from klcli.measure.scores import TokenScores
from tests.judge.test_statistics import scores_of

SIZE = 50


def pieces(count: int) -> Clusters:
    return Clusters(np.full(count, SIZE), np.arange(count) > 0)


def summary(count: int, **given: Sequence[float]) -> dict[str, Metric]:
    """The metrics of clusters of 50 tokens of which each holds the same."""
    columns = {name: list(values) * count for name, values in given.items()}
    scores: TokenScores = scores_of(paired=True, tokens=SIZE * count, **columns)
    return summarise(scores, pieces(count), np.ones(len(scores), dtype=bool))


def flips(lost: int, gained: int) -> dict[str, Sequence[float]]:
    """The columns of one cluster with so many flips; nobody is right elsewhere."""
    rest = SIZE - lost - gained
    return {
        "token_id": [1] * SIZE,
        "top1_reference": [1] * lost + [0] * gained + [2] * rest,
        "top1_candidate": [0] * lost + [1] * gained + [2] * rest,
    }


@pytest.mark.parametrize("count", [2, 3, 25, 40])
@pytest.mark.parametrize(("lost", "gained"), [(3, 0), (0, 1), (5, 4), (0, SIZE), (2, 2)])
def test_net_flips_of_clusters_that_tie_are_no_surer_than_mcnemars(
    count: int, lost: int, gained: int
) -> None:
    found = summary(count, **flips(lost, gained))["flips"]
    z = math.sqrt(count) * (gained - lost) / math.sqrt(gained + lost)
    independent = math.erfc(abs(z) / math.sqrt(2))
    assert found["p"] is not None
    assert found["p"] >= independent
    low, high, net = (found[name] for name in ("net_low", "net_high", "net"))
    assert low is not None and high is not None and net is not None  # noqa: PT018
    half = 1.96 * math.sqrt(count * (gained + lost)) / (count * SIZE)
    assert max(high - net, net - low) >= min(half, 1 - abs(net), 1.0)
    assert low < high


def test_two_windows_that_lose_alike_do_not_prove_that_the_change_hurts() -> None:
    found = summary(2, **flips(3, 0))["flips"]
    assert found["p"] is not None
    assert found["p"] > 0.05


COLUMNS = ("kl", "tv", "overlap_5", "nll_candidate", "rank_reference", "delta_p")


@pytest.mark.parametrize("count", [2, 5, 40])
@pytest.mark.parametrize("column", COLUMNS)
def test_means_of_clusters_that_tie_have_the_error_of_independent_tokens(
    column: str, count: int
) -> None:
    x = np.linspace(0, 1, SIZE) ** 2
    found = summary(count, **{column: x.tolist()})[column]
    independent = np.tile(x, count).std(ddof=1) / math.sqrt(count * SIZE)
    assert found["se"] == pytest.approx(independent)
    assert found["design_effect"] == pytest.approx(0, abs=1e-12)
    assert found["n_eff"] == pytest.approx(count * SIZE)
    assert found["lag1_correlation"] is None


@pytest.mark.parametrize("count", [2, 5, 40])
def test_so_has_any_number_that_follows_from_one(count: int) -> None:
    x = np.linspace(0, 1, SIZE) ** 2
    agrees = [0] * 10 + [1] * 40
    found = summary(
        count, nll_candidate=x.tolist(), delta_p=x.tolist(), kl=x.tolist(),
        top1_reference=[1] * SIZE, top1_candidate=agrees,
    )  # fmt: skip
    agreement = found["top1_agreement"]
    assert agreement["se"] == pytest.approx(math.sqrt(0.2 * 0.8 / (count * SIZE - 1)))
    rms = found["delta_p_rms"]["se"]
    squares = np.tile(x**2, count)
    expected = squares.std(ddof=1) / math.sqrt(len(squares)) / (2 * math.sqrt(squares.mean()))
    assert rms == pytest.approx(expected)
    for name, middle, low, high in [
        ("perplexity_candidate", "value", "ci_low", "ci_high"),
        ("delta_p_rms", "value", "ci_low", "ci_high"),
        ("top1_agreement", "value", "ci_low", "ci_high"),
        ("kl", "median", "median_low", "median_high"),
        ("kl", "p90", "p90_low", "p90_high"),
    ]:
        ends = [found[name][field] for field in (low, middle, high)]
        known = [end for end in ends if end is not None]
        assert len(known) < 2 or known[0] < known[-1], name


def test_an_overlap_of_all_is_no_surer_than_an_agreement_of_all() -> None:
    found = summary(4, overlap_5=[1.0] * SIZE)
    assert found["overlap_5"]["ci_low"] == found["top1_agreement"]["ci_low"]
    assert found["overlap_5"]["ci_high"] == 1
