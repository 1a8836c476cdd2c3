"""The formats that a report is printed and written in, and what each of them needs.

A renderer takes ``(report, stream, view)`` and only formats what is in the report. What it needs
beyond the packages that klcli always has it imports when it runs.
"""

import importlib.util
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple, TextIO

from klcli.choices import FileFormat, Format
from klcli.errors import UsageError, choose_from
from klcli.judge.report import Report
from klcli.render.arrow import render_parquet
from klcli.render.badge import render_badge
from klcli.render.card import render_card
from klcli.render.data import render_csv, render_json, render_jsonl
from klcli.render.github import render_github
from klcli.render.html import render_html
from klcli.render.junit import render_junit
from klcli.render.markdown import render_markdown
from klcli.render.pictures import render_png, render_svg
from klcli.render.view import View

Printer = Callable[[Report, TextIO, View], None]
Writer = Callable[[Any, BinaryIO, View], None]


class Extra(NamedTuple):
    """What ``pip install 'klcli[name]'`` brings for a format."""

    name: str
    modules: tuple[str, ...]


def as_text(render: Callable[[Any, TextIO, View], None]) -> Writer:
    """A renderer of text as one that writes UTF-8, with the line ends that it gives."""

    def write(result: Any, stream: BinaryIO, view: View) -> None:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        try:
            render(result, text, view)
        finally:
            text.detach()  # which also flushes; the stream is its owner's to close

    return write


PRINTERS: Mapping[Format, Printer] = {
    "json": render_json,
    "jsonl": render_jsonl,
    "csv": render_csv,
    "markdown": render_markdown,
    "github": render_github,
}
"""What prints a report on stdout, by format; the table is the terminal's own."""

WRITERS: Mapping[FileFormat, Writer] = {
    "json": as_text(render_json),
    "jsonl": as_text(render_jsonl),
    "csv": as_text(render_csv),
    "markdown": as_text(render_markdown),
    "junit": render_junit,
    "badge": as_text(render_badge),
    "card": as_text(render_card),
    "parquet": render_parquet,
    "html": as_text(render_html),
    "svg": render_svg,
    "png": render_png,
}
"""What writes a report to a file, by format."""

_PICTURES = Extra("html", ("altair", "vl_convert"))
_PAGE = Extra("html", ("jinja2", "altair", "vl_convert"))

EXTRAS: Mapping[FileFormat, Extra] = {
    "parquet": Extra("parquet", ("pyarrow",)),
    "html": _PAGE,
    "svg": _PICTURES,
    "png": _PICTURES,
}
"""The formats that need more than klcli always has."""


def format_of(path: str, endings: Mapping[str, FileFormat]) -> FileFormat:
    """The format that the ending of a file's name stands for, among those of ``endings``.

    Raises:
        UsageError: none that klcli knows.
    """
    name = PurePath(path).name.lower()
    known = [one for one in endings if name.endswith(one) and name != one]
    if known:
        return endings[max(known, key=len)]
    ending = PurePath(path).suffix
    what = f"unknown ending {ending!r}" if ending else "it has no ending"
    raise UsageError(f"--output {path}: {what}{choose_from(ending, endings)}")


def check_extra(what: str, format_: FileFormat) -> None:
    """Find out before the long work whether the packages that a format needs are installed.

    ``what`` is the option that asks for it.

    Raises:
        UsageError: one is missing.
    """
    extra = EXTRAS.get(format_)
    if extra is None:
        return
    if missing := missing_of(extra.modules):
        raise UsageError(f"{what} needs {' and '.join(missing)}: pip install 'klcli[{extra.name}]'")


def missing_of(modules: Iterable[str]) -> list[str]:
    """Those of some modules that are not installed."""
    return [one for one in modules if importlib.util.find_spec(one) is None]
