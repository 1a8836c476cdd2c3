"""The histogram and the line along the text: every token is in them once."""

import json
import math
from typing import Any

import numpy as np
import pytest

from klcli.judge.report import Report
from klcli.judge.shape import EDGES, PARTS, along_of, distribution_of
from klcli.measure.columns import Column
from klcli.measure.scores import TokenScores, score_columns
from tests.render.reports import compare_report


def scores_of(values: Any, *, paired: bool = True) -> TokenScores:
    """Tokens of which only the KL, or the NLL, is known."""
    x = np.asarray(values, dtype=np.float64)
    kinds = score_columns(paired=paired).items()
    columns: dict[str, Column] = {name: np.zeros(len(x), kind) for name, kind in kinds}
    return TokenScores(columns | {"kl" if paired else "nll": x})


def test_bins_are_ten_a_decade() -> None:
    assert len(EDGES) == 101
    assert (EDGES[0], EDGES[-1]) == (1e-8, 100)
    assert np.allclose(EDGES[10:] / EDGES[:-10], 10)


def test_a_bin_holds_its_lower_edge_and_not_its_upper() -> None:
    counts = distribution_of(scores_of([EDGES[3], np.nextafter(EDGES[4], 0), EDGES[4]])).counts
    assert (counts[3], counts[4], sum(counts)) == (2, 1, 3)


def test_what_no_bin_holds_is_counted_apart() -> None:
    found = distribution_of(scores_of([0.0, -1e-3, 1e-9, 100, 250, math.inf, math.nan, 0.5]))
    assert (found.zero, found.below, found.above, found.infinite) == (2, 1, 2, 1)
    assert sum(found.counts) == 1


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1000, 70_000])
def test_every_token_is_counted_once(tokens: int) -> None:
    found = distribution_of(scores_of(np.geomspace(1e-9, 1e3, tokens)))
    assert sum(found.counts) + found.below + found.above == tokens


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1000])
def test_the_parts_of_a_text_are_equal(tokens: int) -> None:
    found = along_of(scores_of(np.ones(tokens)))
    sizes = np.diff([*found.starts, tokens])
    assert len(sizes) == min(tokens, PARTS)
    assert sizes.min() >= sizes.max() - 1
    assert set(found.means) == {1.0}


def test_a_part_has_the_mean_of_its_own_tokens() -> None:
    found = along_of(scores_of(np.arange(128)))
    assert found.means[:2] == [0.5, 2.5]


def test_a_part_of_unknown_tokens_is_unknown_and_one_with_an_infinite_token_infinite() -> None:
    found = along_of(scores_of([math.nan, 1.0, math.inf]))
    assert found.means == [None, 1.0, math.inf]


def test_of_one_model_it_is_the_nll() -> None:
    scores = scores_of([0.5, 2.0], paired=False)
    assert (distribution_of(scores).metric, along_of(scores).metric) == ("nll", "nll")


def test_both_are_read_again_as_they_were() -> None:
    scores = scores_of([math.inf, math.nan, 0.25])
    report = compare_report(
        distribution=distribution_of(scores), along=along_of(scores), seconds=1.5
    )
    again = Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert (again.distribution, again.along) == (report.distribution, report.along)
    assert again.seconds == 1.5


def test_a_report_of_an_earlier_version_has_neither() -> None:
    data = compare_report().to_dict()
    for key in ("distribution", "along", "seconds"):
        del data[key]
    report = Report.from_dict(data)
    assert (report.distribution, report.along, report.seconds) == (None, None, None)
