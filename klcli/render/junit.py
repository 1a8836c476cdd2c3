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
from klcli.render.plain import failure, in_a_line
from klcli.render.text import visible
from klcli.render.view import DEFAULT_VIEW, View

UNGATED = "measured without a gate"
"""The one test case of a report without gates; its name must stay the same from run to run."""


def render_junit(report: Report, stream: BinaryIO, view: View = DEFAULT_VIEW) -> None:
    """Write a test case for each gate; without gates one that passes.

    All text is made visible, so no character is left that XML forbids.
    """
    root = Element("testsuites", _counts(report))
    suite = SubElement(root, "testsuite", {"name": _suite(report)} | _counts(report))
    for line in summary.gate_lines(report):
        case = _case(suite, line.gate, report, view)
        if line.verdict != "pass":
            told = {"type": line.verdict, "message": line.measured}
            SubElement(case, "failure", told).text = failure(report)
    if not report.gates:
        _case(suite, UNGATED, report, view)
    indent(root)
    ElementTree(root).write(stream, encoding="utf-8", xml_declaration=True)
    stream.write(b"\n")


def _counts(report: Report) -> dict[str, str]:
    failures = sum(result.verdict != "pass" for result in report.gates)
    tests = {"tests": str(_tests(report)), "failures": str(failures), "errors": "0"}
    return tests | {"time": _time(report)}


def _tests(report: Report) -> int:
    return max(1, len(report.gates))


def _time(report: Report, cases: int = 1) -> str:
    """Seconds: the whole run's, or the part of one of so many test cases."""
    return f"{(report.seconds or 0) / cases:.3f}"


def _suite(report: Report) -> str:
    """The command and the models; a dot would part a package from a class."""
    common, names = short_names(report.models)
    return " ".join(["klcli", report.command, *filter(None, [common, *names.values()])]).replace(
        ".", "_"
    )


def _case(suite: Element, name: str, report: Report, view: View) -> Element:
    """A test case, with the headline and the warnings as its output."""
    named = {"classname": suite.attrib["name"], "name": name}
    case = SubElement(suite, "testcase", named | {"time": _time(report, _tests(report))})
    said = [in_a_line(report), *map(_warning, summary.warnings(report, view))]
    SubElement(case, "system-out").text = "\n".join(said)
    return case


def _warning(message: str) -> str:
    return f"Warning: {visible(message, keep_spaces=True)}"
