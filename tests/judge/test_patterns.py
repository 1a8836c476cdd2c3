"""Slices by regular expressions: the tokens that overlap a match, against straight loops."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klcli.errors import UsageError
from klcli.judge.marks import marked, matches_of
from klcli.judge.patterns import parse_patterns
from klcli.judge.report import Slice
from klcli.judge.slices import slice_tokens
from klcli.text.vocabulary import NumberedTokens
from klcli.text.windows import WindowTable
from tests.judge.test_slices import names_of, scores_of, table_of

PIECES = ["See", " 42", " cat", "s", " 3", ".14", " caf", "é", "é 7", "🙂", "9", "\n", "10"]


def overlapping(pieces: list[str], pattern: str) -> list[bool]:
    """Whether each token shares a character with a match, character by character."""
    text = "".join(pieces)
    inside = [False] * len(text)
    for match in re.finditer(pattern, text):
        for place in range(*match.span()):
            inside[place] = True
    found, start = [], 0
    for piece in pieces:
        found.append(any(inside[start : start + len(piece)]))
        start += len(piece)
    return found


@given(
    st.lists(st.text("ab1 é🙂\n", min_size=1, max_size=4), min_size=1, max_size=20),
    st.sampled_from(["[0-9]+", "é.", "a*", "🙂|b", r"\s+\S", "(?s).+", "^a", "b$"]),
    st.booleans(),
)
def test_a_token_is_marked_where_it_overlaps_a_match(
    pieces: list[str], pattern: str, text_known: bool
) -> None:
    table = table_of(pieces, context=7, text_known=text_known)
    found = marked(table, names_of(pieces), matches_of(re.compile(pattern)))
    assert found.tolist() == overlapping(pieces, pattern)


def sliced(table: WindowTable, *patterns: str, **columns: Any) -> dict[str, Slice]:
    found = slice_tokens(
        scores_of(table, **columns), table, names_of(PIECES), parse_patterns(patterns)
    )
    return {one.slice: one for one in found if one.by == "regex"}


def test_each_pattern_has_its_share_of_all_kl() -> None:
    kl = np.random.default_rng(0).lognormal(size=len(PIECES))
    found = sliced(table_of(PIECES), "numbers=[0-9]+", "wide=[0-9é]+", kl=kl)
    for name, pattern in (("numbers", "[0-9]+"), ("wide", "[0-9é]+")):
        own = overlapping(PIECES, pattern)
        assert found[name].tokens == sum(own)
        assert found[name].means["share"] == pytest.approx(kl[own].sum() / kl.sum())
        assert found[name].means["kl"] == pytest.approx(kl[own].mean())


def test_a_pattern_that_finds_nothing_is_told_too() -> None:
    found = sliced(table_of(PIECES), "none=absent")
    assert found["none"].tokens == 0
    assert found["none"].means["kl"] is None
    assert found["none"].means["share"] == 0


def test_excluded_tokens_are_in_no_pattern() -> None:
    excluded = np.arange(len(PIECES)) == 1
    kl = np.where(excluded, np.nan, 1.0)
    found = sliced(table_of(PIECES), "numbers=[0-9]+", kl=kl, excluded=excluded)
    assert found["numbers"].tokens == sum(overlapping(PIECES, "[0-9]+")) - 1
    assert found["numbers"].means["kl"] == 1


def test_an_answer_that_ends_within_a_character_keeps_its_bytes_in_place() -> None:
    content = "a🙂".encode()[:3] + b" 12"
    assert list(matches_of(re.compile("[0-9]+"))(content)) == [(4, 6)]


def test_tokens_that_have_only_a_number_match_nothing() -> None:
    table = table_of(PIECES, text_known=False)
    found = slice_tokens(
        scores_of(table), table, NumberedTokens(size=20), parse_patterns(["a=[0-9]"])
    )
    assert "regex" not in {one.by for one in found}


def test_a_pattern_may_hold_what_stands_between_it_and_its_name() -> None:
    (one,) = parse_patterns(["is = a=b"])
    assert (one.name, one.pattern.pattern) == ("is", " a=b")


@pytest.mark.parametrize(
    ("patterns", "says"),
    [
        (["numbers"], "has no name: write NAME=PATTERN"),
        (["=[0-9]"], "has no name"),
        ([" =[0-9]"], "has no name"),
        (["a=("], "is no regular expression: missing )"),
        (["a=b", "a=c"], "'a' is there twice"),
        (["a="], "matches the empty string only"),
        (["a=^"], "matches the empty string only"),
        (["a=(?=b)"], "matches the empty string only"),
    ],
)
def test_what_is_no_pattern_is_a_usage_error_that_says_why(patterns: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        parse_patterns(patterns)
