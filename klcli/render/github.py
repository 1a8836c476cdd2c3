"""A report for GitHub Actions: annotations on stdout, and a summary of the step in Markdown.

An annotation is a workflow command: a line that begins with ``::``, whose text and properties have
their own escapes. All that is printed here is such lines, so that no text of a model or a corpus
can be taken for a command of its own. The escapes and limits are those of GitHub's runner
(``ActionCommand.cs``) and of its documentation of workflow commands.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

from klcli.judge.gate import Verdict
from klcli.judge.report import Report
from klcli.render import summary
from klcli.render.markdown import render_summary
from klcli.render.plain import in_a_line
from klcli.render.text import visible
from klcli.render.view import DEFAULT_VIEW, View

Level = Literal["error", "warning", "notice"]

MOST_ANNOTATIONS = 9
"""Of a level: GitHub shows ten of a step, and the runner adds one about the exit code."""
MOST_BYTES = 1024 * 1024
"""Of the summary of a step; GitHub shows nothing of a longer one."""

_LEVELS: Mapping[Verdict, Level] = {"fail": "error", "inconclusive": "warning"}
"""The level of a gate that does not pass."""


class Annotation(NamedTuple):
    """What GitHub shows above the log of a run: a line, or several."""

    level: Level
    title: str
    message: str


def render_github(report: Report, stream: TextIO, view: View = DEFAULT_VIEW) -> None:
    """Print the headline, the gates that do not pass and the warnings as annotations."""
    for level in ("error", "warning", "notice"):
        found = [one for one in _annotations(report, view) if one.level == level]
        for annotation in _at_most(MOST_ANNOTATIONS, found):
            stream.write(f"{_command(annotation)}\n")


def append_step_summary(report: Report, path: Path, view: View = DEFAULT_VIEW) -> bool:
    """Append the summary to the file of a step; with fewer outliers where it would be too long.

    Returns:
        Whether there was room for it.
    """
    room = MOST_BYTES - (path.stat().st_size if path.exists() else 0)
    for page in _ever_shorter(report, view):
        if len(page) <= room:
            with path.open("ab") as stream:
                stream.write(page)
            return True
    return False


def escape_data(text: str) -> str:
    """Text as it stands behind the second ``::`` of a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Text as it stands in a property of a command, such as its title."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


def _annotations(report: Report, view: View) -> Iterator[Annotation]:
    yield Annotation("notice", "klcli", in_a_line(report))
    for line in summary.gate_lines(report):
        if line.verdict != "pass":
            title = f"klcli {line.verdict.upper()} {line.gate}"
            yield Annotation(_LEVELS[line.verdict], title, line.measured)
    for warning in summary.warnings(report, view):
        yield Annotation("warning", "klcli", visible(warning, keep_spaces=True))


def _at_most(most: int, found: Sequence[Annotation]) -> Iterator[Annotation]:
    """All of them, or so many, of which the last one says how many more there are."""
    if len(found) <= most:
        yield from found
        return
    yield from islice(found, most - 1)
    more = len(found) - most + 1
    yield Annotation(found[0].level, "klcli", f"{more} more: see the summary of the step")


def _command(annotation: Annotation) -> str:
    title = escape_property(annotation.title)
    return f"::{annotation.level} title={title}::{escape_data(annotation.message)}"


def _ever_shorter(report: Report, view: View) -> Iterator[bytes]:
    """The summary, with half as many outliers each time; the last one has none."""
    shown = len(report.outliers)
    while True:
        page = io.StringIO()
        render_summary(replace(report, outliers=report.outliers[:shown]), page, view)
        yield f"{page.getvalue()}\n".encode()
        if not shown:
            return
        shown //= 2
