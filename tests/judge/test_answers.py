"""How far answers agree: the survival curve and where they part, against a straight loop."""

from typing import Any

import numpy as np
import pytest

from klcli.align.alignment import Alignment
from klcli.judge.answers import find_answers
from klcli.judge.report import Answers
from klcli.measure.scores import TokenScores, empty_columns
from klcli.text.corpus import Part
from klcli.text.vocabulary import NumberedTokens
from klcli.text.windows import TokenizedDocument, Window, WindowTable

PROMPT = 3
LENGTHS = (5, 1, 9, 4, 16)


def document(number: int, length: int, *, is_answer: bool = True) -> TokenizedDocument:
    parts = (
        Part(start=0, stop=PROMPT, role="prompt", turn=1, is_scored=False),
        Part(
            start=PROMPT, stop=PROMPT + length, role="assistant", turn=1, is_scored=True,
            is_answer=is_answer,
        ),
    )  # fmt: skip
    ids = np.arange(PROMPT + length)
    return TokenizedDocument(
        corpus=0, name=f"a#{number}", ids=ids, encoding=None, parts=parts, is_rendered=True
    )


def alignment(*, answers: str | None = "greedy", is_answer: bool = True) -> Alignment:
    documents = [document(n, length, is_answer=is_answer) for n, length in enumerate(LENGTHS)]
    windows = [
        Window(
            number=number, document=number, inputs=one.ids[:-1], score_from=PROMPT - 1,
            targets=one.ids[PROMPT:], position=PROMPT,
        )
        for number, one in enumerate(documents)
    ]  # fmt: skip
    table = WindowTable(
        documents=tuple(documents),
        windows=tuple(windows),
        protocol={} if answers is None else {"answers": answers},
    )
    return Alignment(table=table, names=NumberedTokens(40), vocabulary_size=40, notices=())


def agreement(share: float) -> list[list[bool]]:
    rng = np.random.default_rng(0)
    return [(rng.random(length) < share).tolist() for length in LENGTHS]


def scores_of(found: Alignment, agrees: list[list[bool]], *, paired: bool = True) -> TokenScores:
    columns = empty_columns(found.table, paired=paired)
    targets = np.concatenate([window.targets for window in found.table.windows])
    said = np.where(np.concatenate(agrees), targets, targets + 1)
    index = np.arange(len(said))
    columns.write("top1_candidate" if paired else "top1", index, said.astype(np.int32))
    if paired:
        columns.write("kl", index, index / 100)
    return TokenScores(columns)


def answers_of(found: Alignment, agrees: list[list[bool]], **settings: Any) -> Answers:
    answers = find_answers(scores_of(found, agrees, **settings), found)
    assert answers is not None
    return answers


def first_difference(agrees: list[bool]) -> int | None:
    return None if all(agrees) else agrees.index(False)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 0.95, 1.0])
def test_the_curve_is_that_of_a_straight_loop(share: float, paired: bool) -> None:
    agrees = agreement(share)
    found = answers_of(alignment(), agrees, paired=paired)
    firsts = [first_difference(one) for one in agrees]
    assert [one.first for one in found.answers] == firsts
    assert [one.tokens for one in found.answers] == [*LENGTHS]
    assert [point.tokens for point in found.survival] == [1, 2, 4, 8, 16]
    for point in found.survival:
        so_far = [first is None or first >= point.tokens for first in firsts]
        assert point.share == pytest.approx(np.mean(so_far))
    assert found.agreeing["value"] == pytest.approx(firsts.count(None) / len(firsts))


def test_the_median_is_none_where_half_agree_to_their_end() -> None:
    agrees = [[True] * length for length in LENGTHS]
    assert answers_of(alignment(), agrees).median_first is None
    agrees[0][2] = agrees[2][4] = False
    assert answers_of(alignment(), agrees).median_first is None
    agrees[4][7] = False
    found = answers_of(alignment(), agrees)
    assert found.median_first == 7
    assert found.mean_first == pytest.approx((2 + 4 + 7) / 3)


def test_the_kl_of_an_answer_is_the_mean_over_its_tokens() -> None:
    found = answers_of(alignment(), agreement(1.0))
    kl = np.arange(sum(LENGTHS)) / 100
    expected = [part.mean() for part in np.split(kl, np.cumsum(LENGTHS)[:-1])]
    assert [one.kl for one in found.answers] == pytest.approx(expected)


def test_one_model_has_no_kl() -> None:
    found = answers_of(alignment(), agreement(0.5), paired=False)
    assert {one.kl for one in found.answers} == {None}


@pytest.mark.parametrize(("said", "greedy"), [("greedy", True), ("sampled", False)])
def test_it_is_known_whether_answers_were_greedy(said: str, greedy: bool) -> None:
    assert answers_of(alignment(answers=said), agreement(0.5)).greedy == greedy


def test_what_nobody_generated_is_not_an_answer() -> None:
    found = alignment(is_answer=False)
    assert find_answers(scores_of(found, agreement(0.5)), found) is None


def test_intervals_hold_the_share() -> None:
    found = answers_of(alignment(), agreement(0.8))
    for point in found.survival:
        assert point.ci_low is not None
        assert point.ci_high is not None
        assert 0 <= point.ci_low <= point.share <= point.ci_high <= 1
