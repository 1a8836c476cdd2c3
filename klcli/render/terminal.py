"""A report on a terminal, or in a pipe: calm tables within the width of the console."""

from collections.abc import Sequence
from itertools import accumulate

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from klcli.judge.report import Report
from klcli.render import summary
from klcli.render.outliers import print_outliers
from klcli.render.summary import Fact, Table
from klcli.render.text import keep_end, keep_start, visible
from klcli.render.tokens import print_tokens
from klcli.render.view import DEFAULT_VIEW, View

_LABEL, _NUMBER = 20, 9
"""Cells for the name of a metric and for a number: with six numbers 80."""

_STYLES = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}


class StreamConsole(Console):
    """A console that leaves it to its caller what a reader who has gone means."""

    def on_broken_pipe(self) -> None:
        """Go on with the error, where Rich would end the program with code 1."""
        raise BrokenPipeError


def render_terminal(report: Report, console: Console, view: View = DEFAULT_VIEW) -> None:
    """Print a report within the width of the console.

    Warnings are not among it: see ``render_warnings``.

    Raises:
        KlcliError: all tokens are asked of a report that was read from a file and holds none.
    """
    print_heading(summary.title(report), summary.facts(report), console)
    _print_metrics(report, console, view)
    if view.tokens == "all":
        print_tokens(report, console)
    elif view.tokens == "outliers":
        print_outliers(report, console)
    _print_findings(report, console)
    _print_gates(report, console)
    console.print(Text(visible(report.signature, keep_spaces=True), "dim", overflow="fold"))


def render_warnings(report: Report, console: Console, view: View = DEFAULT_VIEW) -> None:
    """Print the warnings of a report, one paragraph each; meant for stderr."""
    for warning in summary.warnings(report, view):
        message = Text(visible(warning, keep_spaces=True))
        print_hanging(Text("Warning: ", "yellow"), message, console)


def print_heading(title: str, facts: Sequence[Fact], console: Console) -> None:
    """Print what was measured, and of what."""
    console.print(Text(title, "bold"))
    indent = max(len(fact.about) for fact in facts) + 2
    for about, name, details in facts:
        said = Text.assemble((name, "bold"), "  " if name and details else "", details)
        print_hanging(Text(f"{about:<{indent}}", "dim"), said, console)
    console.print()


def _print_metrics(report: Report, console: Console, view: View) -> None:
    corpora = summary.corpus_table(report)
    if corpora is not None and report.command == "perplexity":
        print_compact(corpora, console)
    values = summary.value_table(report)
    label = max(_LABEL, *(cell_len(row[0]) for row in values.rows))
    fitting = max(1, (console.width - label) // (_NUMBER + 1))
    spreads = summary.spread_tables(report, summary.most_important(fitting))
    for table in (*spreads, values):
        _print_aligned(table, label, fitting, console)
    if remarks := summary.remarks(report):
        console.print(Text("\n".join(remarks)))
        console.print()
    if flips := summary.flips(report):
        console.print(Text("\n".join(flips)))
        console.print()
    if corpora is not None and report.command == "compare":
        print_compact(corpora, console)
    for table in summary.slice_tables(report, view):
        print_compact(table, console)


def _print_aligned(table: Table, label: int, fitting: int, console: Console) -> None:
    """A table of at most ``fitting`` numbers a row, whose columns stand under those of others."""
    drawn = _empty_table(gap=1)
    drawn.add_column(Text(table.head[0]), width=label, no_wrap=True)
    for head in table.head[1 : fitting + 1]:
        drawn.add_column(Text(head), width=_NUMBER, justify="right", no_wrap=True)
    drawn.columns[1].style = "bold"
    _print_rows(drawn, [row[: fitting + 1] for row in table.rows], console)


def print_compact(table: Table, console: Console) -> None:
    """A table as wide as what is in it.

    Where that is too wide names lose their beginning, and then the last columns go.
    """
    columns = zip(table.head, *table.rows, strict=True)
    label, *numbers = (max(map(cell_len, column)) for column in columns)
    gap = 2 if label + sum(numbers) + 2 * len(numbers) <= console.width else 1
    used = list(accumulate(width + gap for width in numbers))
    fitting = sum(width <= console.width - min(label, _LABEL) for width in used)
    room = console.width - sum(used[:fitting][-1:])
    drawn = _empty_table(gap)
    drawn.add_column(Text(table.head[0]), no_wrap=True)
    for head in table.head[1 : fitting + 1]:
        drawn.add_column(Text(head), justify="right", no_wrap=True)
    rows = [[keep_end(row[0], room), *row[1 : fitting + 1]] for row in table.rows]
    _print_rows(drawn, rows, console)


def _empty_table(gap: int) -> RichTable:
    """A table without columns, which will stand ``gap`` cells apart; one is the box's own."""
    return RichTable(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, gap - 1),
        header_style="dim",
    )


def _print_rows(drawn: RichTable, rows: Sequence[Sequence[str]], console: Console) -> None:
    for row in rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)
    console.print()


def _print_findings(report: Report, console: Console) -> None:
    found = summary.findings(report)
    if not found:
        return
    console.print(Text(summary.FINDINGS, "bold"))
    for message in found:
        print_hanging(Text("- "), Text(message), console)
    console.print()


def _print_gates(report: Report, console: Console) -> None:
    lines = summary.gate_lines(report)
    if not lines:
        return
    most = console.width // 2
    widths = [min(max(map(cell_len, column)), most) + 2 for column in zip(*lines, strict=True)]
    for verdict, gate, value, reason in lines:
        label = Text.assemble(
            (set_cell_size(verdict, widths[0]), _STYLES[verdict]),
            set_cell_size(keep_start(gate, most), widths[1]),
        )
        print_hanging(label, Text(f"{value}  {reason}".rstrip()), console)
    verdict = (report.verdict or "").upper()
    console.print(Text.assemble("Verdict: ", (verdict, _STYLES.get(verdict, ""))))
    console.print()


def print_hanging(label: Text, text: Text, console: Console) -> None:
    """Print a label and a text behind it, whose further lines stand under its first."""
    indent = label.cell_len
    for line in text.wrap(console, max(console.width - indent, _NUMBER), overflow="fold"):
        line.rstrip()
        console.print(Text.assemble(label, line))
        label = Text(" " * indent)
