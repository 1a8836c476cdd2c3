"""Slices of the tokens as tables: what each differs by, and what it carries of the whole."""

from collections.abc import Mapping

from klcli.judge.report import Report, Slice
from klcli.render.numbers import count, number, percent
from klcli.render.summary import Table, at_least, pseudo
from klcli.render.text import visible
from klcli.render.view import View

SLICED_BY = {
    "confidence": "confidence",
    "position": "row of the window",
    "kind": "kind of text",
    "role": "role",
    "turn": "turn",
    "generated": "place in the answer",
    "regex": "matches of",
}
_COMPARE_SLICE = {
    "KL mean": "kl",
    "% of all KL": "share",
    "NLL ref": "nll_reference",
    "NLL cand": "nll_candidate",
}
_PERPLEXITY_SLICE = {"NLL": "nll", "% of all NLL": "share"}


def slice_tables(report: Report, view: View) -> list[Table]:
    """The tokens by kind: a table for each of the slices that are to be shown."""
    columns = _COMPARE_SLICE if report.command == "compare" else _PERPLEXITY_SLICE
    tables = []
    for by in view.ordered_slices:
        rows = [_slice_row(one, columns) for one in report.slices if one.by == by]
        heads = [
            f"{at_least(report, field)}{pseudo(report, head)}" for head, field in columns.items()
        ]
        tables.append(Table(head=[SLICED_BY[by], "tokens", *heads], rows=rows))
    return [table for table in tables if table.rows]


def _slice_row(one: Slice, columns: Mapping[str, str]) -> list[str]:
    cells = [
        percent(one.means[field]) if field == "share" else number(one.means[field])
        for field in columns.values()
    ]
    return [visible(one.slice, keep_spaces=True), count(one.tokens), *cells]
