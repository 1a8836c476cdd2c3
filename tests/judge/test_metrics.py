"""The one table of metrics, held against what reports hold."""

import json
from pathlib import Path

import pytest

from klcli.judge.metrics import COMPARE_METRICS, METRICS, PERPLEXITY_METRICS, Definition
from klcli.judge.report import Report
from tests.judge.test_pairs import CLUSTERS, columns, numbers

DOCS = Path(__file__).parents[2] / "docs" / "json.md"


def test_the_table_has_what_reports_have_and_nothing_else() -> None:
    for paired, known in ((True, COMPARE_METRICS), (False, PERPLEXITY_METRICS)):
        report = numbers(columns(0, paired=paired), CLUSTERS)
        assert {name: tuple(metric) for name, metric in report.items()} == known
    assert list(METRICS) == [*COMPARE_METRICS, *PERPLEXITY_METRICS]


def test_a_saved_report_has_only_metrics_of_the_table() -> None:
    path = Path(__file__).parents[2] / "fixtures" / "saved" / "first.run" / "report.json"
    report = Report.from_dict(json.loads(path.read_text(encoding="utf-8")))
    assert report.metrics.keys() <= METRICS.keys()


@pytest.mark.parametrize("one", METRICS.values(), ids=METRICS)
def test_an_entry_says_all_that_a_reader_needs(one: Definition) -> None:
    assert one.label
    assert one.formula
    assert one.says.endswith(".")
    assert one.main_field in one.fields
    assert one.bounds[0] < one.bounds[1]


@pytest.mark.parametrize("name", METRICS)
def test_the_page_about_the_json_has_every_metric(name: str) -> None:
    assert f"`{name}`" in DOCS.read_text(encoding="utf-8")
