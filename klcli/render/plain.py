"""A report in a line, and what a failed one says in plain text: for logs and test results."""

import io
from collections.abc import Iterator
from dataclasses import replace

from klcli.judge.intervals import Metric
from klcli.judge.report import Report
from klcli.render import summary
from klcli.render.models import base_name_of
from klcli.render.numbers import count, number
from klcli.render.outliers import print_outliers
from klcli.render.summary import GateLine
from klcli.render.terminal import StreamConsole

WORST = 3
"""How many of the outliers stand in a failure."""
_WIDTH = 100


def headline(report: Report) -> str:
    """The verdict, and the number that most people ask for first, in one line of visible text."""
    verdict = "" if report.verdict is None else f"{report.verdict.upper()}: "
    return f"{verdict}{_result(report)}, {count(report.counts['tokens'], 'token')}"


def gate_text(line: GateLine) -> str:
    """A gate in a line, such as ``FAIL kl.mean<=0.01: 0.272``."""
    return f"{line.verdict} {line.gate}: {measured(line)}"


def measured(line: GateLine) -> str:
    """What a gate was held against its limit with, and why that does not do."""
    return f"{line.value}; {line.reason}" if line.reason else line.value


def failure(report: Report) -> str:
    """The headline, the gates, and the worst tokens in their context, a few lines each."""
    lines = [headline(report), *map(gate_text, summary.gate_lines(report))]
    return "\n".join([*lines, "", *_worst_tokens(report)]).rstrip()


def _result(report: Report) -> str:
    """The KL from one model to the other, or the perplexity of one."""
    if report.command == "compare":
        reference, candidate = map(base_name_of, report.models.values())
        bound = summary.at_least(report, "kl")
        kl = _with_interval(report.metrics["kl"], "mean", " nats a token")
        return f"KL({reference}‖{candidate}) {bound}{kl}"
    (model,) = map(base_name_of, report.models.values())
    perplexity = _with_interval(report.metrics["perplexity"], "value")
    return f"{summary.title(report).lower()} of {model} {perplexity}"


def _with_interval(metric: Metric, field: str, unit: str = "") -> str:
    ends = [metric["ci_low"], metric["ci_high"]]
    interval = "" if None in ends else f" ({number(ends[0])} to {number(ends[1])})"
    return f"{number(metric[field])}{unit}{interval}"


def _worst_tokens(report: Report) -> Iterator[str]:
    stream = io.StringIO()
    console = StreamConsole(file=stream, width=_WIDTH, color_system=None, legacy_windows=False)
    print_outliers(replace(report, outliers=report.outliers[:WORST]), console)
    yield from (line.rstrip() for line in stream.getvalue().splitlines())
