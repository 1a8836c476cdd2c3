"""The report as Python users hold it: a line, a card in a notebook, and tables of the tokens."""

from collections.abc import Iterator
from dataclasses import fields
from html import escape
from typing import TYPE_CHECKING, Self

from klcli.errors import UsageError
from klcli.judge.report import Distribution
from klcli.judge.report import Report as Result
from klcli.render.arrow import arrow_table
from klcli.render.bars import fold
from klcli.render.formats import missing_of
from klcli.render.headline import headlines
from klcli.render.models import labels_of
from klcli.render.numbers import count
from klcli.render.summary import gate_lines
from klcli.render.text import keep_start, visible

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_BARS, _BAR, _HEIGHT = 60, 6, 60
"""Bars of the small histogram at most, the width of each and the height of all, in pixels."""
_MOST_WARNINGS, _CELLS = 10, 400
"""Warnings that a card shows, and the cells of each, or of any other text."""
_LEFT = "text-align:left;padding:2px 12px 2px 0"


class Report(Result):
    """The result of a run, with the fields of the JSON report as attributes.

    ``models`` has the keys ``reference`` and ``candidate``, or ``model``. ``metrics`` are over all
    tokens, by name and field: ``report.metrics["kl"]["mean"]``. ``verdict`` says what became of the
    gates. ``tokens`` is None in a report that was read from a file. A notebook shows it as a card.
    """

    __slots__ = ()

    @classmethod
    def of(cls, result: Result) -> Self:
        """The same result as what Python users hold."""
        return cls(**{field.name: getattr(result, field.name) for field in fields(result)})

    def __repr__(self) -> str:
        return f"<Report {self.command}: {', '.join(_facts(self))}>"

    def _repr_html_(self) -> str:
        """A card: verdict, headline figures, a histogram and the warnings."""
        return f"<div>{''.join(_parts(self))}</div>"

    def to_arrow(self) -> "pa.Table":
        r"""Every scored token as a row: a column for each score, with the texts of the tokens.

        Names are those of CSV. Whole numbers that are not known are null; NaN and infinity stay
        what they are. Texts, and names of documents, are dictionaries; a lone surrogate in them is
        an escape such as ``\udce9``.

        Raises:
            UsageError: pyarrow is missing.
            KlcliError: the report was read from a file, which holds no single tokens.
        """
        _need("to_arrow()", "pyarrow")
        return arrow_table(self)

    def to_pandas(self) -> "pd.DataFrame":
        """The table of ``to_arrow`` as a data frame: texts as categories, whole numbers nullable.

        Raises:
            UsageError: pandas or pyarrow is missing.
            KlcliError: the report was read from a file, which holds no single tokens.
        """
        _need("to_pandas()", "pandas", "pyarrow")
        import pandas as pd
        import pyarrow as pa

        nullable = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}
        return arrow_table(self).to_pandas(types_mapper=nullable.get)


def _need(what: str, *modules: str) -> None:
    if missing := missing_of(modules):
        raise UsageError(f"{what} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def _facts(report: Result) -> Iterator[str]:
    yield _subject(report)
    yield count(report.counts["tokens"], "token")
    first = next(iter(headlines(report)), None)
    if first is not None:
        yield f"{first.name} {first.parts[0]}"
    if report.verdict is not None:
        yield report.verdict.upper()


def _subject(report: Result) -> str:
    """Which models it is about: those of a comparison as candidate against reference."""
    return " against ".join(reversed(list(labels_of(report.models).values())))


def _parts(report: Result) -> Iterator[str]:
    verdict = f"{report.verdict.upper()} · " if report.verdict else ""
    tokens = count(report.counts["tokens"], "token")
    yield f"<p><strong>{escape(verdict + _subject(report))}</strong> · {tokens}</p>"
    yield '<table style="color:inherit">'
    for line in headlines(report):
        yield _row(line.name, ", ".join(line.parts))
    for gate in gate_lines(report):
        yield _row(gate.gate, f"{gate.verdict.upper()}: {gate.measured}")
    yield "</table>"
    if report.distribution is not None and any(report.distribution.counts):
        yield _histogram(report.distribution)
    warnings = [one for one in report.warnings if one.is_warning]
    for warning in warnings[:_MOST_WARNINGS]:
        message = keep_start(visible(warning.message, keep_spaces=True), _CELLS)
        yield f"<p><em>Warning: {escape(message)}</em></p>"


def _row(head: str, said: str) -> str:
    cells = (escape(keep_start(text, _CELLS)) for text in (head, said))
    return '<tr><th scope="row" style="{0}">{1}</th><td style="{0}">{2}</td></tr>'.format(
        _LEFT, *cells
    )


def _histogram(shape: Distribution) -> str:
    """A small picture in the colour of the text around it, and its axis in words."""
    folded = fold(shape, _BARS)
    most = max(folded.counts)
    axis = (
        f"{shape.metric} of a token, {folded.low:.2g} to {folded.high:.2g} nats (log); "
        f"the tallest bar is {count(most, 'token')}"
    )
    heights = [_HEIGHT * tokens / most for tokens in folded.counts]
    bars = "".join(
        f'<rect x="{_BAR * number}" y="{_HEIGHT - height:.1f}" width="{_BAR - 1}" '
        f'height="{height:.1f}"/>'
        for number, height in enumerate(heights)
    )
    size = f'width="{_BAR * len(heights)}" height="{_HEIGHT}"'
    return (
        f'<svg role="img" aria-label="{axis}" fill="currentColor" {size}>{bars}</svg><p>{axis}</p>'
    )
