"""Slices of conversations and answers: by role, turn and place, against straight loops."""

from collections import defaultdict

import numpy as np
import pytest

from klcli.judge.report import Slice
from klcli.judge.slices import slice_tokens
from klcli.measure.scores import TokenScores, empty_columns
from klcli.text.corpus import Part
from klcli.text.vocabulary import NumberedTokens
from klcli.text.windows import TokenizedDocument, Window, WindowTable

RNG = np.random.default_rng(4)
ROLES = ("system", "user", "assistant", "template")


def conversation(turns: int) -> TokenizedDocument:
    """A document of parts of random lengths, with a token of nobody's behind each."""
    parts: list[Part] = []
    start = 0
    for turn in range(1, turns + 1):
        for role in ROLES:
            stop = start + int(RNG.integers(1, 30))
            is_scored = role in ("user", "assistant")
            parts.append(Part(start=start, stop=stop, role=role, turn=turn, is_scored=is_scored))
            start = stop + 1
    ids = np.arange(start) % 50
    return TokenizedDocument(corpus=0, name="chat", ids=ids, encoding=None, parts=tuple(parts))


def table_of(documents: list[TokenizedDocument], context: int = 40) -> WindowTable:
    """Windows of which the scored tokens of the documents are scored."""
    windows = []
    for number, document in enumerate(documents):
        for start in range(0, len(document.ids), context):
            ids = document.ids[start : start + context]
            whole = Window(document=number, inputs=ids, score_from=0, targets=ids, position=start)
            own = whole.only(document.is_scored)
            windows += [own] if len(own.targets) else []
    return WindowTable(documents=tuple(documents), windows=tuple(windows))


TABLE = table_of([conversation(turns) for turns in (1, 3, 12)])


def scores_of(table: WindowTable) -> TokenScores:
    columns = empty_columns(table, paired=True)
    every = np.arange(table.tokens)
    for name in ("kl", "nll_reference", "nll_candidate"):
        columns.write(name, every, RNG.lognormal(size=table.tokens))
    columns.write("excluded", every, every % 11 == 3)
    return TokenScores(columns)


SCORES = scores_of(TABLE)
SLICES = slice_tokens(SCORES, TABLE, NumberedTokens(size=50))


def label_of(by: str, part: Part, position: int) -> str | None:
    """What a token is called, in words of its own."""
    if by == "role":
        return part.role
    if by == "turn":
        return next(name for name, last in TURNS if part.turn <= last)
    if part.role != "assistant":
        return None
    return next(name for name, last in PLACES if position - part.start <= last)


TURNS = [("1", 1), ("2", 2), ("3–4", 4), ("5–8", 8), ("9+", 10**9)]
PLACES = [("0", 0), ("1–3", 3), ("4–15", 15), ("16–63", 63)]


def by_loop(by: str) -> dict[str, list[float]]:
    """The KL of each token, by the name of its slice."""
    found = defaultdict(list)
    row = 0
    for window in TABLE.windows:
        for position in window.positions.tolist():
            parts = TABLE.documents[window.document].parts
            (part,) = (one for one in parts if one.start <= position < one.stop)
            label = label_of(by, part, position)
            if label is not None and not SCORES["excluded"][row]:
                found[label].append(float(SCORES["kl"][row]))
            row += 1
    return dict(found)


@pytest.mark.parametrize("by", ["role", "turn", "generated"])
def test_tokens_are_sliced_by_the_part_that_they_lie_in(by: str) -> None:
    slices: dict[str, Slice] = {one.slice: one for one in SLICES if one.by == by}
    expected = by_loop(by)
    total = sum(map(sum, expected.values()))
    assert {name: one.tokens for name, one in slices.items()} == {
        name: len(kl) for name, kl in expected.items()
    }
    for name, kl in expected.items():
        assert slices[name].means["kl"] == pytest.approx(np.mean(kl))
        assert slices[name].means["share"] == pytest.approx(sum(kl) / total)


def test_texts_without_parts_have_no_such_slices() -> None:
    plain = TokenizedDocument(corpus=0, name="text", ids=np.arange(30), encoding=None)
    table = table_of([plain])
    found = slice_tokens(scores_of(table), table, NumberedTokens(size=30))
    assert not {one.by for one in found} & {"role", "turn", "generated"}


def test_a_token_that_is_in_two_parts_is_in_the_scored_one() -> None:
    inner = Part(start=2, stop=4, role="assistant", turn=1, is_scored=True)
    outer = Part(start=0, stop=6, role="template", turn=1, is_scored=False)
    document = TokenizedDocument(
        corpus=0, name="chat", ids=np.arange(6), encoding=None, parts=(inner, outer)
    )
    table = table_of([document])
    found = slice_tokens(scores_of(table), table, NumberedTokens(size=6))
    assert {one.slice for one in found if one.by == "role"} == {"assistant"}


def test_more_roles_than_a_byte_counts_are_told_apart() -> None:
    parts = tuple(
        Part(start=n, stop=n + 1, role=f"role {n}", turn=1, is_scored=True) for n in range(300)
    )
    document = TokenizedDocument(
        corpus=0, name="chat", ids=np.arange(300), encoding=None, parts=parts
    )
    table = table_of([document])
    found = slice_tokens(TokenScores(empty_columns(table, paired=True)), table,
                         NumberedTokens(size=300))  # fmt: skip
    assert len([one for one in found if one.by == "role"]) == 300
