"""Several texts: each by itself, in groups, and the intervals of their means."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from klcli.align.alignment import Alignment
from klcli.judge.clusters import Clusters
from klcli.judge.counts import clusters_of
from klcli.judge.intervals import Metric
from klcli.judge.several import group_results, intervals_of, macro_of
from klcli.judge.statistics import mean_metric
from klcli.judge.student import student_t
from klcli.judge.text_results import Group, Groups
from klcli.measure.scores import TokenScores, empty_columns
from klcli.text.vocabulary import NumberedTokens
from klcli.text.windows import TokenizedDocument, Window, WindowTable

Floats = npt.NDArray[np.float64]


def independent(x: Floats) -> Metric:
    """A mean of numbers that have a cluster each."""
    return mean_metric(x, Clusters(np.ones(len(x), np.int64), np.zeros(len(x), np.bool_)))


def text(**metrics: Metric) -> Group:
    return Group(name="text", counts={}, metrics=metrics)


def test_equal_texts_have_the_textbook_error() -> None:
    rng = np.random.default_rng(1)
    xs = [rng.normal(size=30) for _ in range(4)]
    found = intervals_of([text(delta=independent(x)) for x in xs])["delta"]
    errors = [x.std(ddof=1) / math.sqrt(30) for x in xs]
    error = math.sqrt(sum(e**2 for e in errors)) / 4
    mean = float(np.mean([x.mean() for x in xs]))
    half = -student_t(0.025, 29) * error
    assert found["se"] == pytest.approx(error)
    assert found["ci_low"] == pytest.approx(mean - half)
    assert found["ci_high"] == pytest.approx(mean + half)


@pytest.mark.parametrize("sizes", [(8, 8), (5, 60), (4, 10, 200)])
def test_intervals_of_means_of_texts_hold_the_truth_as_often_as_they_say(
    sizes: Sequence[int],
) -> None:
    rng = np.random.default_rng(2)
    middles = np.arange(1.0, len(sizes) + 1)
    held, runs = 0, 600
    for _ in range(runs):
        xs = [rng.normal(m, m, size=n) for m, n in zip(middles, sizes, strict=True)]
        found = intervals_of([text(delta=independent(x)) for x in xs])["delta"]
        held += (found["ci_low"] or 0) <= middles.mean() <= (found["ci_high"] or 0)
    assert held / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


def test_an_end_that_is_cut_off_does_not_shorten_the_interval_of_the_mean() -> None:
    cut: Metric = {"mean": 1.0, "se": 1.0, "ci_low": 0.0, "ci_high": 4.0, "min": 0.0, "max": 9.0}
    found = intervals_of([text(kl=cut), text(kl=cut)])["kl"]
    half = 3 / math.sqrt(2)
    assert found["ci_high"] == pytest.approx(1 + half)
    assert found["ci_low"] == 0  # a KL is no less


def test_perplexities_have_the_ends_of_their_nll() -> None:
    nll = independent(np.array([1.0, 2.0, 4.0]))
    texts = [text(nll=nll, nll_difference=nll, nll_reference=nll)] * 2
    found = intervals_of(texts)
    assert found.keys() == macro_of(texts).keys()
    for of, name in (("nll", "perplexity"), ("nll_difference", "perplexity_ratio"),
                     ("nll_reference", "perplexity_reference")):  # fmt: skip
        assert found[name]["se"] is None
        assert found[name]["ci_high"] == pytest.approx(math.exp(found[of]["ci_high"] or 0))
        assert found[name]["ci_low"] == pytest.approx(math.exp(found[of]["ci_low"] or 0))


def test_a_text_of_one_piece_leaves_the_interval_of_the_mean_open() -> None:
    one = mean_metric(np.ones(3), Clusters(np.array([3]), np.array([False])))
    found = intervals_of([text(kl=one), text(kl=independent(np.arange(4.0)))])
    assert found["kl"] == {"se": None, "ci_low": None, "ci_high": None}
    assert macro_of([text(kl=one)])["kl"] == 1


def alignment_of(groups: Sequence[str | None]) -> Alignment:
    """Documents of five tokens, each of a group, in one corpus."""
    documents = tuple(
        TokenizedDocument(corpus=0, name=f"{n}", ids=np.arange(5), encoding=None, group=group)
        for n, group in enumerate(groups)
    )
    windows = tuple(
        Window(document=n, inputs=np.arange(5), score_from=0, targets=np.arange(5), position=0)
        for n in range(len(groups))
    )
    table = WindowTable(documents=documents, windows=windows, protocol={"group_by": "lang"})
    return Alignment(table=table, names=NumberedTokens(5), vocabulary_size=5, notices=())


def scores_of(alignment: Alignment, kl: Floats) -> TokenScores:
    columns = empty_columns(alignment.table, paired=True)
    every = np.arange(alignment.table.tokens)
    columns.write("kl", every, kl)
    columns.write("excluded", every, np.isnan(kl))
    return TokenScores(columns)


def grouped(groups: Sequence[str | None], kl: Floats) -> Groups | None:
    alignment = alignment_of(groups)
    return group_results(scores_of(alignment, kl), alignment, clusters_of(alignment.table))


def test_scattered_documents_of_a_group_give_what_they_give_alone() -> None:
    rng = np.random.default_rng(3)
    groups = ["en" if own else "de" for own in rng.random(60) < 0.4]
    kl = rng.lognormal(size=(60, 5))
    found = grouped(groups, kl.ravel())
    assert found is not None
    assert found.field == "lang"
    for one in found.groups:
        own = kl[[group == one.name for group in groups]]
        metric = one.metrics["kl"]
        assert one.counts["tokens"] == own.size
        assert one.counts["documents"] == len(own)
        assert metric["mean"] == pytest.approx(own.mean())
        # Documents without a neighbour of their group are independent: that is CR1.
        by_hand = own.sum(axis=1) - 5 * own.mean()
        plain = math.sqrt(len(own) / (len(own) - 1) * (by_hand**2).sum()) / own.size
        assert (metric["se"] or 0) >= plain * (1 - 1e-9)
    assert found.macro["kl"] == pytest.approx(
        np.mean([one.metrics["kl"]["mean"] for one in found.groups])
    )


def test_documents_that_do_not_stand_side_by_side_are_independent() -> None:
    kl = np.random.default_rng(5).lognormal(size=(40, 5))
    found = grouped(["a", "b"] * 20, kl.ravel())
    assert found is not None
    own = kl[::2]
    residuals = own.sum(axis=1) - 5 * own.mean()
    error = math.sqrt(20 / 19 * (residuals**2).sum()) / own.size
    assert found.groups[0].metrics["kl"]["se"] == pytest.approx(error)


def test_groups_stand_in_the_order_of_the_text_and_what_has_none_is_in_none() -> None:
    found = grouped(["b", None, "a", "b"], np.ones(20))
    assert found is not None
    assert [(one.name, one.counts["tokens"]) for one in found.groups] == [("b", 10), ("a", 5)]


def test_excluded_tokens_are_counted_in_their_own_group() -> None:
    kl = np.ones(20)
    kl[7] = np.nan
    found = grouped(["a", "b", "a", "b"], kl)
    assert found is not None
    assert [one.counts["excluded"] for one in found.groups] == [0, 1]


def test_documents_of_no_group_make_none() -> None:
    assert grouped([None, None], np.ones(10)) is None
