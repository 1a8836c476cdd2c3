"""The compiled kernels against an oracle in wider numbers, and against the columns in float64."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from klcli.measure.kernels import dispatch, exact
from klcli.measure.kernels.dispatch import measure_rows
from klcli.measure.kernels.results import Measured, Predicted
from tests.measure import oracle
from tests.measure.kernel_facts import (
    DIVERGENCES,
    DTYPES,
    ENTROPY,
    INF,
    MASK,
    NLL,
    PROBABILITY,
    RELATIVE,
    assert_like_the_oracle,
    assert_side_in_float64,
    banned,
    compare,
    differences,
    pair,
    rows,
)

LARGEST = 262_144


def slow_to_compile(dtype: torch.dtype) -> object:
    """One model alone and every pair of dtypes are compiled apart, 3 to 5 s each."""
    return pytest.param(dtype, marks=pytest.mark.slow)


def assert_same(found: Measured, expected: Measured) -> None:
    """Bit by bit."""
    assert found.differences.keys() == expected.differences.keys()
    for name, values in found.differences.items():
        assert torch.equal(values, expected.differences[name]), name
    for side, wanted in zip(found.sides, expected.sides, strict=True):
        for name, values in side._asdict().items():
            assert torch.equal(values, getattr(wanted, name)), name


@pytest.fixture
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


class TestAccuracy:
    """Relative error at most 1e-4 from 1e-12 to 90 nats, whatever the vocabulary."""

    @pytest.mark.parametrize("size", [3, 513, 49_152])
    @pytest.mark.parametrize("distance", [2e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 5.0, 20.0])
    def test_float32_rows(self, size: int, distance: float) -> None:
        assert_like_the_oracle(*pair(size, distance))

    @pytest.mark.parametrize("distance", [2e-6, 1e-3, 1.0])
    def test_float32_rows_of_the_largest_vocabulary(self, distance: float) -> None:
        assert_like_the_oracle(*pair(LARGEST, distance))

    def test_the_closest_of_them_are_1e_12_nats_apart(self) -> None:
        assert 1e-12 < differences(*pair(49_152, 2e-6))["kl"] < 3e-12

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    @pytest.mark.parametrize("distance", [1e-3, 0.1, 1.0, 20.0])
    def test_rows_of_16_bits(self, dtype: torch.dtype, distance: float) -> None:
        assert_like_the_oracle(*pair(1_000, distance, dtype))

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    def test_rows_of_16_bits_of_the_largest_vocabulary(self, dtype: torch.dtype) -> None:
        assert_like_the_oracle(*pair(LARGEST, 0.1, dtype))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_one_improbable_token_a_little_off(self, dtype: torch.dtype) -> None:
        p = torch.zeros(49_152, dtype=dtype)
        q = p.clone()
        p[24_000], q[24_000] = -10.0, -10.0625
        assert 1e-12 < differences(p, q)["kl"] < 2e-12
        assert_like_the_oracle(p, q)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("size", [1_000, LARGEST])
    @pytest.mark.parametrize("gap", [50.0, 90.0])
    def test_a_kl_up_to_ninety_nats(self, gap: float, size: int, dtype: torch.dtype) -> None:
        p, q = torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype)
        p[0], q[1] = 60.0, gap
        assert differences(p, q)["kl"] == pytest.approx(gap, rel=1e-2)
        assert_like_the_oracle(p, q)

    @pytest.mark.parametrize("gap", [85.0, 88.0, 120.0, 300.0, 5_000.0, 20_000.0])
    def test_a_kl_beyond_that(self, gap: float) -> None:
        p, q = torch.zeros(1_000), torch.zeros(1_000)
        p[0], q[1] = 60.0, gap
        assert_like_the_oracle(p, q)

    @pytest.mark.parametrize("height", [10.0, 20.0])
    @pytest.mark.parametrize("distance", [1e-3, 0.1, 2.0])
    def test_sure_models_that_differ_in_the_rest(self, height: float, distance: float) -> None:
        p, q = pair(1_000, distance)
        p[7] = q[7] = p.max() + height
        assert_like_the_oracle(p, q)

    @pytest.mark.parametrize("flip", [False, True])
    def test_rows_that_rise_or_fall(self, flip: bool) -> None:
        p, q = (row.sort().values for row in pair(5_000, 0.01))
        assert_like_the_oracle(p.flip(0) if flip else p, q.flip(0) if flip else q)

    @pytest.mark.parametrize("shift", [1.0, 17.25, -100.0, 4_096.0])
    @pytest.mark.parametrize("distance", [0.01, 1.0])
    def test_a_constant_added_to_a_row(self, shift: float, distance: float) -> None:
        p, q = pair(5_000, distance)
        assert_like_the_oracle(p, q + shift)

    @pytest.mark.parametrize("shift", [1.0, 64.0, -4_096.0])
    def test_a_constant_added_without_rounding_makes_no_difference_at_all(
        self, shift: float
    ) -> None:
        p = (8 * pair(5_000, 0.0)[0]).round() / 8
        found = differences(p, p + shift)
        assert [found[name] for name in DIVERGENCES] == [0, 0, 0, 0]

    @pytest.mark.slow
    @pytest.mark.parametrize("dtypes", [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)])
    def test_sides_of_different_dtypes(self, dtypes: tuple[int, int]) -> None:
        p, q = pair(1_000, 0.1)
        assert_like_the_oracle(p.to(DTYPES[dtypes[0]]), q.to(DTYPES[dtypes[1]]))


class TestInvariants:
    @pytest.mark.parametrize("size", [1, 3, 1_000, LARGEST])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_equal_rows_have_divergence_exactly_zero(self, size: int, dtype: torch.dtype) -> None:
        p, _ = pair(size, 0.0, dtype)
        found = differences(p, p.clone(), target=size // 2)
        assert [found[name] for name in DIVERGENCES] == [0, 0, 0, 0]
        assert found["nll_difference"] == found["delta_p"] == 0
        assert found["overlap_5"] == 1

    @pytest.mark.parametrize("distance", [0, 1e-9, 1e-7, 1e-5, 1e-3, 0.1, 3.0])
    def test_no_divergence_is_negative(self, distance: float) -> None:
        found = differences(*pair(1_000, distance))
        assert min(found[name] for name in DIVERGENCES) >= 0

    @pytest.mark.parametrize("distance", [1e-4, 0.1, 9.0])
    def test_the_other_way_round_kl_and_kl_reverse_change_places(self, distance: float) -> None:
        p, q = pair(1_000, distance)
        there, back = differences(p, q), differences(q, p)
        for name, other in (("jsd", "jsd"), ("tv", "tv"), ("kl", "kl_reverse")):
            assert there[name] == pytest.approx(back[other], rel=1e-5)
        assert there["jsd"] <= math.log(2)
        assert there["tv"] <= 1

    def test_an_example_on_paper(self) -> None:
        p, q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
        found = differences(torch.tensor(p).log(), torch.tensor(q).log(), target=0)
        assert found["kl"] == pytest.approx(oracle.by_hand(p, q)["kl"], rel=RELATIVE)
        assert found["tv"] == pytest.approx(0.25, rel=RELATIVE)
        assert found["nll_difference"] == pytest.approx(math.log(2), abs=NLL)
        assert found["delta_p"] == pytest.approx(-0.25, abs=PROBABILITY)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("distance", [1e-3, 0.1, 5.0])
    def test_at_the_target_it_is_as_in_float64(self, dtype: torch.dtype, distance: float) -> None:
        p, q = pair(1_000, distance, dtype)
        log_p, log_q = (exact.log_probabilities(row[None]) for row in (p, q))
        expected = exact.at_target(log_p, log_q, torch.tensor([5]))
        found = differences(p, q, target=5)
        assert found["nll_difference"] == pytest.approx(float(expected["nll_difference"]), abs=NLL)
        assert found["delta_p"] == pytest.approx(float(expected["delta_p"]), abs=PROBABILITY)


DIGEST = """
import torch
from klcli.measure.kernels.dispatch import measure_rows
p = torch.randn(16, 3000, generator=torch.Generator().manual_seed(0)) * 3
q = p + torch.randn(16, 3000, generator=torch.Generator().manual_seed(1)) / 3
columns = measure_rows([p, q], torch.arange(16), 3000, 3000).columns()
print([columns[name].tolist() for name in sorted(columns)])
"""


@pytest.mark.slow
def test_a_process_that_compiles_has_the_digits_of_those_that_read_the_machine_code(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", DIGEST]
    said = [subprocess.check_output(command, env=environment, text=True) for _ in range(2)]
    assert any(tmp_path.rglob("*.nbc"))
    assert said[0] == said[1]


class TestSupports:
    """-inf is legal: a token that is banned."""

    SOME = (slice(0, 1), slice(3, 900), slice(400, 1_000), slice(0, 1_000, 2))

    @pytest.mark.parametrize("some", SOME, ids=str)
    def test_banned_in_the_reference_only(self, some: slice) -> None:
        p, q = pair(1_000, 0.01)
        assert differences(banned(p, some), q)["kl_reverse"] == INF
        assert_like_the_oracle(banned(p, some), q)

    @pytest.mark.parametrize("some", SOME, ids=str)
    def test_banned_in_the_candidate_only_is_infinite(self, some: slice) -> None:
        p, q = pair(1_000, 0.01)
        found = differences(p, banned(q, some), target=some.start)
        assert (found["kl"], found["nll_difference"]) == (INF, INF)
        assert_like_the_oracle(p, banned(q, some))

    def test_banned_in_the_reference_where_the_candidate_hardly_goes(self) -> None:
        p, q = torch.tensor([1.0, 2.0, -INF]), torch.tensor([1.0, 2.0, -18.0])
        uncovered = -math.log1p(-float(torch.softmax(q.double(), 0)[2]))
        assert differences(p, q)["kl"] == pytest.approx(uncovered, rel=RELATIVE)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("some", SOME, ids=str)
    def test_banned_in_both_counts_for_nothing(self, some: slice, dtype: torch.dtype) -> None:
        p, q = (banned(row, some) for row in pair(1_000, 0.1, dtype))
        assert_like_the_oracle(p, q)
        narrow = differences(p[p > -INF], q[q > -INF])
        assert differences(p, q)["kl"] == pytest.approx(narrow["kl"], rel=1e-5)

    def test_disjoint_supports_are_ln_2_apart(self) -> None:
        found = differences(torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0]))
        assert found["jsd"] == pytest.approx(math.log(2))
        assert (found["kl"], found["kl_reverse"], found["tv"]) == (INF, INF, 1.0)

    def test_all_but_one_banned(self) -> None:
        p = torch.full((1_000,), -INF)
        p[5] = 1.0
        q, _ = pair(1_000, 0.0)
        assert differences(p, p.clone(), target=5)["kl"] == 0
        assert float(compare(p, p.clone(), target=5).sides[0].nll) == 0
        assert_like_the_oracle(p, q)
        assert_like_the_oracle(q, p)

    @pytest.mark.parametrize("mask", [MASK, -1e9, -1e4, -200.0])
    @pytest.mark.parametrize("some", SOME, ids=str)
    def test_large_negative_masks_are_banned_tokens(self, mask: float, some: slice) -> None:
        p, q = pair(1_000, 0.01)
        found = differences(banned(p, some, mask), banned(q, some, mask))
        expected = differences(banned(p, some), banned(q, some))
        for name in DIVERGENCES:
            assert found[name] == pytest.approx(expected[name], rel=1e-5), name
        assert_like_the_oracle(banned(p, some, mask), banned(q, some, mask))

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    def test_the_lowest_number_of_16_bits_is_a_banned_token(self, dtype: torch.dtype) -> None:
        p, q = pair(1_000, 0.1, dtype)
        lowest = torch.finfo(dtype).min
        assert_like_the_oracle(*(banned(row, slice(3, 900), lowest) for row in (p, q)))

    def test_minus_infinity_here_and_a_mask_there_are_the_same(self) -> None:
        p, q = pair(1_000, 0.01)
        some = slice(3, 900)
        found = differences(banned(p, some, MASK), banned(q, some))
        expected = differences(banned(p, some), banned(q, some))
        for name in DIVERGENCES:
            assert found[name] == pytest.approx(expected[name], rel=1e-5), name

    @pytest.mark.parametrize("mask", [MASK, -1e9, -1e4, -200.0])
    def test_a_mask_in_one_alone_is_huge_but_finite(self, mask: float) -> None:
        p, q = pair(1_000, 0.01)
        assert_like_the_oracle(p, banned(q, slice(3, 900), mask))
        assert_like_the_oracle(banned(p, slice(3, 900), mask), q)

    def test_of_rows_that_are_masked_throughout_all_tokens_are_alike(self) -> None:
        masked = torch.full((1_000,), MASK)
        q, _ = pair(1_000, 0.0)
        found = compare(masked, masked.clone(), target=3)
        assert float(found.sides[0].nll) == pytest.approx(math.log(1_000), abs=NLL)
        assert float(found.differences["kl"]) == 0
        assert_like_the_oracle(masked, q)


class TestPredictions:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("size", [5, 512, 49_152])
    def test_they_are_those_of_float64(self, size: int, dtype: torch.dtype) -> None:
        logits = rows(6, size).to(dtype)
        targets = torch.tensor([0, 1, size // 2, size - 1, -1, 2])
        found = measure_rows([logits, logits.flip(0)], targets, size - 2, size)
        assert_side_in_float64(found.sides[0], logits, targets, size - 2)
        assert_side_in_float64(found.sides[1], logits.flip(0), targets, size - 2)

    def test_of_the_largest_vocabulary_too(self) -> None:
        logits, targets = rows(2, LARGEST), torch.tensor([7, LARGEST - 1])
        found = measure_rows([logits, logits], targets, LARGEST - 9, LARGEST)
        assert_side_in_float64(found.sides[0], logits, targets, LARGEST - 9)

    def test_nll_and_entropy_are_those_of_the_oracle(self) -> None:
        logits, _ = pair(49_152, 0.0)
        side = compare(logits, logits, target=7).sides[0]
        expected = oracle.log_softmax(logits.numpy())
        assert float(side.nll) == pytest.approx(-float(expected[7]), abs=NLL)
        assert float(side.entropy) == pytest.approx(oracle.entropy(logits.numpy()), abs=ENTROPY)

    @pytest.mark.parametrize(
        "dtype", [DTYPES[0], *map(slow_to_compile, DTYPES[1:])], ids=["f32", "bf16", "f16"]
    )
    def test_of_a_model_alone_they_are_those_of_a_side_of_a_pair(self, dtype: torch.dtype) -> None:
        logits = rows(8, 3_000).to(dtype)
        logits[2, 7] = math.nan
        logits[3] = -INF
        logits[4, :2_000] = -INF
        targets = torch.tensor([1, 2, 3, 4, 5, -1, 2_999, 0])
        alone = measure_rows([logits], targets, 2_900, 3_000)
        both = measure_rows([logits, logits.flip(0)], targets, 2_900, 3_000)
        assert alone.differences == {}
        for name, values in alone.sides[0]._asdict().items():
            expected = getattr(both.sides[0], name)
            torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)

    def test_rank_counts_the_tokens_that_are_more_probable(self) -> None:
        row = torch.tensor([2.0, 5.0, 5.0, 1.0])
        ranks = [int(compare(row, row, target).sides[0].rank) for target in range(4)]
        assert ranks == [2, 0, 0, 3]

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_ties_are_won_by_the_lowest_ids(self, dtype: torch.dtype) -> None:
        p = torch.zeros(50_000, dtype=dtype)
        q = p.clone()
        p[[7, 4_000, 49_000]] = 3.0
        found = compare(p, q)
        assert found.sides[0].top_ids.tolist() == [[7, 4_000, 49_000, 0, 1, 2, 3, 4, 5, 6]]
        assert found.sides[1].top_ids.tolist() == [list(range(10))]
        assert found.sides[0].top1.tolist() == [7]
        assert float(found.differences["overlap_5"]) == pytest.approx(0.4)

    @pytest.mark.parametrize("levels", [2, 5, 50])
    def test_rows_with_many_ties_are_as_a_stable_sort_has_them(self, levels: int) -> None:
        generator = torch.Generator().manual_seed(levels)
        logits = (torch.rand(8, 3_000, generator=generator) * levels).floor()
        found = measure_rows([logits, logits], torch.zeros(8, dtype=torch.long), 3_000, 3_000)
        expected = logits.sort(dim=-1, descending=True, stable=True).indices[:, :10]
        assert torch.equal(found.sides[0].top_ids, expected)

    def test_zero_and_minus_zero_tie(self) -> None:
        row = torch.tensor([-0.0, 0.0, -0.0, 0.0, -1.0, 0.0])
        found = compare(row, row, target=0).sides[0]
        assert found.top_ids.tolist() == [[0, 1, 2, 3, 5, 4]]
        assert int(found.rank) == 0

    def test_an_unknown_target_has_neither_nll_nor_rank(self) -> None:
        found = compare(torch.zeros(4), torch.zeros(4), target=-1)
        for side in found.sides:
            assert math.isnan(float(side.nll))
            assert int(side.rank) == -1
            assert float(side.entropy) == pytest.approx(math.log(4), abs=ENTROPY)
        assert math.isnan(float(found.differences["nll_difference"]))
        assert math.isnan(float(found.differences["delta_p"]))
        assert float(found.differences["kl"]) == 0

    def test_a_certain_prediction_has_nll_zero_not_minus_zero(self) -> None:
        row = torch.tensor([0.0, -INF])
        side = compare(row, row, target=0).sides[0]
        assert math.copysign(1, float(side.nll)) == 1
        assert math.copysign(1, float(side.entropy)) == 1
        assert (float(side.nll), float(side.entropy), float(side.confidence)) == (0, 0, 1)

    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_a_vocabulary_smaller_than_five_gives_all_of_it(self, size: int) -> None:
        p = torch.arange(float(size))
        found = compare(p, p.flip(0), target=0)
        assert found.sides[0].top_ids.tolist() == [list(range(size))[::-1]]
        assert found.sides[1].top_ids.tolist() == [list(range(size))]
        assert float(found.differences["overlap_5"]) == 1
        assert_side_in_float64(found.sides[0], p[None], torch.tensor([0]), size)

    def test_padded_mass_is_the_probability_of_ids_without_a_token(self) -> None:
        row, targets = torch.zeros(1, 8), torch.tensor([0])
        masses = [
            float(measure_rows([row, row], targets, size, 8).sides[0].padded_mass)
            for size in (6, 8, 9)
        ]
        assert masses == pytest.approx([0.25, 0, 0])


class TestUnusableRows:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("place", [0, 700, 999])
    @pytest.mark.parametrize("value", [math.nan, -math.nan, INF], ids=["nan", "-nan", "inf"])
    def test_one_nan_or_plus_infinity_spoils_a_row(
        self, value: float, place: int, dtype: torch.dtype
    ) -> None:
        logits, spoilt = rows(2, 1_000).to(dtype), rows(2, 1_000).to(dtype)
        spoilt[0, place] = value
        targets = torch.tensor([place, place])
        for found, side in (
            (measure_rows([logits, spoilt], targets, 990, 1_000), 1),
            (measure_rows([spoilt, logits], targets, 990, 1_000), 0),
        ):
            assert found.usable().tolist() == [False, True]
            assert found.sides[side].usable.tolist() == [False, True]
            assert found.sides[1 - side].usable.tolist() == [True, True]
            for values in found.differences.values():
                assert values.isnan().tolist() == [True, False]

    def test_minus_infinity_throughout_is_no_distribution(self) -> None:
        found = compare(torch.zeros(1_000), torch.full((1_000,), -INF))
        assert [side.usable.tolist() for side in found.sides] == [[True], [False]]
        assert found.usable().tolist() == [False]

    def test_they_have_no_numbers_ranks_or_ids(self) -> None:
        side = compare(torch.tensor([0.0, math.nan, 1.0]), torch.zeros(3), target=0).sides[0]
        for values in (side.nll, side.entropy, side.confidence, side.padded_mass):
            assert values.isnan().all()
        assert side.rank.tolist() == side.top1.tolist() == [-1]
        assert side.top_ids.tolist() == [[-1, -1, -1]]

    def test_the_other_side_is_as_if_nothing_were_wrong(self) -> None:
        logits, targets = rows(1, 1_000), torch.tensor([3])
        found = measure_rows([torch.full_like(logits, math.nan), logits], targets, 990, 1_000)
        assert_side_in_float64(found.sides[1], logits, targets, 990)


class TestLayout:
    """However rows lie in memory, and whichever thread reads them, they are measured alike."""

    COUNT, WIDE, WIDTH, SIZE = 37, 1_300, 1_200, 1_100

    def one_by_one(self, p: Tensor, q: Tensor, targets: Tensor) -> list[Measured]:
        return [
            measure_rows(
                [side[i : i + 1, : self.WIDTH].clone() for side in (p, q)],
                targets[i : i + 1],
                self.SIZE,
                self.WIDTH,
            )
            for i in range(len(targets))
        ]

    def expected(self, p: Tensor, q: Tensor, targets: Tensor) -> Measured:
        parts = self.one_by_one(p, q, targets)
        return Measured(
            sides=tuple(
                Predicted(*(torch.cat(columns) for columns in zip(*sides, strict=True)))
                for sides in zip(*(part.sides for part in parts), strict=True)
            ),
            differences={
                name: torch.cat([part.differences[name] for part in parts])
                for name in parts[0].differences
            },
        )

    def given(self) -> tuple[Tensor, Tensor, Tensor]:
        p, q = rows(self.COUNT, self.WIDE), rows(self.COUNT, self.WIDE, seed=1)
        return p, q, torch.arange(self.COUNT) * 30

    @pytest.mark.usefixtures("three_threads")
    def test_many_rows_over_threads_are_as_row_by_row(self) -> None:
        p, q, targets = self.given()
        found = measure_rows([p, q], targets, self.SIZE, self.WIDTH)
        assert_same(found, self.expected(p, q, targets))

    @pytest.mark.usefixtures("three_threads")
    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    def test_so_are_fewer_rows_than_threads(self, count: int) -> None:
        p, q, targets = (x[:count] for x in self.given())
        found = measure_rows([p, q], targets, self.SIZE, self.WIDTH)
        assert_same(found, self.expected(p, q, targets))

    def test_columns_beyond_the_width_are_as_if_they_were_not_there(self) -> None:
        p, q, targets = self.given()
        expected = self.expected(p, q, targets)
        p, q = p[:, :1_250].clone(), q.clone()
        p[:, self.WIDTH :], q[:, self.WIDTH :] = math.nan, 1e9
        assert_same(measure_rows([p, q], targets, self.SIZE, self.WIDTH), expected)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_rows_with_gaps_between_them(self, dtype: torch.dtype) -> None:
        p, q, targets = self.given()
        p, q = p.to(dtype), q.to(dtype)
        found = measure_rows([p[5:36:3, 7:1_250], q[5:36:3]], targets[:11], self.SIZE, self.WIDTH)
        assert_same(found, self.expected(p[5:36:3, 7:], q[5:36:3], targets[:11]))

    def test_columns_with_gaps_between_them(self) -> None:
        p, q, targets = self.given()
        apart = torch.stack([p, q], dim=-1)
        for a, b in ((p.t().contiguous().t(), q), (apart[..., 0], apart[..., 1])):
            found = measure_rows([a, b], targets, self.SIZE, self.WIDTH)
            assert_same(found, self.expected(p, q, targets))

    def test_one_row_seen_many_times(self) -> None:
        p, q, targets = self.given()
        shared = p[:1].expand(self.COUNT, -1)
        found = measure_rows([shared, q], targets, self.SIZE, self.WIDTH)
        assert_same(found, self.expected(shared, q, targets))

    def test_logits_with_a_gradient(self) -> None:
        p, q, targets = self.given()
        found = measure_rows([p.requires_grad_(), q], targets, self.SIZE, self.WIDTH)
        assert_same(found, self.expected(p.detach(), q, targets))

    def test_logits_are_left_as_they_were(self) -> None:
        p, q, targets = self.given()
        before = p.clone()
        measure_rows([p, q], targets, self.SIZE, self.WIDTH)
        assert torch.equal(p, before)

    def test_targets_of_32_bits(self) -> None:
        p, q, targets = self.given()
        found = measure_rows([p, q], targets.int(), self.SIZE, self.WIDTH)
        assert_same(found, self.expected(p, q, targets))

    def test_no_rows(self) -> None:
        p, q, targets = (x[:0] for x in self.given())
        found = measure_rows([p, q], targets, self.SIZE, self.WIDTH)
        assert {tuple(values.shape) for values in found.columns().values()} == {(0,)}
        assert found.sides[0].top_ids.shape == (0, 10)
        assert found.usable().tolist() == []


class TestArguments:
    def test_a_target_beyond_the_width_is_an_error(self) -> None:
        logits = torch.zeros(2, 10)
        with pytest.raises(IndexError, match="a target is 8, the rows have 8 ids"):
            measure_rows([logits, logits], torch.tensor([0, 8]), 10, 8)

    @pytest.mark.parametrize("width", [0, 11])
    def test_a_width_that_rows_do_not_have_is_an_error(self, width: int) -> None:
        logits = torch.zeros(1, 10)
        with pytest.raises(ValueError, match=f"no {width} columns"):
            measure_rows([logits, logits], torch.tensor([-1]), 10, width)

    def test_logits_of_a_single_dimension_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="columns in logits of shape"):
            measure_rows([torch.zeros(10)], torch.tensor([-1]), 10, 10)

    def test_float64_is_not_supported(self) -> None:
        logits = torch.zeros(1, 10, dtype=torch.float64)
        assert not dispatch.supports(logits)
        with pytest.raises(TypeError, match="no kernel for logits of torch"):
            measure_rows([logits], torch.tensor([0]), 10, 10)

    def test_rows_without_targets_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="3 rows have 2 targets"):
            measure_rows([torch.zeros(3, 10)], torch.tensor([0, 1]), 10, 10)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_the_usual_dtypes_are_on_a_cpu_but_not_just_anywhere(self, dtype: torch.dtype) -> None:
        assert dispatch.supports(torch.zeros(1, 10, dtype=dtype))
        assert not dispatch.supports(torch.zeros(1, 10, dtype=dtype, device="meta"))


def stand_in(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., None]) -> None:
    """Put a function in the place of the kernels for GPUs."""
    module = ModuleType("klcli.measure.kernels.gpu")
    monkeypatch.setattr(module, "measure_rows", measure, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("klcli.measure.kernels.gpu", module, raising=False)


class TestDevices:
    """Where blocks are measured; the devices themselves need not be there."""

    @pytest.mark.parametrize(
        ("devices", "expected"),
        [
            (["cpu"], "cpu"),
            (["cpu", "cpu"], "cpu"),
            (["cuda:1"], "cuda:1"),
            (["cpu", "cuda:1"], "cuda:1"),
            (["cuda:0", "cpu"], "cuda:0"),
            (["cuda:1", "cuda:0"], "cuda:1"),
        ],
        ids=str,
    )
    def test_both_sides_go_to_the_first_device_that_is_not_the_cpu(
        self, devices: list[str], expected: str
    ) -> None:
        found = dispatch.scoring_device([torch.device(name) for name in devices])
        assert found == torch.device(expected)

    @pytest.mark.parametrize("devices", [["mps"], ["mps", "cpu"], ["cpu", "mps:0"]], ids=str)
    def test_what_lies_on_a_device_without_float64_goes_to_the_cpu(
        self, devices: list[str]
    ) -> None:
        found = dispatch.scoring_device([torch.device(name) for name in devices])
        assert found == torch.device("cpu")

    def test_what_lies_elsewhere_is_measured_there_by_triton(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[Any] = []
        stand_in(monkeypatch, lambda *arguments: calls.append(arguments))
        monkeypatch.setattr(dispatch, "supports", lambda logits: True)
        p, q = torch.zeros(2, 10), torch.zeros(2, 12, device="meta")
        measure_rows([p, q], torch.tensor([0, 1]), 9, 8)
        ((sides, targets, *sizes),) = calls
        assert {tensor.device.type for tensor in (*sides, targets)} == {"meta"}
        assert [tuple(side.shape) for side in sides] == [(2, 8), (2, 8)]
        assert sizes == [9, 8]

    def test_without_triton_there_is_no_kernel_for_a_gpu(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.delitem(sys.modules, "klcli.measure.kernels.gpu", raising=False)
        assert not dispatch.runs_triton.__wrapped__(torch.device("cpu"), torch.float32)

    def test_where_triton_does_not_run_it_is_said_and_done_without(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("no C compiler")

        stand_in(monkeypatch, fail)
        with pytest.warns(UserWarning, match="float64 takes longer: .*no C compiler"):
            assert not dispatch.runs_triton.__wrapped__(torch.device("cpu"), torch.float32)


class TestColumns:
    OF_A_SIDE = ("nll", "rank", "entropy", "top1", "confidence")

    def test_of_one_model_they_have_plain_names(self) -> None:
        columns = measure_rows([torch.zeros(1, 10)], torch.tensor([0]), 10, 10).columns()
        assert set(columns) == set(self.OF_A_SIDE)

    def test_of_two_they_say_whose_they_are(self) -> None:
        p, q = pair(1_000, 1.0)
        found = compare(p, q, target=2)
        columns = found.columns()
        differences = {*DIVERGENCES, "nll_difference", "delta_p", "overlap_5"}
        sides = {f"{name}_{s}" for name in self.OF_A_SIDE for s in ("reference", "candidate")}
        assert set(columns) == differences | sides
        assert columns["nll_candidate"] is found.sides[1].nll
        assert torch.equal(columns["top1_reference"], found.sides[0].top_ids[:, 0])
