"""A report as data: JSON of the whole, JSONL and CSV of every token. Nothing is rounded."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

from klcli.judge.report import Report, Tokens
from klcli.measure.columns import Column
from klcli.render.summary import scored_tokens
from klcli.render.text import visible
from klcli.render.token_columns import TokenColumn, token_columns
from klcli.render.view import DEFAULT_VIEW, View

_AT_ONCE = 10_000
"""Rows that are Python objects at a time: some megabytes."""

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What makes a spreadsheet take a cell for a formula."""


def render_json(report: Report, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the report as JSON, in ASCII: no text in it can reach a terminal as a control code."""
    json.dump(report.to_dict(), stream, indent=2, allow_nan=False)
    stream.write("\n")


def render_jsonl(report: Report, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write each scored token as a JSON object on a line: every score, and texts as they are.

    In ASCII; as in the JSON report infinity is the string "inf", and what is not a number null.

    Raises:
        KlcliError: the report was read from a file, which holds no tokens.
    """
    tokens = scored_tokens(report)
    columns = list(token_columns(tokens, report.lower_bounds))
    names, encode = [one.name for one in columns], json.JSONEncoder(allow_nan=False).encode
    for row in _rows(tokens, columns, tokens.texts, tokens.documents):
        stream.write(encode(dict(zip(names, row, strict=True))) + "\n")


def render_csv(report: Report, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write each scored token as a row of CSV: every score, and texts made visible.

    A text that a spreadsheet would take for a formula, such as ``=``, gets an apostrophe before it,
    so that opening the file runs nothing; ``token_id`` tells what was there. Numbers stay as they
    are: infinity is ``inf``, what is not a number is empty.

    Raises:
        KlcliError: the report was read from a file, which holds no tokens.
    """
    tokens = scored_tokens(report)
    texts = {token_id: harmless(visible(text)) for token_id, text in tokens.texts.items()}
    documents = [harmless(visible(name, keep_spaces=True)) for name in tokens.documents]
    columns = list(token_columns(tokens, report.lower_bounds))
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(one.name for one in columns)
    writer.writerows(_rows(tokens, columns, texts, documents))


def render_facts(facts: Mapping[str, Any], stream: TextIO, *, as_json: bool) -> None:
    """Write what ``klcli inspect`` found: JSON, or a line for each fact."""
    if as_json:
        json.dump(facts, stream, indent=2)
        stream.write("\n")
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        said = "–" if value is None else visible(shown, keep_spaces=True)
        stream.write(f"{name.replace('_', ' '):<{width}}  {said}\n")


def _rows(
    tokens: Tokens,
    columns: Sequence[TokenColumn],
    texts: Mapping[int, str],
    documents: Sequence[str],
) -> Iterator[tuple[Any, ...]]:
    """The tokens as rows, made column by column: an item at a time is far slower."""
    for first in range(0, len(tokens.scores), _AT_ONCE):
        cells: list[list[Any]] = []
        for column in columns:
            some = tokens.scores.part(column.score, first, first + _AT_ONCE)
            if column.is_text:
                cells.append([texts[token_id] for token_id in some.tolist()])
            else:
                is_document = column.score == "document"
                cells.append([documents[i] for i in some] if is_document else _plain(some))
        yield from zip(*cells, strict=True)


def _plain(column: Column) -> list[Any]:
    """Scores as Python objects; None where one is not known: below 0 among whole numbers."""
    values: list[Any] = column.tolist()
    if column.dtype.kind == "i":
        return [None if value < 0 else value for value in values]
    if column.dtype.kind != "f" or bool(np.isfinite(column).all()):
        return values
    return [value if math.isfinite(value) else _not_finite(value) for value in values]


def _not_finite(value: float) -> str | None:
    return None if math.isnan(value) else str(value)


def harmless(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
