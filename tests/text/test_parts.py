"""Parts of a text, in bytes, as parts of its tokens."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klcli.text.corpus import Part
from klcli.text.parts import parts_in_tokens


def part(start: int, stop: int, role: str = "assistant", *, scored: bool = True) -> Part:
    return Part(start=start, stop=stop, role=role, turn=1, is_scored=scored)


def prompt(start: int, stop: int) -> Part:
    return part(start, stop, "prompt", scored=False)


def scored(parts: tuple[Part, ...]) -> list[int]:
    return [place for one in parts if one.is_scored for place in range(one.start, one.stop)]


def test_a_token_belongs_to_the_part_in_which_it_begins() -> None:
    found, lost = parts_in_tokens([prompt(0, 5), part(5, 9)], np.array([2, 5, 7, 9]))
    assert [(one.start, one.stop, one.role) for one in found] == [
        (0, 2, "prompt"), (2, 4, "assistant"),
    ]  # fmt: skip
    assert not lost


def test_an_answer_into_which_a_token_runs_is_lost() -> None:
    answer = part(5, 9)
    found, lost = parts_in_tokens([prompt(0, 5), answer], np.array([2, 6, 7, 9]))
    assert lost == [answer]
    assert scored(found) == []


def test_a_token_that_runs_out_of_an_answer_is_left_out() -> None:
    parts = [prompt(0, 5), part(5, 8), part(8, 12, "template", scored=False)]
    found, lost = parts_in_tokens(parts, np.array([5, 7, 10, 12]))
    assert (scored(found), lost) == ([1], [])


def test_an_answer_goes_on_where_its_reasoning_ends_in_the_middle_of_a_token() -> None:
    parts = [prompt(0, 2), part(2, 5, "reasoning"), part(5, 9)]
    found, lost = parts_in_tokens(parts, np.array([2, 4, 7, 9]))
    assert (scored(found), lost) == ([1, 2, 3], [])


def test_a_token_that_begins_in_reasoning_which_is_not_scored_is_not_scored() -> None:
    parts = [prompt(0, 2), part(2, 5, "reasoning", scored=False), part(5, 9)]
    found, lost = parts_in_tokens(parts, np.array([2, 4, 7, 9]))
    assert (scored(found), lost) == ([3], [])


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    cuts=st.lists(st.booleans(), min_size=48, max_size=48),
    flags=st.lists(st.booleans(), min_size=50, max_size=50),
)
def test_no_token_is_scored_that_is_not_wholly_in_scored_parts(
    sizes: list[int], cuts: list[bool], flags: list[bool]
) -> None:
    ends = np.cumsum(sizes)
    borders = [0, *(n for n in range(1, int(ends[-1])) if cuts[n]), int(ends[-1])]
    pairs = list(itertools.pairwise(borders))
    parts = [part(a, b, scored=flags[place]) for place, (a, b) in enumerate(pairs)]
    inside = {n for one in parts if one.is_scored for n in range(one.start, one.stop)}
    found, _lost = parts_in_tokens(parts, ends)
    for place in scored(found):
        start = int(ends[place - 1]) if place else 0
        assert {*range(start, int(ends[place]))} <= inside


@pytest.mark.parametrize("ends", [[3], [1, 3], [1, 2, 3]])
def test_the_parts_of_tokens_tile_them(ends: list[int]) -> None:
    found, _ = parts_in_tokens([prompt(0, 1), part(1, 3)], np.array(ends))
    assert found[0].start == 0
    assert found[-1].stop == len(ends)
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))
