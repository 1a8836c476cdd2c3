"""llama.cpp's rule against the rule written out, token by token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klcli.measure.kernels import truncated

INF = math.inf
UNKNOWN = -1


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ids(*values: int) -> Tensor:
    return torch.tensor(values)


def kl_of(log_p: list[float], log_q: list[float]) -> float:
    return float(truncated.divergences(rows(log_p), rows(log_q), ids(0))["kl"][0])


# One side


def test_predictions_of_a_row_written_out() -> None:
    log_p = rows([-1.0, -2.0, -0.5, -18.0], [-1.0, -2.0, -0.5, -18.0])
    found = truncated.predictions(log_p, ids(1, 3))
    assert found["nll"].tolist() == [2.0, 18.0]
    assert found["rank"].tolist() == [2, 3]
    assert found["top1"].tolist() == [2, 2]
    assert found["confidence"].tolist() == pytest.approx([math.exp(-0.5)] * 2)


def test_what_a_truncated_row_cannot_tell_is_not_told() -> None:
    log_p, log_q = rows([-1.0, -2.0]), rows([-1.0, -2.0])
    assert set(truncated.predictions(log_p, ids(0))) == {"nll", "rank", "top1", "confidence"}
    assert set(truncated.divergences(log_p, log_q, ids(0))) == {
        "kl",
        "nll_difference",
        "delta_p",
    }


def test_equal_codes_are_equal_in_rank_and_the_lowest_id_is_first() -> None:
    found = truncated.predictions(rows([-3.0, -1.0, -1.0, -3.0]), ids(3))
    assert (int(found["rank"][0]), int(found["top1"][0])) == (2, 1)


def test_without_a_target_the_rest_is_still_known() -> None:
    found = truncated.predictions(rows([-1.0, -0.5]), ids(UNKNOWN))
    assert math.isnan(found["nll"][0])
    assert int(found["rank"][0]) == -1
    assert int(found["top1"][0]) == 1
    differences = truncated.divergences(rows([-1.0, -0.5]), rows([-1.0, -0.5]), ids(UNKNOWN))
    assert math.isnan(differences["nll_difference"][0])
    assert math.isnan(differences["delta_p"][0])
    assert float(differences["kl"][0]) == 0.0


def test_a_certain_token_has_the_nll_0_and_not_minus_0() -> None:
    nll = truncated.predictions(rows([0.0, -16.0]), ids(0))["nll"]
    assert math.copysign(1.0, float(nll[0])) == 1.0


# Two sides


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-40, 0), st.floats(-60, 0)),
        min_size=1,
        max_size=8,
    )
)
def test_kl_is_the_sum_written_out(pairs: list[tuple[float, float]]) -> None:
    log_p, log_q = map(list, zip(*pairs, strict=True))
    terms = [math.exp(p) * (p - q) for p, q in pairs if p > -16]
    assert kl_of(log_p, log_q) == pytest.approx(math.fsum(terms), rel=1e-12, abs=1e-12)


def test_an_id_at_the_floor_of_16_counts_for_nothing_and_one_above_does() -> None:
    assert kl_of([-16.0], [-50.0]) == 0.0
    above = math.nextafter(-16.0, 0.0)
    assert kl_of([above], [-50.0]) == pytest.approx(math.exp(-16) * 34)


def test_nothing_is_renormalised() -> None:
    """Both sides short of half their mass: the sum itself, not that of the two made whole."""
    half = math.log(0.25)
    assert kl_of([half, half], [half - 1, half]) == pytest.approx(0.25)


def test_kl_is_negative_where_rounding_outweighs_the_difference() -> None:
    log_q = [math.log(0.5), math.log(0.5)]
    assert kl_of([x - 1e-4 for x in log_q], log_q) == pytest.approx(-1e-4, rel=1e-3)


def test_equal_rows_have_no_divergence() -> None:
    assert kl_of([-0.1, -3.0, -20.0], [-0.1, -3.0, -20.0]) == 0.0


def test_what_the_candidate_excludes_is_infinite_only_where_it_counts() -> None:
    assert kl_of([-1.0, -0.5], [-INF, -0.5]) == INF
    assert kl_of([-17.0, -0.5], [-INF, -0.5]) == 0.0


@pytest.mark.parametrize("side", [0, 1])
def test_a_nan_spoils_its_row_and_no_other(side: int) -> None:
    both = [rows([-1.0, -0.5], [-1.0, -0.5]), rows([-1.0, -0.5], [-1.0, -0.5])]
    both[side][1, 0] = math.nan
    kl = truncated.divergences(both[0], both[1], ids(0, 0))["kl"]
    assert float(kl[0]) == 0.0
    assert math.isnan(kl[1])


def test_differences_at_the_target_are_candidate_less_reference() -> None:
    log_p, log_q = rows([math.log(0.5), -1.0]), rows([math.log(0.4), -1.0])
    found = truncated.divergences(log_p, log_q, ids(0))
    assert float(found["nll_difference"][0]) == pytest.approx(math.log(0.5 / 0.4))
    assert float(found["delta_p"][0]) == pytest.approx(-0.1)


def test_a_target_at_the_floor_is_still_scored() -> None:
    found = truncated.divergences(rows([-0.1, -17.0]), rows([-0.1, -19.0]), ids(1))
    assert float(found["nll_difference"][0]) == pytest.approx(2.0)
