"""A report as GitHub-flavoured Markdown, for a pull request or a model card."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from klcli.judge.report import Outlier, Report
from klcli.render import summary
from klcli.render.answers import sentence_about_answers, survival_table
from klcli.render.numbers import fixed, number
from klcli.render.plain import in_a_line
from klcli.render.slices import slice_tables
from klcli.render.summary import Fact, GateLine, Table
from klcli.render.text import visible
from klcli.render.view import DEFAULT_VIEW, View

_TOPS = 3
"""How many of a model's most probable tokens stand beside an outlier."""

_OUTLIER_HEAD = (
    "#",
    "token in context",
    "KL",
    "z",
    "NLL",
    "reference expects",
    "candidate expects",
)

_LINKS = re.compile(r"@(?=\w)|:(?=//)|\bwww(?=\.)|#(?=\d)")
_SPECIAL = re.compile(r"[\\`*_\[\]<>&~$#]")


def render_markdown(report: Report, stream: TextIO, view: View = DEFAULT_VIEW) -> None:
    """Write the report as Markdown: the tables of the terminal, outliers, gates and warnings.

    Text of models, corpora and users is escaped or stands in code spans, and is shown as it is.
    """
    stream.write("\n\n".join(_blocks(report, view)) + "\n")


def render_summary(report: Report, stream: TextIO, view: View = DEFAULT_VIEW) -> None:
    """Write the headline, its numbers, gates, outliers and warnings, for a page of many results."""
    stream.write("\n\n".join(_summary_blocks(report, view)) + "\n")


def escape(text: str) -> str:
    """Visible text, with a backslash before each character that Markdown would act upon.

    ``|``, which only means something in tables, is for those to escape. Addresses, mentions and
    numbers of issues become links after all of that, unless a word joiner, which nobody sees,
    stands in them.
    """
    return _LINKS.sub("\\g<0>\u2060", _SPECIAL.sub(r"\\\g<0>", text))


def code(text: str) -> str:
    """Visible text as a code span, which no backtick in it can end; nothing for an empty one."""
    if not text:
        return ""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if {text[0], text[-1]} & {" ", "`"} else ""  # one blank at each end is taken away
    return f"{fence}{pad}{text}{pad}{fence}"


def _blocks(report: Report, view: View) -> Iterator[str]:
    yield f"# {summary.title(report)}"
    yield "\n".join(map(fact_line, summary.facts(report)))
    yield from map(table_of, _tables(report))
    if remarks := summary.remarks(report):
        yield ". ".join(map(escape, remarks))
        yield ""
    if flips := summary.flips(report):
        yield ". ".join(map(escape, flips))
    yield from _answer_blocks(report)
    yield from map(table_of, slice_tables(report, view))
    yield from _outlier_blocks(report)
    if findings := summary.findings(report):
        yield f"## {summary.FINDINGS}"
        yield "\n".join(f"- {escape(one)}" for one in findings)
    yield from _gate_blocks(report)
    yield from _warning_blocks(report, view)
    yield code(visible(report.signature, keep_spaces=True))


def _summary_blocks(report: Report, view: View) -> Iterator[str]:
    yield f"## {escape(in_a_line(report))}"
    yield "\n".join(map(fact_line, summary.facts(report)))
    yield table_of(summary.headline_table(report))
    yield from _gate_blocks(report)
    yield from _outlier_blocks(report)
    yield from _warning_blocks(report, view)


def _outlier_blocks(report: Report) -> Iterator[str]:
    if report.outliers:
        yield "## Outliers"
        yield escape(summary.outlier_heading(report))
        head = [f"{summary.at_least(report, name.lower())}{name}" for name in _OUTLIER_HEAD]
        yield _grid(head, [_outlier(*one) for one in enumerate(report.outliers, 1)])


def _answer_blocks(report: Report) -> Iterator[str]:
    if (survival := survival_table(report)) is not None:
        yield "## Answers"
        yield escape(sentence_about_answers(report))
        yield table_of(survival)


def _gate_blocks(report: Report) -> Iterator[str]:
    if report.gates:
        yield f"## Verdict: {(report.verdict or '').upper()}"
        yield _grid(GateLine._fields, map(_gate, summary.gate_lines(report)))


def _warning_blocks(report: Report, view: View) -> Iterator[str]:
    if warnings := summary.warnings(report, view):
        yield "## Warnings"
        yield "\n".join(f"- {escape(visible(w, keep_spaces=True))}" for w in warnings)


def _tables(report: Report) -> Iterator[Table]:
    yield from summary.text_tables(report)
    yield from summary.spread_tables(report, list(summary.SPREAD))
    yield summary.value_table(report)


def table_of(table: Table) -> str:
    """A table of Markdown, its cells escaped."""
    rows = ([escape(cell) for cell in row] for row in table.rows)
    return _grid(table.head, rows, rule="--:")


def fact_line(fact: Fact) -> str:
    """A line of the heading as an item of a list."""
    said = " ".join(part for part in (code(fact.name), escape(fact.details)) if part)
    return f"- {fact.about}: {said}"


def _gate(line: GateLine) -> list[str]:
    verdict = line.verdict.upper()
    shown = verdict if line.verdict == "pass" else f"**{verdict}**"
    return [shown, code(line.gate), line.value, escape(line.reason)]


def _outlier(rank: int, outlier: Outlier) -> list[str]:
    before, after = (visible(t, keep_spaces=True) for t in (outlier.before, outlier.after))
    nll = [fixed(x, 4, 7) for x in (outlier.nll_reference, outlier.nll_candidate)]
    return [
        str(rank),
        code(f"{before.lstrip()}[{visible(outlier.token)}]{after}"),
        number(outlier.kl),
        fixed(outlier.score, 2, 6) + "\\*" * outlier.flagged,
        " → ".join(nll),
        _expected(outlier.top_reference),
        _expected(outlier.top_candidate),
    ]


def _expected(top: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{code(visible(token))} {share:.1%}" for token, share in top[:_TOPS])


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]], *, rule: str = ":--") -> str:
    """A table of Markdown cells; ``rule`` says to which side all but the first column stand."""
    lines = (head, [":--", *[rule] * (len(head) - 1)], *rows)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
