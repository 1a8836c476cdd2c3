"""The kernels against an oracle in wider numbers, and against what must hold of any divergence."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from klcli.measure.kernels.exact import (
    divergences,
    log_probabilities,
    mass_above,
    overlap,
    predictions,
    top_tokens,
    usable_rows,
)
from tests.measure import oracle

INF = math.inf
MASK = torch.finfo(torch.float32).min
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [3, 1_000, 49_152, 262_144]
RELATIVE = 1e-4


def measure(p: Tensor, q: Tensor, target: int = 0) -> dict[str, float]:
    """All divergences of one pair of rows of logits."""
    columns = divergences(
        log_probabilities(p[None]), log_probabilities(q[None]), torch.tensor([target])
    )
    return {name: float(values[0]) for name, values in columns.items()}


def pair(size: int, distance: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Gaussian logits, and the same a ``distance`` away."""
    generator = torch.Generator().manual_seed(size)
    p = 3 * torch.randn(size, generator=generator, dtype=torch.float64)
    q = p + distance * torch.randn(size, generator=generator, dtype=torch.float64)
    return p.to(dtype), q.to(dtype)


def assert_like_the_oracle(p: Tensor, q: Tensor) -> None:
    found = measure(p, q)
    x, y = p.double().numpy(), q.double().numpy()
    expected = {
        "kl": oracle.kl(x, y),
        "kl_reverse": oracle.kl(y, x),
        "tv": oracle.tv(x, y),
        "jsd": oracle.jsd(x, y),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=RELATIVE, abs=1e-300), name


class TestAccuracy:
    """Relative error at most 1e-4 from 1e-10 to 90 nats, whatever the vocabulary."""

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("distance", [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 5.0])
    def test_float32_rows(self, size: int, distance: float) -> None:
        p, q = pair(size, distance)
        assert 1e-12 < measure(p, q)["kl"] < 90
        assert_like_the_oracle(p, q)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("distance", [0.1, 1.0])
    def test_every_dtype_of_logits(self, dtype: torch.dtype, distance: float) -> None:
        assert_like_the_oracle(*pair(1_000, distance, dtype))

    @pytest.mark.parametrize("gap", [10.0, 50.0, 90.0])
    def test_a_kl_up_to_ninety_nats(self, gap: float) -> None:
        p, q = torch.zeros(1_000), torch.zeros(1_000)
        p[0], q[1] = 60.0, gap
        assert measure(p, q)["kl"] == pytest.approx(gap, rel=1e-2)
        assert_like_the_oracle(p, q)

    @pytest.mark.parametrize("shift", [1.0, 100.0, -1e4])
    def test_a_constant_added_to_a_row_changes_nothing(self, shift: float) -> None:
        p, q = pair(1_000, 0.01)
        moved = q.double() + shift  # exact, as float32 would round
        assert measure(p.double(), moved)["kl"] == pytest.approx(measure(p, q)["kl"], rel=1e-6)

    def test_a_direct_float64_sum_would_be_worse_where_rows_are_close(self) -> None:
        p, q = pair(49_152, 1e-6)
        log_p, log_q = log_probabilities(p), log_probabilities(q)
        direct = float((log_p.exp() * (log_p - log_q)).sum())
        exact = oracle.kl_stable(p.double().numpy(), q.double().numpy())
        assert abs(measure(p, q)["kl"] / exact - 1) < min(1e-6, abs(direct / exact - 1))


class TestInvariants:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_equal_rows_have_divergence_exactly_zero(self, size: int, dtype: torch.dtype) -> None:
        p, _ = pair(size, 0.0, dtype)
        found = measure(p, p.clone())
        assert [found[name] for name in ("kl", "kl_reverse", "jsd", "tv")] == [0, 0, 0, 0]
        assert found["nll_difference"] == found["delta_p"] == 0

    @pytest.mark.parametrize("distance", [0, 1e-9, 1e-7, 1e-5, 1e-3, 0.1, 3.0])
    def test_no_divergence_is_negative(self, distance: float) -> None:
        p, q = pair(1_000, distance, torch.float64)
        found = measure(p, q)
        assert min(found["kl"], found["kl_reverse"], found["jsd"], found["tv"]) >= 0

    def test_jsd_and_tv_are_symmetric_and_bounded(self) -> None:
        p, q = pair(100, 9.0)
        there, back = measure(p, q), measure(q, p)
        assert there["jsd"] == pytest.approx(back["jsd"], rel=1e-12)
        assert there["tv"] == pytest.approx(back["tv"], rel=1e-12)
        assert there["kl"] == pytest.approx(back["kl_reverse"], rel=1e-12)
        assert there["jsd"] <= math.log(2)
        assert there["tv"] <= 1

    def test_pinsker(self) -> None:
        for distance in (1e-4, 0.1, 2.0):
            found = measure(*pair(100, distance))
            assert found["tv"] <= math.sqrt(found["kl"] / 2)

    def test_an_example_on_paper(self) -> None:
        p, q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
        found = measure(torch.tensor(p).log(), torch.tensor(q).log(), target=0)
        assert found["kl"] == pytest.approx(0.25 * math.log(2))
        assert found["kl"] == pytest.approx(oracle.by_hand(p, q)["kl"])
        assert found["tv"] == pytest.approx(0.25)
        assert found["nll_difference"] == pytest.approx(math.log(2))
        assert found["delta_p"] == pytest.approx(-0.25)


class TestSupports:
    """-inf is legal: a token that is banned."""

    def test_banned_in_the_reference_only(self) -> None:
        p, q = torch.tensor([1.0, 2.0, -INF]), torch.tensor([1.0, 2.0, 3.0])
        found = measure(p, q)
        assert found["kl"] == pytest.approx(oracle.kl(p.numpy(), q.numpy()))
        assert found["kl_reverse"] == INF
        assert found["jsd"] == pytest.approx(oracle.jsd(p.numpy(), q.numpy()))

    def test_banned_in_the_reference_where_the_candidate_hardly_goes(self) -> None:
        p, q = torch.tensor([1.0, 2.0, -INF]), torch.tensor([1.0, 2.0, -18.0])
        uncovered = -math.log1p(-float(torch.softmax(q.double(), 0)[2]))
        assert measure(p, q)["kl"] == pytest.approx(uncovered, rel=1e-9)

    def test_banned_in_the_candidate_only_is_infinite(self) -> None:
        p, q = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, -INF])
        assert measure(p, q)["kl"] == INF
        assert measure(p, q, target=2)["nll_difference"] == INF
        assert math.isfinite(measure(p, q)["jsd"])

    def test_banned_in_both_counts_for_nothing(self) -> None:
        p, q = pair(1_000, 0.01)
        banned = torch.full((50,), -INF)
        wide = measure(torch.cat([p, banned]), torch.cat([q, banned]))
        for name, value in measure(p, q).items():
            assert wide[name] == pytest.approx(value, rel=1e-12), name

    def test_disjoint_supports_are_ln_2_apart(self) -> None:
        found = measure(torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0]))
        assert found["jsd"] == pytest.approx(math.log(2))
        assert (found["kl"], found["tv"]) == (INF, 1.0)

    @pytest.mark.parametrize("mask", [MASK, -1e9, -1e4])
    def test_large_negative_masks_are_banned_tokens(self, mask: float) -> None:
        p, q = pair(1_000, 0.01)
        hidden = torch.full((50,), mask)
        wide = measure(torch.cat([p, hidden]), torch.cat([q, hidden]))
        for name, value in measure(p, q).items():
            assert wide[name] == pytest.approx(value, rel=1e-9), name

    def test_a_mask_in_the_candidate_alone_is_huge_but_finite(self) -> None:
        found = measure(torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, MASK]))
        assert found["kl"] == pytest.approx(0.25 * 3.4028235e38, rel=1e-6)


class TestPredictions:
    def test_nll_entropy_and_confidence_are_those_of_the_oracle(self) -> None:
        logits, _ = pair(49_152, 0.0)
        found = predictions(log_probabilities(logits[None]), torch.tensor([7]))
        expected = oracle.log_softmax(logits.numpy())
        assert float(found["nll"]) == pytest.approx(-float(expected[7]), rel=1e-12)
        assert float(found["entropy"]) == pytest.approx(oracle.entropy(logits.numpy()), rel=1e-12)
        assert float(found["confidence"]) == pytest.approx(float(np.exp(expected.max())), rel=1e-12)

    def test_rank_counts_the_tokens_that_are_more_probable(self) -> None:
        logits = torch.tensor([[2.0, 5.0, 5.0, 1.0]])
        ranks = [
            int(predictions(log_probabilities(logits), torch.tensor([t]))["rank"]) for t in range(4)
        ]
        assert ranks == [2, 0, 0, 3]

    def test_ties_are_won_by_the_lowest_id(self) -> None:
        logits = torch.zeros(1, 50_000)
        logits[0, [7, 4_000, 49_000]] = 3.0
        assert int(predictions(log_probabilities(logits), torch.tensor([0]))["top1"]) == 7

    def test_an_unknown_target_has_neither_nll_nor_rank(self) -> None:
        found = predictions(log_probabilities(torch.zeros(1, 4)), torch.tensor([-1]))
        assert math.isnan(float(found["nll"]))
        assert int(found["rank"]) == -1
        assert float(found["entropy"]) == pytest.approx(math.log(4))

    def test_a_certain_prediction_has_nll_zero_not_minus_zero(self) -> None:
        logits = torch.tensor([[0.0, -INF]])
        nll = predictions(log_probabilities(logits), torch.tensor([0]))["nll"]
        assert math.copysign(1, float(nll)) == 1


class TestTopTokens:
    def test_best_first(self) -> None:
        assert top_tokens(torch.tensor([[1.0, 9.0, 3.0, 7.0]]), 3).tolist() == [[1, 3, 2]]

    def test_a_tie_at_the_end_takes_the_lowest_ids(self) -> None:
        logits = torch.zeros(3, 1_000)
        logits[:, 900] = 2.0
        logits[1, 500:] += 1.0
        assert top_tokens(logits, 5).tolist() == [
            [900, 0, 1, 2, 3],
            [900, 500, 501, 502, 503],
            [900, 0, 1, 2, 3],
        ]

    def test_of_bfloat16_logits_as_a_stable_sort_has_it(self) -> None:
        logits = torch.randn(64, 5_000, generator=torch.Generator().manual_seed(0)).bfloat16()
        expected = logits.sort(dim=-1, descending=True, stable=True).indices[:, :5]
        assert torch.equal(top_tokens(logits, 5), expected)

    def test_a_vocabulary_smaller_than_k_gives_all_of_it(self) -> None:
        assert top_tokens(torch.tensor([[1.0, 2.0]]), 5).tolist() == [[1, 0]]

    def test_overlap_is_the_shared_part(self) -> None:
        a, b = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[5, 4, 9, 8, 7]])
        assert overlap(a, b).tolist() == [0.4]


def test_rows_with_nan_or_plus_infinity_are_not_usable() -> None:
    rows = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [INF, 1.0], [-INF, 1.0], [-INF, -INF]])
    assert usable_rows(rows).tolist() == [True, False, False, True, False]


def test_mass_above_is_the_probability_of_padding() -> None:
    log_p = log_probabilities(torch.zeros(1, 8))
    assert mass_above(log_p, 6).tolist() == pytest.approx([0.25])
    assert mass_above(log_p, 8).tolist() == [0]
