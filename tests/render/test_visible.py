import unicodedata

import pytest
from rich.cells import cell_len

from klcli.render.text import keep_end, keep_start, visible
from tests.render.reports import HOSTILE

UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("a·b", r"a\xb7b"),
        ("\n\r\t", r"\n\r\t"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202e\u200b", r"\u202e\u200b"),
        ("\U000e0041", r"\U000e0041"),
        ("\udce9", r"\udce9"),
        ("\u00a0\u3000", r"\xa0\u3000"),
        ("\u3164\ufe0f", r"\u3164\ufe0f"),
        ("\u0301", "◌\u0301"),
        ("e\u0301", "e\u0301"),
        ("東京🙂", "東京🙂"),
        (r"\n", r"\n"),
        ("", ""),
    ],
    ids=ascii,
)
def test_what_is_in_a_token_can_be_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_passage_keeps_its_spaces_and_middle_dots() -> None:
    assert visible(" a · b\n", keep_spaces=True) == r" a · b\n"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("keep_spaces", [True, False])
def test_nothing_unseen_is_left(text: str, keep_spaces: bool) -> None:
    shown = visible(text, keep_spaces=keep_spaces)
    assert not {unicodedata.category(c) for c in shown} & UNSEEN
    assert keep_spaces or not any(c.isspace() for c in shown)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("width", [-1, 0, 1, 2, 3, 10, 1000])
def test_a_cut_text_fits_and_is_a_part_of_the_whole(text: str, width: int) -> None:
    shown = visible(text)
    start, end = keep_start(shown, width), keep_end(shown, width)
    assert max(cell_len(start), cell_len(end)) <= max(width, 0)
    assert shown.startswith(start.removesuffix("…"))
    assert shown.endswith(end.removeprefix("…"))


def test_a_text_that_fits_is_not_cut() -> None:
    assert (keep_start("東京", 4), keep_end("東京", 4)) == ("東京", "東京")


def test_a_wide_character_is_never_halved() -> None:
    assert (keep_start("東京塔", 4), keep_end("東京塔", 4)) == ("東…", "…塔")


def test_a_mark_stays_with_its_letter() -> None:
    text = "e\u0301e\u0301e\u0301"
    assert (keep_start(text, 2), keep_end(text, 2)) == ("e\u0301…", "…e\u0301")


def test_of_a_heap_of_marks_the_first_few_are_shown() -> None:
    zalgo = "e" + "\u0301" * 200
    shown = visible(zalgo)
    assert shown.startswith("e\u0301\u0301\u0301\u0301\\u0301")
    assert shown.count("\u0301") == 4
    vietnamese = "Vie\u0323\u0302t"
    assert visible(vietnamese) == vietnamese
