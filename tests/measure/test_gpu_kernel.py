"""The kernels for GPUs: on one where there is one, else under Triton's interpreter."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from klcli.measure.kernels import dispatch
from klcli.measure.kernels.results import Measured
from tests.measure import oracle
from tests.measure.kernel_facts import (
    DIVERGENCES,
    DTYPES,
    ENTROPY,
    INF,
    MASK,
    NLL,
    assert_like_the_oracle,
    assert_side_in_float64,
    banned,
    compare,
    differences,
    pair,
    rows,
)

pytest.importorskip("triton", reason="Triton is not installed: pip install 'klcli[triton]'")
from klcli.measure.kernels import gpu

# NumPy, which the interpreter computes with, warns of -inf and NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEVERAL = 3_000
"""So many ids are several blocks, the last one not full, whatever the dtype."""


def measure(logits: Sequence[Tensor], targets: Tensor, size: int, width: int) -> Measured:
    """Measure where the kernels run, whatever ``dispatch`` would choose."""
    sides = [side.to(DEVICE)[:, :width] for side in logits]
    return gpu.measure_rows(sides, targets.to(DEVICE), size, width)


def assert_accurate(p: Tensor, q: Tensor) -> None:
    assert_like_the_oracle(p, q, measure=measure)


class TestAccuracy:
    @pytest.mark.parametrize("size", [3, SEVERAL])
    @pytest.mark.parametrize("distance", [2e-6, 1e-4, 1e-2, 1.0, 20.0])
    def test_float32_rows(self, size: int, distance: float) -> None:
        assert_accurate(*pair(size, distance))

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    @pytest.mark.parametrize("distance", [1e-3, 1.0, 20.0])
    def test_rows_of_16_bits(self, dtype: torch.dtype, distance: float) -> None:
        assert_accurate(*pair(SEVERAL, distance, dtype))

    @pytest.mark.parametrize("size", [SEVERAL, 4_096], ids=["unaligned", "aligned"])
    def test_sides_of_different_dtypes(self, size: int) -> None:
        p, q = pair(size, 0.1)
        assert_accurate(p, q.bfloat16())
        assert_accurate(p.half(), q)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_rows_whose_threads_read_sixteen_bytes_at_once(self, dtype: torch.dtype) -> None:
        assert_accurate(*pair(4_096, 0.01, dtype))

    def test_figures_are_as_good_as_those_of_the_compiled_kernels(self) -> None:
        p, q = pair(SEVERAL, 0.1)
        found = differences(p, q, measure=measure)
        x, y = p.double().numpy(), q.double().numpy()
        assert found["kl"] == pytest.approx(oracle.kl(x, y), rel=2e-6)
        assert found["kl_reverse"] == pytest.approx(oracle.kl(y, x), rel=2e-6)
        assert found["jsd"] == pytest.approx(oracle.jsd(x, y), rel=2e-6)
        assert found["tv"] == pytest.approx(oracle.tv(x, y), rel=1e-5)

    @pytest.mark.parametrize("gap", [50.0, 90.0, 300.0, 20_000.0])
    def test_a_kl_of_many_nats(self, gap: float) -> None:
        p, q = torch.zeros(1_000), torch.zeros(1_000)
        p[0], q[1] = 60.0, gap
        assert_accurate(p, q)

    @pytest.mark.parametrize("distance", [1e-3, 2.0])
    def test_sure_models_that_differ_in_the_rest(self, distance: float) -> None:
        p, q = pair(SEVERAL, distance)
        p[7] = q[7] = p.max() + 15
        assert_accurate(p, q)

    @pytest.mark.parametrize("flip", [False, True])
    def test_rows_that_rise_or_fall(self, flip: bool) -> None:
        p, q = (row.sort().values for row in pair(SEVERAL, 0.01))
        assert_accurate(p.flip(0) if flip else p, q.flip(0) if flip else q)

    @pytest.mark.parametrize("shift", [17.25, -100.0, 4_096.0])
    def test_a_constant_added_to_a_row(self, shift: float) -> None:
        p, q = pair(SEVERAL, 0.01)
        assert_accurate(p, q + shift)

    @pytest.mark.parametrize("shift", [2.0**21, -(2.0**21)])
    def test_a_constant_too_large_for_one_sum_with_the_rest(self, shift: float) -> None:
        p, q = (8 * row for row in pair(1_000, 1.0))
        assert_accurate(p + shift, q + shift)
        assert_accurate(p, q + shift)

    @pytest.mark.parametrize("shift", [64.0, -4_096.0])
    def test_a_constant_added_without_rounding_makes_no_difference_at_all(
        self, shift: float
    ) -> None:
        p = (8 * pair(SEVERAL, 0.0)[0]).round() / 8
        found = differences(p, p + shift, measure=measure)
        assert [found[name] for name in DIVERGENCES] == [0, 0, 0, 0]

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_equal_rows_have_divergence_exactly_zero(self, dtype: torch.dtype) -> None:
        p, _ = pair(SEVERAL, 0.0, dtype)
        found = differences(p, p.clone(), 9, measure)
        assert [found[name] for name in DIVERGENCES] == [0, 0, 0, 0]
        assert found["nll_difference"] == found["delta_p"] == 0
        assert found["overlap_5"] == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("distance", [2e-6, 1e-3, 1.0])
    def test_rows_of_the_largest_vocabulary(self, distance: float) -> None:
        assert_accurate(*pair(262_144, distance))


class TestSupports:
    SOME = (slice(0, 1), slice(3, 900), slice(0, 1_000, 2))

    @pytest.mark.parametrize("some", SOME, ids=str)
    def test_banned_in_the_reference_only(self, some: slice) -> None:
        p, q = pair(1_000, 0.01)
        assert differences(banned(p, some), q, measure=measure)["kl_reverse"] == INF
        assert_accurate(banned(p, some), q)

    @pytest.mark.parametrize("some", SOME, ids=str)
    def test_banned_in_the_candidate_only_is_infinite(self, some: slice) -> None:
        p, q = pair(1_000, 0.01)
        found = differences(p, banned(q, some), some.start, measure)
        assert (found["kl"], found["nll_difference"]) == (INF, INF)
        assert_accurate(p, banned(q, some))

    def test_banned_in_both_counts_for_nothing(self) -> None:
        p, q = (banned(row, slice(3, 900)) for row in pair(SEVERAL, 0.1, torch.bfloat16))
        assert_accurate(p, q)

    def test_disjoint_supports_are_ln_2_apart(self) -> None:
        p, q = torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0])
        found = differences(p, q, measure=measure)
        assert found["jsd"] == pytest.approx(math.log(2))
        assert (found["kl"], found["kl_reverse"], found["tv"]) == (INF, INF, 1.0)

    def test_all_but_one_banned(self) -> None:
        p = torch.full((1_000,), -INF)
        p[5] = 1.0
        q, _ = pair(1_000, 0.0)
        assert float(compare(p, p.clone(), 5, measure).sides[0].nll) == 0
        assert_accurate(p, q)
        assert_accurate(q, p)

    @pytest.mark.parametrize("mask", [MASK, -1e9, -1e4, -200.0])
    def test_large_negative_masks_are_banned_tokens(self, mask: float) -> None:
        p, q = (banned(row, slice(3, 900), mask) for row in pair(1_000, 0.01))
        assert_accurate(p, q)
        assert_accurate(p, banned(q, slice(3, 900)))

    @pytest.mark.parametrize("mask", [MASK, -1e9, -1e4, -200.0])
    def test_a_mask_in_one_alone_is_huge_but_finite(self, mask: float) -> None:
        p, q = pair(1_000, 0.01)
        assert_accurate(p, banned(q, slice(3, 900), mask))
        assert_accurate(banned(p, slice(3, 900), mask), q)

    def test_of_rows_that_are_masked_throughout_all_tokens_are_alike(self) -> None:
        masked = torch.full((1_000,), MASK)
        q, _ = pair(1_000, 0.0)
        found = compare(masked, masked.clone(), 3, measure)
        assert float(found.sides[0].nll) == pytest.approx(math.log(1_000), abs=NLL)
        assert float(found.differences["kl"]) == 0
        assert_accurate(masked, q)


class TestPredictions:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("size", [5, 512, SEVERAL])
    def test_they_are_those_of_float64(self, size: int, dtype: torch.dtype) -> None:
        logits = rows(3, size).to(dtype)
        targets = torch.tensor([size - 1, -1, 2])
        found = measure([logits, logits.flip(0)], targets, size - 2, size)
        assert_side_in_float64(found.sides[0], logits, targets, size - 2)
        assert_side_in_float64(found.sides[1], logits.flip(0), targets, size - 2)

    def test_of_a_model_alone_they_are_those_of_a_side_of_a_pair(self) -> None:
        logits = rows(4, SEVERAL)
        logits[1, 7] = math.nan
        logits[2] = -INF
        targets = torch.tensor([1, 2, 3, -1])
        alone = measure([logits], targets, 2_900, SEVERAL)
        both = measure([logits, logits.flip(0)], targets, 2_900, SEVERAL)
        assert alone.differences == {}
        for name, values in alone.sides[0]._asdict().items():
            expected = getattr(both.sides[0], name)
            torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)

    def test_rank_counts_the_tokens_that_are_more_probable(self) -> None:
        row = torch.tensor([2.0, 5.0, 5.0, 1.0])
        ranks = [int(compare(row, row, target, measure).sides[0].rank) for target in range(4)]
        assert ranks == [2, 0, 0, 3]

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_ties_are_won_by_the_lowest_ids(self, dtype: torch.dtype) -> None:
        p = torch.zeros(9_000, dtype=dtype)
        q = p.clone()
        p[[7, 4_000, 8_990]] = 3.0
        found = compare(p, q, measure=measure)
        assert found.sides[0].top_ids.tolist() == [[7, 4_000, 8_990, 0, 1, 2, 3, 4, 5, 6]]
        assert found.sides[1].top_ids.tolist() == [list(range(10))]
        assert float(found.differences["overlap_5"]) == pytest.approx(0.4)

    @pytest.mark.parametrize("levels", [2, 50])
    def test_rows_with_many_ties_are_as_a_stable_sort_has_them(self, levels: int) -> None:
        generator = torch.Generator().manual_seed(levels)
        logits = (torch.rand(3, SEVERAL, generator=generator) * levels).floor()
        found = measure([logits, logits], torch.zeros(3, dtype=torch.long), SEVERAL, SEVERAL)
        expected = logits.sort(dim=-1, descending=True, stable=True).indices[:, :10]
        assert torch.equal(found.sides[0].top_ids, expected)

    def test_banned_tokens_are_the_last_of_the_top_the_lowest_ids_first(self) -> None:
        row = torch.full((SEVERAL,), -INF)
        row[[8, 2_500]] = torch.tensor([1.0, 2.0])
        side = compare(row, row, measure=measure).sides[0]
        assert side.top_ids.tolist() == [[2_500, 8, 0, 1, 2, 3, 4, 5, 6, 7]]
        assert side.top_probabilities[0, 2:].tolist() == [0] * 8

    def test_zero_and_minus_zero_tie(self) -> None:
        row = torch.tensor([-0.0, 0.0, -0.0, 0.0, -1.0, 0.0])
        found = compare(row, row, 0, measure).sides[0]
        assert found.top_ids.tolist() == [[0, 1, 2, 3, 5, 4]]
        assert int(found.rank) == 0

    def test_an_unknown_target_has_neither_nll_nor_rank(self) -> None:
        found = compare(torch.zeros(4), torch.zeros(4), -1, measure)
        for side in found.sides:
            assert math.isnan(float(side.nll))
            assert int(side.rank) == -1
            assert float(side.entropy) == pytest.approx(math.log(4), abs=ENTROPY)
        assert math.isnan(float(found.differences["nll_difference"]))
        assert math.isnan(float(found.differences["delta_p"]))
        assert float(found.differences["kl"]) == 0

    def test_a_certain_prediction_has_nll_zero_not_minus_zero(self) -> None:
        row = torch.tensor([0.0, -INF])
        side = compare(row, row, 0, measure).sides[0]
        assert math.copysign(1, float(side.nll)) == 1
        assert math.copysign(1, float(side.entropy)) == 1
        assert (float(side.nll), float(side.entropy), float(side.confidence)) == (0, 0, 1)

    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_a_vocabulary_smaller_than_five_gives_all_of_it(self, size: int) -> None:
        p = torch.arange(float(size))
        found = compare(p, p.flip(0), 0, measure)
        assert found.sides[0].top_ids.tolist() == [list(range(size))[::-1]]
        assert found.sides[1].top_ids.tolist() == [list(range(size))]
        assert float(found.differences["overlap_5"]) == 1

    def test_padded_mass_is_the_probability_of_ids_without_a_token(self) -> None:
        row, targets = torch.zeros(1, SEVERAL), torch.tensor([0])
        masses = [
            float(measure([row, row], targets, size, SEVERAL).sides[0].padded_mass)
            for size in (SEVERAL // 4, SEVERAL, SEVERAL + 1)
        ]
        assert masses == pytest.approx([0.75, 0, 0])


class TestUnusableRows:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("value", [math.nan, -math.nan, INF], ids=["nan", "-nan", "inf"])
    def test_one_nan_or_plus_infinity_spoils_a_row(self, value: float, dtype: torch.dtype) -> None:
        logits, spoilt = rows(2, SEVERAL).to(dtype), rows(2, SEVERAL).to(dtype)
        spoilt[0, 2_700] = value
        targets = torch.tensor([2_700, 1])
        found = measure([logits, spoilt], targets, SEVERAL, SEVERAL)
        assert [side.usable.tolist() for side in found.sides] == [[True, True], [False, True]]
        for values in found.differences.values():
            assert values.isnan().tolist() == [True, False]
        assert_side_in_float64(found.sides[0], logits, targets, SEVERAL)

    def test_minus_infinity_throughout_is_no_distribution(self) -> None:
        p, q = torch.zeros(SEVERAL), torch.full((SEVERAL,), -INF)
        found = compare(p, q, measure=measure)
        assert [side.usable.tolist() for side in found.sides] == [[True], [False]]

    @pytest.mark.parametrize("row", [[0.0, math.nan, 1.0], [math.nan] * 3], ids=str)
    def test_they_have_no_numbers_ranks_or_ids(self, row: list[float]) -> None:
        side = compare(torch.tensor(row), torch.zeros(3), 0, measure).sides[0]
        for values in (side.nll, side.entropy, side.confidence, side.padded_mass):
            assert values.isnan().all()
        assert side.rank.tolist() == side.top1.tolist() == [-1]
        assert side.top_ids.tolist() == [[-1, -1, -1]]
        assert side.top_probabilities.tolist() == [[0, 0, 0]]


class TestLayout:
    WIDTH = 1_100

    def given(self) -> tuple[Tensor, Tensor, Tensor]:
        p, q = rows(6, 1_200).to(DEVICE), rows(6, 1_200, seed=1).to(DEVICE)
        return p, q, torch.arange(6) * 30

    def assert_same(self, p: Tensor, q: Tensor, like_p: Tensor, like_q: Tensor) -> None:
        """That rows are measured as copies without gaps are, column by column, bit by bit."""
        targets = torch.arange(len(p)) * 30
        found, expected = (
            measure([a, b], targets, self.WIDTH - 9, self.WIDTH)
            for a, b in ((p, q), (like_p.contiguous(), like_q.contiguous()))
        )
        for name, values in found.columns().items():
            assert torch.equal(values, expected.columns()[name]), name

    def test_columns_beyond_the_width_are_as_if_they_were_not_there(self) -> None:
        p, q, _ = self.given()
        like_p, like_q = p[:, : self.WIDTH].clone(), q[:, : self.WIDTH].clone()
        p[:, self.WIDTH :], q[:, self.WIDTH :] = math.nan, 1e9
        self.assert_same(p, q, like_p, like_q)

    def test_rows_and_columns_with_gaps_between_them(self) -> None:
        p, q, _ = self.given()
        self.assert_same(p[::3, 7:], q.repeat(1, 2)[::3], p[::3, 7:].clone(), q[::3].clone())
        self.assert_same(p.t().contiguous().t(), q, p.clone(), q)

    def test_one_row_seen_many_times(self) -> None:
        p, q, _ = self.given()
        self.assert_same(p[:1].expand(6, -1), q, p[:1].repeat(6, 1), q)

    def test_logits_with_a_gradient_are_left_as_they_were(self) -> None:
        p, q, targets = self.given()
        before = p.clone()
        measure([p.requires_grad_(), q], targets, self.WIDTH, self.WIDTH)
        assert torch.equal(p, before)

    def test_no_rows(self) -> None:
        p, q, targets = (x[:0] for x in self.given())
        found = measure([p, q], targets, self.WIDTH, self.WIDTH)
        assert {tuple(values.shape) for values in found.columns().values()} == {(0,)}
        assert found.sides[0].top_ids.shape == (0, 10)
        assert found.usable().tolist() == []


def test_the_columns_are_those_of_the_compiled_kernels() -> None:
    p, q = rows(2, 100), rows(2, 100, seed=1)
    targets = torch.tensor([3, -1])
    found = measure([p, q], targets, 99, 100)
    expected = dispatch.measure_rows([p, q], targets, 99, 100)
    assert list(found.columns()) == list(expected.columns())
    for name, values in expected.columns().items():
        torch.testing.assert_close(
            found.columns()[name], values, rtol=1e-5, atol=NLL, equal_nan=True
        )


def test_triton_runs_wherever_these_tests_do() -> None:
    assert dispatch.runs_triton(torch.device(DEVICE), torch.bfloat16)


@pytest.mark.parametrize(
    ("dtype", "aligned"),
    [
        ("bf16", True),
        *(
            pytest.param(d, a, marks=pytest.mark.slow)
            for d, a in (("bf16", False), ("fp32", True), ("fp32", False))
        ),
    ],
)
@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_for_a_gpu_that_is_not_there_and_its_registers_suffice(
    capability: int, dtype: str, aligned: bool, tmp_path: Path
) -> None:
    program = Path(__file__).with_name("compiled_kernels.py")
    done = subprocess.run(
        [sys.executable, str(program), str(capability), dtype, str(int(aligned))],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for kernel, used in json.loads(done.stdout).items():
        assert used["REG"] <= 128, kernel
        # Two numbers of a row, which no loop over its logits needs, are now and then put aside.
        assert used["STACK"] <= 16, kernel
        assert used["LOCAL"] == 0, kernel
