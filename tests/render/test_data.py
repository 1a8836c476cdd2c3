import csv
import io
import json
import math
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np
import pytest

from klcli.choices import Format
from klcli.errors import KlcliError
from klcli.judge.report import Report, Tokens
from klcli.render.data import render_csv, render_json, render_jsonl
from klcli.render.formats import PRINTERS
from klcli.render.text import visible
from klcli.render.view import DEFAULT_VIEW, View
from tests.render.reports import (
    HOSTILE,
    compare_metrics,
    compare_report,
    gated_report,
    hostile_report,
    mean,
    outlier,
    perplexity_report,
    tokens,
)


def written(render: Callable[[Report, TextIO, View], None], report: Report) -> str:
    stream = io.StringIO(newline="")
    render(report, stream, DEFAULT_VIEW)
    return stream.getvalue()


def rows_of(report: Report) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(render_jsonl, report).splitlines()]


def cells_of(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(written(render_csv, report), newline="")))


def odd_tokens() -> Tokens:
    """Tokens with infinite, missing and excluded scores."""
    odd = tokens()
    odd.scores["kl"][:4] = (math.nan, math.inf, -math.inf, 0.1 + 0.2)
    odd.scores["excluded"][0] = True
    return odd


INFINITE = compare_report(
    metrics={**compare_metrics(), "kl": mean(math.inf, max=math.inf), "jsd": mean(None)},
    outliers=[outlier(token="inf", kl=math.inf, top_reference=[("inf", 0.5), ("nan", 0.25)])],
)


@pytest.mark.parametrize(
    "report",
    [compare_report(), gated_report(), perplexity_report(), hostile_report(), INFINITE],
    ids=["compare", "gated", "perplexity", "hostile", "infinite"],
)
def test_json_read_again_is_the_same_report(report: Report) -> None:
    text = written(render_json, report)
    again = Report.from_dict(json.loads(text))
    assert again.to_dict() == report.to_dict()
    assert written(render_json, again) == text


def test_a_token_that_reads_inf_stays_a_text() -> None:
    again = Report.from_dict(json.loads(written(render_json, INFINITE)))
    assert (again.outliers[0].token, again.outliers[0].kl) == ("inf", math.inf)
    assert again.outliers[0].top_reference == [("inf", 0.5), ("nan", 0.25)]


@pytest.mark.parametrize("format_", ["json", "jsonl"])
def test_json_is_ascii_and_ends_with_a_newline(format_: Format) -> None:
    text = written(PRINTERS[format_], hostile_report())
    assert text.isascii()
    assert text.endswith("}\n")
    assert all(line.isprintable() for line in text.split("\n"))


def test_jsonl_holds_every_score_as_it_is() -> None:
    report = compare_report(tokens=odd_tokens())
    assert report.tokens is not None
    for name, column in report.tokens.scores.columns.items():
        if name not in ("document", "kl"):
            assert [row[name] for row in rows_of(report)] == column.tolist()


def test_jsonl_says_what_is_no_finite_number() -> None:
    rows = rows_of(compare_report(tokens=odd_tokens()))
    assert [row["kl"] for row in rows[:4]] == [None, "inf", "-inf", 0.1 + 0.2]
    assert [row["excluded"] for row in rows[:2]] == [True, False]


def test_jsonl_holds_texts_as_they_are() -> None:
    rows = rows_of(compare_report(tokens=tokens(list(HOSTILE.values()), documents=2)))
    for column in ("token", "top1_reference_token", "top1_candidate_token"):
        assert [row[column] for row in rows] == list(HOSTILE.values())
    assert [row["document"] for row in rows[:3]] == ["corpus-0.txt", *["corpus-1.txt"] * 2]


def test_csv_holds_every_score_in_full() -> None:
    report = compare_report(tokens=odd_tokens())
    assert report.tokens is not None
    cells = cells_of(report)
    assert [row["kl"] for row in cells[:4]] == ["", "inf", "-inf", repr(0.1 + 0.2)]
    assert [row["excluded"] for row in cells[:2]] == ["True", "False"]
    for name in ("position", "nll_reference", "delta_p", "rank_candidate"):
        numbers = np.array([float(row[name]) for row in cells])
        assert (numbers == report.tokens.scores[name]).all()
    assert cells[1]["position"] == "1"


def test_csv_holds_texts_that_can_be_seen() -> None:
    cells = cells_of(compare_report(tokens=tokens(list(HOSTILE.values()))))
    expected = [visible(text).replace("=1+1", "'=1+1") for text in HOSTILE.values()]
    assert [row["token"] for row in cells] == expected


def test_csv_has_a_line_a_token() -> None:
    text = written(render_csv, hostile_report())
    assert text.count("\n") == len(HOSTILE) + 1
    assert "\r" not in text
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "＝1"])
def test_csv_texts_run_in_no_spreadsheet_and_numbers_stay(text: str) -> None:
    (row,) = cells_of(compare_report(tokens=tokens([text])))
    assert row["token"] == row["top1_candidate_token"] == f"'{text}"
    assert row["token_id"] == "0"
    negative = tokens(["a"])
    negative.scores["delta_p"][0] = -0.5
    assert cells_of(compare_report(tokens=negative))[0]["delta_p"] == "-0.5"


def test_rows_beyond_one_batch_are_all_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klcli.render.data._AT_ONCE", 4)
    assert [row["position"] for row in rows_of(compare_report())] == [0, 1, 2, 3, 4, 5]


def test_one_model_has_its_own_columns() -> None:
    row = rows_of(perplexity_report())[1]
    assert (row["token"], row["top1_token"], row["nll"]) == (" cat", " cat", 0.2)
    assert "kl" not in row


@pytest.mark.parametrize("format_", ["csv", "jsonl"])
def test_a_saved_report_has_no_tokens_to_write(format_: Format) -> None:
    with pytest.raises(KlcliError, match="holds no single tokens"):
        written(PRINTERS[format_], compare_report(tokens=None))
