"""A report as JUnit XML, which CI systems show: a test case for each gate.

The shape is what Jenkins, GitLab and others read (``junit-10.xsd`` of Jenkins' xUnit plugin). A
failed gate is a failure, and so is an inconclusive one, for klcli fails after both: a red job needs
a red test. ``type`` tells them apart.
"""

from typing import BinaryIO
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from klcli.judge.report import Report
from klcli.render import summary
from klcli.render.models import short_names
from klcli.render.plain import failure, in_a_line, measured
from klcli.render.summary import GateLine
from klcli.render.text import visible
from klcli.render.view import DEFAULT_VIEW, View

UNGATED = "compared without a gate"
"""The one test case of a report without gates; its name must stay the same from run to run."""


def render_junit(report: Report, stream: BinaryIO, view: View = DEFAULT_VIEW) -> None:
    """Write a test case for each gate; without gates one that passes.

    All text is made visible, so no character is left that XML forbids.
    """
    lines = summary.gate_lines(report)
    failures = sum(line.verdict != "PASS" for line in lines)
    root = Element("testsuites", _counts(report, failures))
    suite = SubElement(root, "testsuite", {"name": _suite(report)} | _counts(report, failures))
    for line in lines or [GateLine("PASS", UNGATED, "", "")]:
        _add_case(suite, line, report, view)
    indent(root)
    ElementTree(root).write(stream, encoding="utf-8", xml_declaration=True)
    stream.write(b"\n")


def _counts(report: Report, failures: int) -> dict[str, str]:
    tests = max(1, len(report.gates))
    return {"tests": str(tests), "failures": str(failures), "errors": "0", "time": _time(report)}


def _time(report: Report, cases: int = 1) -> str:
    """Seconds: the whole run's, or the part of one of so many test cases."""
    return f"{(report.seconds or 0) / cases:.3f}"


def _suite(report: Report) -> str:
    """The command and the models; a dot would part a package from a class."""
    common, names = short_names(report.models)
    return " ".join(["klcli", report.command, *filter(None, [common, *names.values()])]).replace(
        ".", "_"
    )


def _add_case(suite: Element, line: GateLine, report: Report, view: View) -> None:
    named = {"classname": suite.attrib["name"], "name": line.gate}
    case = SubElement(suite, "testcase", named | {"time": _time(report, len(report.gates) or 1)})
    if line.verdict != "PASS":
        told = {"type": line.verdict.lower(), "message": measured(line)}
        SubElement(case, "failure", told).text = failure(report)
    said = [in_a_line(report), *map(_warning, summary.warnings(report, view))]
    SubElement(case, "system-out").text = "\n".join(said)


def _warning(message: str) -> str:
    return f"Warning: {visible(message, keep_spaces=True)}"
