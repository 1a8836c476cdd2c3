"""What Python users hold: a line, a card in a notebook, and tables."""

import importlib.util
import json
import math
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

import klcli
from klcli.errors import Notice, UsageError
from klcli.judge.layers import Layers
from klcli.judge.report import Report as Result
from klcli.render.data import render_json
from klcli.render.notebook import Report
from klcli.sources.recording.writer import Recorded
from tests.render.reports import (
    HOSTILE,
    compare_metrics,
    compare_report,
    gated_report,
    hostile_report,
    perplexity_report,
)


def held(result: Result) -> Report:
    return Report.of(result)


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_reads_as_one_line() -> None:
    failed = compare_report(verdict="fail")
    assert repr(held(failed)) == (
        "<Report compare: candidate against reference, 3,584 tokens, "
        "kl 0.0123 ± 0.0012 nats a token, FAIL>"
    )
    assert repr(held(perplexity_report())) == (
        "<Report perplexity: file.npz, 3,584 tokens, perplexity 8.51 (8.30 to 8.70)>"
    )


def test_hostile_names_stay_on_the_line() -> None:
    line = repr(held(hostile_report()))
    assert line.isprintable()
    assert len(line) < 300


def test_other_results_read_as_one_line_too() -> None:
    report = compare_report()
    recorded = Recorded(kind="hidden", reason=None, rows=3584, rows_before=0, bytes=12_345)
    layers = Layers(
        models={}, protocol={}, environment={}, counts={"tokens": 2048}, corpora=[], layers=[],
        first_apart="block 3", rise=None,
    )  # fmt: skip
    assert repr(recorded) == "<Recorded hidden: 3,584 rows, 12,345 bytes>"
    assert repr(layers) == "<Layers: 0 layers over 2,048 tokens, apart from block 3 on>"
    assert repr(report.tokens) == "<Tokens: 6 in documents: 1>"
    assert report.tokens is not None
    assert repr(report.tokens.scores).startswith("<TokenScores of 6 tokens: document, window,")


def test_a_card_shows_verdict_headline_histogram_and_warnings() -> None:
    page = Tags(held(gated_report())._repr_html_())
    assert page.text.startswith("FAIL · candidate against reference · 3,584 tokens")
    for shown in (
        "top1_agreement", "96.65 %", "Warning: the text has 2 pieces",
        "kl.p999<=1", "FAIL: kl.p999 is not known in this run",
    ):  # fmt: skip
        assert shown in page.text
    assert page.tags.count("rect") > 3


@pytest.mark.parametrize(
    "result",
    [
        hostile_report(),
        perplexity_report(),
        compare_report(tokens=None, distribution=None, along=None),
        compare_report(metrics=compare_metrics(None)),
        compare_report(metrics=compare_metrics(math.inf)),
        compare_report(warnings=[Notice(code="x", message=HOSTILE["html"] * 99)] * 99),
    ],
    ids=["hostile", "perplexity", "old", "unknown", "infinite", "many-warnings"],
)
def test_a_card_is_small_whole_and_harmless(result: Result) -> None:
    card = held(result)._repr_html_()
    page = Tags(card)
    assert len(card.encode()) < 30_000
    assert set(page.tags) <= {"div", "p", "strong", "em", "table", "tr", "th", "td", "svg", "rect"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", card)


def test_the_functions_return_what_shows_itself(fixtures: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with path.open("w", encoding="utf-8") as stream:
        render_json(gated_report(), stream)
    report = klcli.report(path)
    assert isinstance(report, klcli.Report)
    assert isinstance(klcli.Report.from_dict(json.loads(path.read_text())), klcli.Report)
    assert isinstance(replace(report, verdict=None), klcli.Report)
    assert pickle.loads(pickle.dumps(report)) == report


def test_pandas_has_the_tokens_with_texts_as_categories() -> None:
    report = held(compare_report(lower_bounds=("kl",)))
    assert report.tokens is not None
    report.tokens.scores["rank_reference"][0] = -1
    frame = report.to_pandas()
    assert list(frame["token"].astype(str)) == list(report.tokens.texts.values())
    assert frame["kl_lower_bound"].to_numpy() == pytest.approx(report.tokens.scores["kl"], abs=0)
    assert isinstance(frame["document"].dtype, pd.CategoricalDtype)
    assert frame["token_id"].dtype == pd.Int32Dtype()
    assert frame["rank_reference"].isna().sum() == 1
    assert frame["excluded"].dtype == bool
    assert report.to_arrow().column_names == list(frame.columns)


@pytest.mark.parametrize("missing", ["pandas", "pyarrow"])
def test_a_missing_package_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == missing else find_spec(name)
    )
    with pytest.raises(UsageError, match=rf"to_pandas\(\) needs {missing}: pip install"):
        held(compare_report()).to_pandas()
