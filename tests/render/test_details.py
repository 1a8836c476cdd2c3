import io
import json
import math
import re
from dataclasses import replace
from functools import partial

import pytest
from rich.cells import cell_len
from rich.console import Console

from klcli.choices import TokenChoice
from klcli.errors import KlcliError, Notice
from klcli.judge.report import Report
from klcli.render.terminal import render_warnings
from tests.render import golden, reports
from tests.render.reports import (
    HOSTILE,
    compare_metrics,
    compare_report,
    corpus,
    flips,
    gate,
    gated_report,
    hostile_report,
    mean,
    outlier,
    perplexity_metrics,
    perplexity_report,
    tokens,
)

on_terminal = partial(reports.on_terminal, details=True)

REPORTS = {
    "compare": compare_report(),
    "gated": gated_report(),
    "perplexity": perplexity_report(),
    "perplexity-corpora": perplexity_report(
        corpora=[
            corpus("wiki.txt", perplexity_metrics()),
            corpus("code.txt", perplexity_metrics(0.7)),
        ],
        macro={"nll": 1.42, "perplexity": 4.14},
    ),
}
HOSTILE_REPORT = hostile_report()


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_looks_as_it_should(name: str) -> None:
    golden.check(f"details-{name}.txt", on_terminal(REPORTS[name]))


@pytest.mark.parametrize("name", ["compare", "perplexity"])
def test_a_table_of_all_tokens_looks_as_it_should(name: str) -> None:
    golden.check(f"{name}-tokens.txt", on_terminal(REPORTS[name], tokens="all"))


def test_hostile_tokens_keep_their_columns() -> None:
    report = compare_report(tokens=tokens(list(HOSTILE.values()), documents=2))
    golden.check("hostile-tokens.txt", on_terminal(report, tokens="all"))


def test_slices_are_tables() -> None:
    golden.check(
        "details-slices.txt",
        on_terminal(REPORTS["compare"], tokens="none", slices=("kind", "confidence", "kind")),
    )


def test_slices_of_one_model_are_those_of_its_nll() -> None:
    text = on_terminal(REPORTS["perplexity"], slices=("position",))
    assert re.search(
        r"row of the window +tokens +NLL +% of all NLL\n─+\n0 +56 +3.1000 +1.5600\n", text
    )


def test_a_wide_terminal_shows_more_quantiles() -> None:
    golden.check("details-wide.txt", on_terminal(REPORTS["compare"], 120))


@pytest.mark.parametrize("name", [*REPORTS, "hostile"])
@pytest.mark.parametrize("choice", ["all", "outliers", "none"])
@pytest.mark.parametrize("width", [20, 40, 60, 80, 81, 120])
def test_no_line_is_wider_than_the_console(name: str, choice: TokenChoice, width: int) -> None:
    report = {**REPORTS, "hostile": HOSTILE_REPORT}[name]
    text = on_terminal(report, width, tokens=choice)
    assert max(map(cell_len, text.split("\n"))) <= width


@pytest.mark.parametrize("choice", ["all", "outliers"])
@pytest.mark.parametrize("color", [True, False])
def test_hostile_text_reaches_no_terminal(choice: TokenChoice, color: bool) -> None:
    text = on_terminal(HOSTILE_REPORT, tokens=choice, color=color)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text) if color else text
    assert all(line.isprintable() for line in plain.split("\n"))
    assert "\x1b[31mred" not in text
    assert r"\x1b[31mred" in plain


@pytest.mark.parametrize("name", ["markup", "emoji-code", "html", "markdown"])
def test_text_is_shown_as_it_is(name: str) -> None:
    report = compare_report(outliers=[outlier(before=HOSTILE[name])])
    assert f"     {HOSTILE[name]}[·is]" in on_terminal(report)


def test_a_pipe_gets_no_escape_and_a_terminal_gets_colours() -> None:
    assert "\x1b" not in on_terminal(gated_report())
    assert "\x1b[1;31m✗ FAIL" in on_terminal(gated_report(), color=True)


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[(\d+;)*3\d", on_terminal(gated_report(), color=True))


def test_the_token_stands_between_its_neighbours() -> None:
    text = on_terminal(compare_report(outliers=[outlier(before="one two", after=" four")]))
    assert "     one two[·is] four\n" in text


def test_the_words_next_to_a_token_are_kept() -> None:
    crowded = outlier(before="far " * 50 + "near", after=" near" + " far" * 50)
    assert " far near[·is] near far " in on_terminal(compare_report(outliers=[crowded]), 60)


def test_an_outlier_whose_alternatives_were_not_kept_has_none() -> None:
    bare = outlier(top_reference=[], top_candidate=[])
    text = on_terminal(compare_report(outliers=[bare]))
    assert not re.search(r"^ {5}reference", text, re.M)


def test_outliers_name_their_document_only_where_there_are_several() -> None:
    several = replace(compare_report(), counts={**compare_report().counts, "documents": 2})
    assert "token 1716 of corpus.txt" in on_terminal(several)
    assert "token 1716\n" in on_terminal(compare_report())


@pytest.mark.parametrize(
    ("metric", "cells"),
    [
        (mean(None), ["–"] * 6),
        (mean(math.inf, median=0.25, max=math.inf), ["inf", "–", "–", "0.2500", "–", "inf"]),
        (mean(0.0), ["0"] * 6),
        (mean(1e-9), ["1.00e-09", "9.00e-10", "1.10e-09", "5.00e-10", "9.00e-09", "4.00e-08"]),
    ],
    ids=["unknown", "infinite", "zero", "tiny"],
)
def test_a_row_says_what_is_not_known_infinite_or_tiny(
    metric: dict[str, float | None], cells: list[str]
) -> None:
    text = on_terminal(compare_report(metrics={**compare_metrics(), "kl": metric}))
    row = next(line for line in text.split("\n") if line.startswith("KL(ref ‖ cand)"))
    assert row.removeprefix("KL(ref ‖ cand)").split() == cells


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "Net +0.1674 % (-0.081 to +0.416), p 0.18: the change shows no direction"),
        ({"p": 0.004}, "p 0.004: the change helps"),
        ({"net": -0.0016741, "p": 0.04}, "p 0.04: the change hurts"),
        ({"p": None, "net_low": None, "net_high": None}, "Net +0.1674 %\n"),
    ],
)
def test_net_flips_say_whether_the_change_hurts(fields: dict[str, float | None], says: str) -> None:
    report = compare_report(metrics={**compare_metrics(), "flips": flips(**fields)})
    assert says in on_terminal(report)


def test_flips_are_left_out_where_no_token_is_known() -> None:
    unknown = dict.fromkeys(flips())
    report = compare_report(metrics={**compare_metrics(), "flips": unknown})
    assert "Flips" not in on_terminal(report)


def test_a_failed_gate_never_reads_like_a_passed_one() -> None:
    report = compare_report(gates=[gate("kl<=0.01", 0.01000001, 0.01)], verdict="fail")
    assert "✗ FAIL  kl<=0.01  0.01000001  limit 0.01, 0.0001 % over\n" in on_terminal(report)


def test_warnings_are_wrapped_under_their_text() -> None:
    stream = io.StringIO()
    notices = [Notice(code="a", message="word " * 20), Notice(code="b", message="[red]\x1b")]
    render_warnings(compare_report(warnings=notices), Console(file=stream, width=40))
    assert stream.getvalue().split("\n") == [
        "Warning: word word word word word word",
        *["         word word word word word word"] * 2,
        "         word word",
        r"Warning: [red]\x1b",
        "",
    ]


def test_without_gates_the_last_thing_is_the_whole_signature() -> None:
    report = compare_report()
    assert on_terminal(report).replace("\n", "").endswith(report.signature)


def test_every_token_has_its_row() -> None:
    report = compare_report(tokens=tokens(["a", "b"] * 1500, documents=3))
    rows = [line for line in on_terminal(report, tokens="all").split("\n") if "/" in line]
    assert sum(bool(re.match(r" *\d+ [ab] ", row)) for row in rows) == 3000


def test_a_saved_report_lists_no_single_tokens() -> None:
    saved = Report.from_dict(json.loads(json.dumps(compare_report().to_dict())))
    assert on_terminal(saved) == on_terminal(compare_report())
    with pytest.raises(KlcliError, match="holds no single tokens"):
        on_terminal(saved, tokens="all")
