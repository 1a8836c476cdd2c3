"""The page of a report as a file; what it does in a browser, ``tests/browser`` shows."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest

from klcli.judge.report import Answers, Report, Survival
from klcli.render.html import render_html
from klcli.render.html.tokens import pack
from klcli.render.text import visible
from tests.render.packed import unpack
from tests.render.reports import (
    COUNTS,
    HOSTILE,
    alternatives,
    compare_report,
    gated_report,
    hostile_report,
    one_slice,
    perplexity_report,
    share,
    tokens,
)

pytest.importorskip("jinja2", reason="pages need klcli[html]")
pytest.importorskip("altair", reason="pages need klcli[html]")
pytest.importorskip("vl_convert", reason="pages need klcli[html]")


def page_of(report: Report) -> str:
    stream = io.StringIO()
    render_html(report, stream)
    return stream.getvalue()


def test_what_is_packed_is_read_again() -> None:
    some = tokens()
    header, columns = unpack(pack(some))
    assert header["paired"]
    assert header["rows"] == len(some.scores)
    shown = [header["texts"][one] for one in columns["token"]]
    assert shown == ["the", " cat", " sees", " a", " dog", "↵\n"]
    np.testing.assert_array_equal(columns["kl"], some.scores["kl"].astype(np.float32))
    np.testing.assert_array_equal(columns["flagged"], some.flagged)


def test_probabilities_are_kept_to_three_digits() -> None:
    _, columns = unpack(pack(tokens()))
    found = np.exp((1.0 - columns["p_reference"]) / 2000)
    np.testing.assert_allclose(found, alternatives(6, paired=True).probabilities["reference"], 3e-4)


def test_where_only_some_alternatives_were_kept_the_first_choice_stands_for_the_others() -> None:
    whole = tokens()
    kept = replace(
        whole.alternatives,
        index=np.array([2]),
        ids={side: some[[2]] for side, some in whole.alternatives.ids.items()},
        probabilities={s: some[[2]] for s, some in whole.alternatives.probabilities.items()},
    )
    header, columns = unpack(pack(replace(whole, alternatives=kept)))
    unknown = len(header["texts"])
    assert (columns["ids_reference"][[0, 1, 3], 1] == unknown).all()
    assert (columns["ids_reference"][2] != unknown).all()
    page = page_of(compare_report(tokens=replace(whole, alternatives=kept)))
    assert "At all others the first choice" in page


def test_hostile_texts_are_packed_so_that_they_can_be_seen() -> None:
    header, _ = unpack(pack(tokens(list(HOSTILE.values()))))
    wanted = {
        "↵\n".join(visible(line, keep_spaces=True) for line in text.split("\n"))
        for text in HOSTILE.values()
    }
    assert set(header["texts"]) == wanted


@pytest.mark.parametrize("report", [gated_report(), hostile_report(), perplexity_report()])
def test_the_page_names_no_address_and_runs_one_script(report: Report) -> None:
    page = page_of(report)
    assert not re.search(r"""(?:src|href|xmlns)="?https?:|url\(["']?http|@import""", page)
    assert len(re.findall(r"<script>", page)) == 1
    assert "<script>alert" not in page
    assert "default-src 'none'" in page


def test_a_report_without_tokens_has_everything_but_the_text_and_says_why() -> None:
    page = page_of(Report.from_dict(gated_report().to_dict()))
    assert "holds no single tokens" in page
    assert 'id="packed"' not in page
    assert "Gates" in page


def test_the_command_can_be_copied_where_it_is_known() -> None:
    typed = {"klcli": "0.1.0", "command_line": "klcli compare 'a b' c"}
    assert 'id="copy"' in page_of(compare_report(environment=typed))
    assert 'id="copy"' not in page_of(compare_report())


def test_a_limit_that_is_missed_does_not_look_like_one_that_is_kept() -> None:
    limits = re.findall(r'<span class="(\w+)">limit ([\d.]+)', page_of(gated_report()))
    assert limits == [("fail", "0.0123455"), ("pass", "90")]


def test_a_slice_that_has_all_tokens_gets_no_picture() -> None:
    counts = {**COUNTS, "tokens": 3584}
    turns = [one_slice("turn", "1", 1000), one_slice("turn", "2", 2584)]
    slices = [one_slice("role", "assistant", 3584), *turns]
    page = page_of(compare_report(slices=slices, counts=counts))
    assert 'id="slices-turn"' in page
    assert 'id="slices-role"' not in page


def test_what_is_said_of_answers_is_a_sentence() -> None:
    answers = Answers(
        greedy=True, count=4, agreeing=share(0.25), median_first=5, mean_first=4.0,
        survival=[Survival(tokens=1, share=1.0, ci_low=None, ci_high=None)], answers=[],
    )  # fmt: skip
    said = "The candidate would say the same in 1 of 4 answers; half of them differ by token 6."
    assert f"<p>{said}</p>" in page_of(compare_report(answers=answers))
