"""The first screen of a report, between its verdicts: how far the models differ, and where.

Every number stands under the name by which a gate knows it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from klcli.judge.report import Report
from klcli.render import summary
from klcli.render.answers import agreement_said, said_of_answers
from klcli.render.bars import bars, histogram, line
from klcli.render.gates import print_gates
from klcli.render.headline import Headline, headlines, other_warnings
from klcli.render.layout import alphabet_of, print_compact, print_hanging
from klcli.render.numbers import count, figure
from klcli.render.slices import slice_tables
from klcli.render.text import visible
from klcli.render.tokens import print_tokens
from klcli.render.verdict import STYLES
from klcli.render.view import View
from klcli.render.worst import print_worst

_INDENT, _LABEL = 2, 18
"""Cells before a line, and for a label and the blanks behind it."""
_NARROW = 50
"""Cells below which labels have lines of their own."""
_MOST_ROLES = 3
"""Roles that are shown, those first that carry most."""
_SHORT = 2
"""Findings, and lines of each, that are shown."""


def print_screen(report: Report, console: Console, view: View) -> None:
    """Print the first screen, and the slices and tokens that the view asks for."""
    for one in headlines(report):
        _print_headline(one, console)
    _print_roles(report, console)
    _print_remarks(report, console, view)
    console.print()
    _print_tables(report, console, view)
    _print_shape(report, console)
    if view.tokens == "all":
        print_tokens(report, console)
    elif view.tokens == "outliers":
        print_worst(report, console, view.outliers, "--outliers N shows more")
    _print_findings(report, console)
    if report.gates:
        print_gates(report, console, _INDENT)
        console.print()
    _print_hints(report, console)


def _print_headline(one: Headline, console: Console) -> None:
    limits = [Text(said, STYLES[verdict]) for verdict, said in one.limits]
    first, *others = one.parts
    parts = [_emphasised(first), *limits, *map(Text, others)]
    _print_labelled(one.name, _lines(parts, console), console)
    for warning in one.warnings:
        label = Text.assemble(" " * _content(console), ("! ", "yellow"))
        print_hanging(label, Text(visible(warning, keep_spaces=True)), console)


def _print_roles(report: Report, console: Console) -> None:
    """Whose tokens carry the KL, or of one model the NLL, where those of several are scored."""
    roles = [one for one in report.slices if one.by == "role" and one.means["share"] is not None]
    if len(roles) < 2:
        return
    name = "kl" if report.command == "compare" else "nll"
    tokens = sum(one.tokens for one in roles)
    roles.sort(key=lambda one: -(one.means["share"] or 0.0))
    parts = [
        Text(
            f"{visible(one.slice, keep_spaces=True)} {one.means['share']:.0%} "
            f"({one.tokens / tokens:.0%} of the tokens)"
        )
        for one in roles[:_MOST_ROLES]
    ]
    _print_labelled(f"{name} by role", _lines(parts, console), console)


def _emphasised(said: str) -> Text:
    """A number in bold, without its interval and what it means."""
    number = re.split(r" [(±]|:", said)[0]
    return Text.assemble((number, "bold"), said.removeprefix(number))


def _print_labelled(name: str, lines: Sequence[Text], console: Console) -> None:
    """Print lines behind a label, or below it where the console is narrow."""
    label = Text(f"{' ' * _INDENT}{name:<{_LABEL}}")
    if console.width < _NARROW:
        print_hanging(Text(), label, console)
        label = Text(" " * _content(console))
    for one in lines:
        print_hanging(label, one, console)
        label = Text(" " * _content(console))


def _content(console: Console) -> int:
    """Where what stands behind a label begins."""
    return 2 * _INDENT if console.width < _NARROW else _INDENT + _LABEL


def _room(console: Console) -> int:
    return max(console.width - _content(console), 1)


def _lines(parts: Iterable[Text], console: Console, room: int | None = None) -> list[Text]:
    """Parts in as few lines as they fit in, broken between them and not within."""
    lines: list[Text] = []
    alphabet, room = alphabet_of(console), _room(console) if room is None else room
    for part in map(alphabet.spell_styled, parts):
        if lines and lines[-1].cell_len + len(alphabet.between) + part.cell_len <= room:
            lines[-1] = Text.assemble(lines[-1], alphabet.between, part)
        else:
            lines.append(part)
    return lines


def _print_remarks(report: Report, console: Console, view: View) -> None:
    """Warnings that are about no single number, and how much of the text was read."""
    about = {one.message for one in report.warnings}
    said = summary.information(report)
    missing = [one for one in summary.warnings(report, view) if one not in about]
    others = [*(one.message for one in other_warnings(report)), *missing]
    until = summary.until_remarks(report)
    if others or until or said:
        console.print()
    for message in said:
        print_hanging(Text(" " * _INDENT), Text(visible(message, keep_spaces=True), "dim"), console)
    for warning in others:
        label = Text.assemble(" " * _INDENT, ("! ", "yellow"))
        print_hanging(label, Text(visible(warning, keep_spaces=True)), console)
    for remark in until:
        print_hanging(Text(" " * _INDENT), Text(remark), console)


def _print_tables(report: Report, console: Console, view: View) -> None:
    """Each corpus where there are several, each group, and the slices that were asked for."""
    several = [
        summary.corpus_table(report) if len(report.corpora) > 1 else None,
        summary.group_table(report),
    ]
    for table in (*several, *slice_tables(report, view)):
        if table is not None:
            print_compact(table, console, _INDENT)


def _print_shape(report: Report, console: Console) -> None:
    """How the KL is distributed, or of one model the NLL, and how it goes along the text."""
    name, shown = ("kl", "KL") if report.command == "compare" else ("nll", "NLL")
    metric = report.metrics[name]
    quantiles = [
        Text(f"{summary.SPREAD[field]} {figure(metric[field])}")
        for field in ("median", "p90", "p99", "max")
        if metric.get(field) is not None
    ]
    # Two pictures one above the other would run into one.
    lines = [*_histogram(report, console), *_lines(quantiles, console)]
    if lines:
        _print_labelled(f"{shown} a token", lines, console)
    if (along := _along(report, console)) is not None:
        _print_labelled("along the text", [along], console)
    _print_answers(report, console)
    if lines or report.answers is not None:
        console.print()


def _print_answers(report: Report, console: Console) -> None:
    """How many answers are the same, and how many are so far."""
    if report.answers is None:
        return
    alphabet = alphabet_of(console)
    said = [alphabet.spell_styled(Text(one)) for one in said_of_answers(report)]
    shares = [one.share for one in report.answers.survival]
    curve = f"{bars([*shares], alphabet)}  {agreement_said(report.answers)}"
    _print_labelled("answers", [*_lines(said, console), Text(curve)], console)


def _histogram(report: Report, console: Console) -> Iterator[Text]:
    found, alphabet = report.distribution, alphabet_of(console)
    if found is None:
        return
    if drawn := histogram(found, _room(console), alphabet):
        yield Text(drawn)
    apart = [
        Text(count(number, "token") + where)
        for number, where in (
            (found.zero, " at 0"),
            (found.below, f" below {found.edges[0]:g}"),
            (found.above, f" above {found.edges[-1]:g}"),
            (found.infinite, " infinite"),
        )
        if number
    ]
    yield from _lines(apart, console)


def _along(report: Report, console: Console) -> Text | None:
    """The line along the text with its ends, where it is more than one part and not all 0."""
    along = report.along
    known = [] if along is None else [mean for mean in along.means if mean is not None]
    if along is None or len(known) < 2 or not any(known):
        return None
    ends = f"  {figure(min(known))} to {figure(max(known))}"
    return Text(line(along, _room(console) - cell_len(ends), alphabet_of(console)) + ends)


def _print_findings(report: Report, console: Console) -> None:
    """The first of the findings, and of a long one its beginning."""
    found = summary.findings(report)
    if not found:
        return
    more = len(found) - _SHORT
    said = f" ({more} more: --details)" if more > 0 else ""
    print_hanging(Text(" " * _INDENT), Text.assemble((summary.FINDINGS, "bold"), said), console)
    room = _SHORT * (console.width - 2 * _INDENT) - _LABEL
    for message in found[:_SHORT]:
        shown = Text(alphabet_of(console).keep_start(message, max(room, _NARROW)))
        print_hanging(Text(f"{' ' * _INDENT}- "), shown, console)
    console.print()


def _print_hints(report: Report, console: Console) -> None:
    """How to see more."""
    metric = "kl" if report.command == "compare" else "perplexity"
    hints = (
        "All metrics: --details",
        f"what they mean: klcli explain {metric}",
        "see the text: --output report.html",
    )
    room = console.width - _INDENT
    for hint in _lines([Text(hint, "dim") for hint in hints], console, room):
        print_hanging(Text(" " * _INDENT), hint, console)
