"""Gates as JUnit XML: what Jenkins' schema of it takes, whatever is in the texts."""

import io
import re
from dataclasses import replace
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from klcli.errors import Notice
from klcli.judge.report import Report
from klcli.render.junit import UNGATED, render_junit
from tests.render.reports import (
    HOSTILE,
    compare_report,
    gate,
    gated_report,
    hostile_report,
    perplexity_report,
)

REQUIRED = {
    "testsuites": set[str](),
    "testsuite": {"name", "tests", "failures", "errors"},
    "testcase": {"name"},
    "failure": set[str](),
    "system-out": set[str](),
}
ALLOWED = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": REQUIRED["testsuite"] | {"time", "skipped"},
    "testcase": {"name", "time", "classname"},
    "failure": {"type", "message"},
    "system-out": set[str](),
}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "system-out"},
    "failure": set[str](),
    "system-out": set[str](),
}
"""What of ``junit-10.xsd`` klcli writes: attributes that must be, that may be, and children."""

REPORTS = {
    "compare": compare_report(),
    "gated": gated_report(),
    "perplexity": perplexity_report(),
    "hostile": hostile_report(),
}


def xml_of(report: Report) -> bytes:
    stream = io.BytesIO()
    render_junit(report, stream)
    return stream.getvalue()


def cases_of(report: Report) -> list[Element]:
    return list(ElementTree.fromstring(xml_of(report)).iter("testcase"))


def message_of(case: Element) -> str:
    """What a failed test case says in a line."""
    found = case.find("failure")
    return "" if found is None else found.get("message", "")


@pytest.mark.parametrize("name", REPORTS)
def test_the_shape_is_that_of_the_schema(name: str) -> None:
    root = ElementTree.fromstring(xml_of(REPORTS[name]))
    assert root.tag == "testsuites"
    for element in root.iter():
        given = set(element.attrib)
        assert REQUIRED[element.tag] <= given <= ALLOWED[element.tag]
        assert {child.tag for child in element} <= CHILDREN[element.tag]
        assert re.fullmatch(r"\d*\.\d*", element.get("time", "0."))


def test_every_gate_is_a_test_case() -> None:
    names = [case.get("name") for case in cases_of(gated_report())]
    assert names == ["kl.mean<=0.0123455", "top1_agreement>=0.9", "kl.p999<=1"]


def test_the_counts_are_those_of_the_cases() -> None:
    root = ElementTree.fromstring(xml_of(gated_report()))
    for element in (root, root[0]):
        assert (element.get("tests"), element.get("failures")) == ("3", "2")


def test_a_failed_gate_says_what_was_measured_and_shows_the_worst_tokens() -> None:
    failed, passed, unknown = cases_of(gated_report())
    found = failed.find("failure")
    assert found is not None
    assert found.get("type") == "fail"
    assert message_of(failed) == "0.01235, limit 0.0123455, 0.00081 % over"
    assert "[·is] very small" in (found.text or "")
    assert passed.find("failure") is None
    assert "kl.p999 is not known in this run" in message_of(unknown)


def test_an_inconclusive_gate_is_a_failure_of_its_own_type() -> None:
    gates = [gate("kl<=1", 0.9, 1.0, verdict="inconclusive", reason="the limit lies inside")]
    (case,) = cases_of(compare_report(gates=gates, verdict="inconclusive"))
    found = case.find("failure")
    assert found is not None
    assert found.get("type") == "inconclusive"
    assert "the limit lies inside" in message_of(case)


def test_without_gates_one_case_passes_and_has_the_headline() -> None:
    (case,) = cases_of(compare_report())
    assert case.get("name") == UNGATED
    assert [child.tag for child in case] == ["system-out"]
    assert "candidate differs from reference, kl 0.0123 ± 0.0012 nats a token" in (
        case[0].text or ""
    )


def test_the_cases_share_the_time_of_the_run() -> None:
    times = [case.get("time") for case in cases_of(replace(gated_report(), seconds=30.0))]
    assert times == ["10.000"] * 3


def test_warnings_are_output_of_a_case() -> None:
    (case,) = cases_of(compare_report(warnings=[Notice(code="a", message="<b>\x00")]))
    assert "Warning: <b>\\x00" in (case[0].text or "")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_of_a_model_is_no_package(name: str) -> None:
    models = {role: {"source": f"a.b/{HOSTILE[name]}.v1"} for role in ("reference", "candidate")}
    (case,) = cases_of(compare_report(models=models))
    assert "." not in case.get("classname", "")
