"""The verdict in a line, the first of a report and, where gates gave one, the last."""

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from klcli.judge.difference import Difference, difference_of
from klcli.judge.gate import Verdict
from klcli.judge.report import Report
from klcli.render.layout import alphabet_of, print_hanging, print_line
from klcli.render.models import short_names
from klcli.render.numbers import count, duration
from klcli.render.text import keep_start

_MARKS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "inconclusive": "?"}
STYLES: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
"""How what is about a verdict looks."""
_FOUND: dict[Difference, tuple[str, str]] = {
    "same": ("=", "is the same as"),
    "noise": ("≈", "differs no more than noise from"),
    "differs": ("≠", "differs from"),
    "unknown": ("?", "differs by an unknown amount from"),
}
"""How a difference is marked and said; neither is a verdict."""
_LONGEST_NAME = 40
"""Cells for the name of a model."""


def verdict_text(verdict: Verdict) -> Text:
    """A verdict with its mark: nothing is told by colour alone."""
    return Text(f"{_MARKS[verdict]} {verdict.upper()}", STYLES[verdict])


def print_verdict(report: Report, console: Console) -> None:
    """Who differs from whom, by how much text that is known, and how long it took."""
    alphabet = alphabet_of(console)
    label, said = alphabet.spell_styled(_label(report)), Text(alphabet.spell(who(report)), "bold")
    measured = alphabet.between.join(extent(report))
    if label.cell_len + said.cell_len + 3 + cell_len(measured) <= console.width:
        print_line(Text.assemble(label, said, "   ", measured), console)
    else:
        print_hanging(label, said, console)
        print_hanging(Text("  "), Text(measured), console)


def _label(report: Report) -> Text:
    """The verdict, or without gates a mark for what was found."""
    if report.verdict is not None:
        return Text.assemble(verdict_text(report.verdict), "  ")
    if report.command == "compare":
        return Text(f"{_FOUND[difference_of(report)][0]} ", "bold")
    return Text()


def print_last_verdict(report: Report, console: Console) -> None:
    """The verdict once more, for whoever sees the end of a log."""
    if report.verdict is None:
        return
    words = {"pass": "passed", "fail": "failed", "inconclusive": "undecided"}
    many = sum(gate.verdict == report.verdict for gate in report.gates)
    gates = count(len(report.gates), "gate")
    said = f"{who(report)}: {many} of {gates} {words[report.verdict]}"
    print_hanging(_label(report), Text(said), console)


def who(report: Report) -> str:
    """The model, or which candidate differs from which reference, and whether that is allowed."""
    common, names = short_names(report.models)
    names = {role: keep_start(name, _LONGEST_NAME) for role, name in names.items()}
    if report.command == "perplexity":
        return names["model"]
    found = difference_of(report)
    of = f"{keep_start(common, _LONGEST_NAME)}: " if common else ""
    said = f"{of}{names['candidate']} {_FOUND[found][1]} {names['reference']}"
    if found == "same" and "kl" in report.lower_bounds:
        return f"{said}, as far as its list of top tokens goes"
    return f"{said}, within the limits" if report.verdict == "pass" else said


def extent(report: Report) -> Iterator[str]:
    """How much was measured, and how long it took."""
    counts = report.counts
    yield count(counts["tokens"], "token")
    yield count(counts["windows"], "window")
    if (counts["documents"] or 0) > 1:
        yield count(counts["documents"], "document")
    if report.shard is not None:
        yield f"shard {report.shard}"
    if report.seconds is not None:
        yield duration(report.seconds)
