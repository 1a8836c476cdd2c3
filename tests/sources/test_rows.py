"""Rows: the same hidden states give the same bits, in blocks of one size."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klcli.sources.head import Head
from klcli.sources.rows import (
    BLOCK_BYTES,
    LARGEST_BLOCK,
    SMALLEST_BLOCK,
    HeadRows,
    TensorRows,
    block_rows,
)

D, WIDTH, SIZE = 48, 1000, 16
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


def hidden_states(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def head_of(dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    weight = torch.randn(WIDTH, D, generator=torch.Generator().manual_seed(2)).to(dtype)
    return lambda hidden: torch.nn.functional.linear(hidden, weight)


def blocks_of(rows: HeadRows) -> list[Tensor]:
    return [
        rows.block(start, min(start + rows.size, len(rows)))
        for start in range(0, len(rows), rows.size)
    ]


@DTYPES
def test_rows_are_what_the_head_makes_of_the_hidden_states(dtype: torch.dtype) -> None:
    hidden = hidden_states(40, dtype)
    rows = HeadRows(hidden, head_of(dtype), SIZE)
    assert len(rows) == 40
    whole = torch.cat(blocks_of(rows))
    assert whole.dtype == dtype
    torch.testing.assert_close(whole, head_of(dtype)(hidden))


@DTYPES
@pytest.mark.parametrize("count", [1, 5, 15, 16, 17, 33])
def test_a_padded_last_block_has_the_bits_of_a_full_one(count: int, dtype: torch.dtype) -> None:
    hidden = hidden_states(48, dtype)
    full = torch.cat(blocks_of(HeadRows(hidden, head_of(dtype), SIZE)))
    short = torch.cat(blocks_of(HeadRows(hidden[:count], head_of(dtype), SIZE)))
    assert torch.equal(short, full[:count])


@DTYPES
@pytest.mark.parametrize(
    "store",
    [
        pytest.param(lambda hidden: hidden.clone(), id="a copy"),
        pytest.param(lambda hidden: torch.cat([hidden, hidden])[: len(hidden)], id="a slice"),
        pytest.param(
            lambda hidden: torch.cat([hidden[:SIZE], hidden])[SIZE:], id="a slice further on"
        ),
    ],
)
def test_blocks_have_the_same_bits_wherever_the_hidden_states_are_kept(
    store: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    hidden = hidden_states(37, dtype)
    expected = blocks_of(HeadRows(hidden, head_of(dtype), SIZE))
    found = blocks_of(HeadRows(store(hidden), head_of(dtype), SIZE))
    assert [b.shape[0] for b in found] == [16, 16, 5]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@settings(deadline=None)
@given(st.integers(0, 39), st.integers(1, SIZE))
def test_any_part_of_a_block_has_the_bits_of_the_block(start: int, count: int) -> None:
    rows = HeadRows(hidden_states(40), head_of(), SIZE)
    whole = torch.cat(blocks_of(rows))
    stop = min(start + count, start - start % SIZE + SIZE, 40)
    assert torch.equal(rows.block(start, stop), whole[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(0, 17), (15, 17), (16, 33)])
def test_rows_that_cross_a_block_are_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"rows {start} to {stop} cross a block of 16"):
        HeadRows(hidden_states(40), head_of(), SIZE).block(start, stop)


def test_the_head_always_multiplies_one_whole_block_and_once_only() -> None:
    seen = []

    def head(hidden: Tensor) -> Tensor:
        seen.append(tuple(hidden.shape))
        return head_of()(hidden)

    rows = HeadRows(hidden_states(37), head, SIZE)
    for start in range(0, 37, 4):
        rows.block(start, min(start + 4, 37))
    assert seen == [(SIZE, D)] * 3


widths = st.integers(1, 2_000_000)
element_sizes = st.sampled_from([2, 4, 8])


@settings(deadline=None)
@given(widths, element_sizes)
def test_a_block_is_a_power_of_two_of_rows_and_the_largest_that_fits(
    width: int, element_size: int
) -> None:
    rows = block_rows(width, element_size)
    assert rows.bit_count() == 1
    assert SMALLEST_BLOCK <= rows <= LARGEST_BLOCK
    assert rows == SMALLEST_BLOCK or rows * width * element_size <= BLOCK_BYTES
    assert rows == LARGEST_BLOCK or 2 * rows * width * element_size > BLOCK_BYTES


@pytest.mark.parametrize(
    ("width", "element_size", "rows"),
    [
        pytest.param(112, 4, 512, id="fixtures"),
        pytest.param(49_152, 4, 512, id="SmolLM2"),
        pytest.param(128_256, 2, 512, id="Llama 3 in 16 bits"),
        pytest.param(128_256, 4, 256, id="Llama 3 in 32 bits"),
        pytest.param(262_144, 4, 128, id="Gemma in 32 bits"),
        pytest.param(10_000_000, 4, 16, id="never below 16"),
    ],
)
def test_how_many_rows_a_block_has(width: int, element_size: int, rows: int) -> None:
    assert block_rows(width, element_size) == rows


@given(widths, widths, element_sizes, element_sizes)
def test_of_two_sources_the_smaller_block_divides_the_larger(
    width: int, other: int, size: int, other_size: int
) -> None:
    small, large = sorted([block_rows(width, size), block_rows(other, other_size)])
    assert large % small == 0


def test_rows_of_logits_that_exist_are_slices_of_them() -> None:
    logits = torch.randn(20, 7)
    rows = TensorRows(logits)
    assert (len(rows), rows.kind) == (20, "logits")
    assert torch.equal(rows.block(3, 20), logits[3:20])


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stored", [True, False], ids=["a stored matrix", "a layer"])
def test_a_head_that_writes_its_logits_over_the_last_ones_gives_the_same_bits(
    stored: bool, bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(D, WIDTH, bias=bias).to(dtype).requires_grad_(False)
    head = Head(project=layer, size=D, dtype=torch.float32, softcap=30.0)
    if stored:
        head = head.with_matrix(head.matrix(dtype, torch.device("cpu")))
    reusing = head.reusing()
    for rows in (16, 32, 32, 5):
        hidden = torch.randn(rows, D).to(dtype)
        assert torch.equal(reusing(hidden), head(hidden))


def test_a_plain_head_writes_over_the_last_logits_and_another_layer_does_not() -> None:
    plain = Head(project=torch.nn.Linear(D, WIDTH), size=D, dtype=torch.float32)
    made = plain.reusing()
    assert made(hidden_states(16)).data_ptr() == made(hidden_states(16)).data_ptr()
    hooked = torch.nn.Linear(D, WIDTH)
    hooked.register_forward_hook(lambda *_: None)
    head = Head(project=hooked, size=D, dtype=torch.float32)
    assert head.reusing() is head


def test_rows_whose_block_was_written_over_make_it_again() -> None:
    head = Head(project=torch.nn.Linear(D, WIDTH), size=D, dtype=torch.float32)
    shared = head.reusing()
    one, other = (HeadRows(hidden_states(n), shared, SIZE) for n in (SIZE, 2 * SIZE))
    before = one.block(0, SIZE).clone()
    other.block(SIZE, 2 * SIZE)
    assert torch.equal(one.block(0, SIZE), before)
