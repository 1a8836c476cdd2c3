"""A report in plain text: in a line, and what a failed one says. For logs and test results."""

import io
import math

from klcli.judge.gate import GateResult
from klcli.judge.report import Report
from klcli.render.headline import headlines
from klcli.render.numbers import apart, count
from klcli.render.terminal import StreamConsole
from klcli.render.text import visible
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


def measured(result: GateResult) -> str:
    """Value and limit of a gate, how far apart they are, and what else speaks against it."""
    value, limit, parts = result.value, result.limit, []
    if value is not None and not math.isnan(value):
        parts.append(apart(value, limit))
    if math.isfinite(limit):
        parts.append(f"limit {limit:.6g}")
    if result.verdict == "fail" and value is not None and math.isfinite(value) and limit > 0:
        parts.append(f"{apart(value / limit, 1, 3)} × the limit")
    if result.reason is not None:
        parts.append(visible(result.reason, keep_spaces=True))
    return ", ".join(parts)


def failure(report: Report) -> str:
    """The report in a line, its gates, and the worst tokens in their context."""
    stream = io.StringIO()
    console = StreamConsole(file=stream, width=_WIDTH, color_system=None, legacy_windows=False)
    print_worst(report, console, WORST)
    lines = [in_a_line(report), *map(_gate, report.gates), "", *stream.getvalue().splitlines()]
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _gate(result: GateResult) -> str:
    return f"{verdict_text(result.verdict)}  {gate_name(result)}  {measured(result)}"


def gate_name(result: GateResult) -> str:
    """A gate as it was given."""
    return visible(result.gate.strip(), keep_spaces=True)
