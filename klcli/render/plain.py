"""A report in plain text: in a line, and what a failed one says. For logs and test results."""

import io

from klcli.judge.report import Report
from klcli.render.headline import headlines
from klcli.render.numbers import count
from klcli.render.summary import GateLine, gate_lines
from klcli.render.terminal import StreamConsole
from klcli.render.verdict import verdict_text, who
from klcli.render.worst import print_worst

WORST = 3
"""How many tokens stand in a failure."""
_WIDTH = 100


def in_a_line(report: Report) -> str:
    """The verdict, who differs from whom, and the number that most people ask for first.

    All of it is visible text.
    """
    verdict = "" if report.verdict is None else f"{report.verdict.upper()}: "
    numbers = [f"{one.name} {', '.join(one.parts)}" for one in headlines(report)[:1]]
    return verdict + ", ".join([who(report), *numbers, count(report.counts["tokens"], "token")])


def failure(report: Report) -> str:
    """The report in a line, its gates, and the worst tokens in their context."""
    stream = io.StringIO()
    console = StreamConsole(file=stream, width=_WIDTH, color_system=None, legacy_windows=False)
    print_worst(report, console, WORST)
    gates = map(_gate, gate_lines(report))
    lines = [in_a_line(report), *gates, "", *stream.getvalue().splitlines()]
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _gate(line: GateLine) -> str:
    return f"{verdict_text(line.verdict)}  {line.gate}  {line.measured}"
