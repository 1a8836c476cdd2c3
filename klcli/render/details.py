"""Everything that a report says, on a terminal or in a pipe: what ``--details`` shows."""

from rich.console import Console
from rich.text import Text

from klcli.judge.report import Report
from klcli.render import summary
from klcli.render.answers import said_of_answers, survival_table
from klcli.render.gates import print_gates
from klcli.render.layout import (
    NUMBER,
    label_width,
    print_aligned,
    print_compact,
    print_hanging,
    print_heading,
    print_warnings,
)
from klcli.render.outliers import print_outliers
from klcli.render.slices import slice_tables
from klcli.render.text import visible
from klcli.render.tokens import print_tokens
from klcli.render.view import View


def print_details(report: Report, console: Console, view: View) -> None:
    """Print every metric, the tokens of the view, findings, gates, warnings and the signature."""
    print_heading(summary.title(report), summary.facts(report), console)
    _print_metrics(report, console, view)
    if view.tokens == "all":
        print_tokens(report, console)
    elif view.tokens == "outliers":
        print_outliers(report, console)
    _print_findings(report, console)
    if report.gates:
        print_gates(report, console)
        console.print()
    if warnings := summary.warnings(report, view):
        print_warnings(warnings, console)
        console.print()
    print_hanging(Text(), Text(visible(report.signature, keep_spaces=True), "dim"), console)


def _print_metrics(report: Report, console: Console, view: View) -> None:
    texts = summary.text_tables(report)
    if report.command == "perplexity":
        for table in texts:
            print_compact(table, console)
    values = summary.value_table(report)
    label = label_width(values, console)
    fitting = max(1, (console.width - label) // (NUMBER + 1))
    spreads = summary.spread_tables(report, summary.most_important(fitting))
    for table in (*spreads, values):
        print_aligned(table, label, fitting, console)
    if remarks := summary.remarks(report):
        print_hanging(Text(), Text("\n".join(remarks)), console)
        console.print()
    if flips := summary.flips(report):
        print_hanging(Text(), Text("\n".join(flips)), console)
        console.print()
    if report.command == "compare":
        for table in texts:
            print_compact(table, console)
    if (survival := survival_table(report)) is not None:
        print_hanging(Text(), Text("\n".join(said_of_answers(report))), console)
        console.print()
        print_compact(survival, console)
    for table in slice_tables(report, view):
        print_compact(table, console)


def _print_findings(report: Report, console: Console) -> None:
    found = summary.findings(report)
    if not found:
        return
    console.print(Text(summary.FINDINGS, "bold"))
    for message in found:
        print_hanging(Text("- "), Text(message), console)
    console.print()
