"""Formats: which one a file is written in, and what it needs."""

import io
from pathlib import Path
from typing import TextIO

import pytest

from klcli.choices import ENDINGS
from klcli.errors import UsageError
from klcli.render.files import check_outputs
from klcli.render.formats import WRITERS, Extra, as_text, format_of
from klcli.render.view import DEFAULT_VIEW, View


def test_every_ending_has_a_writer() -> None:
    assert set(ENDINGS.values()) == set(WRITERS)


@pytest.mark.parametrize(
    ("path", "format_"),
    [("a.json", "json"), ("a/b.JSONL", "jsonl"), ("a.b.csv", "csv"), ("a.md", "markdown")],
)
def test_the_ending_says_the_format(path: str, format_: str) -> None:
    assert format_of(path, ENDINGS) == format_


@pytest.mark.parametrize("path", ["a.txt", "a", ".json", "json", "a.json.gz", ""])
def test_an_unknown_ending_is_a_wrong_argument(path: str) -> None:
    with pytest.raises(UsageError, match=r"use one of \.json, \.jsonl, \.csv, \.md"):
        format_of(path, ENDINGS)


def test_of_two_endings_the_longer_counts() -> None:
    endings = {".json": "json", ".rows.json": "jsonl"}
    assert format_of("a.rows.json", endings) == "jsonl"  # type: ignore[arg-type]
    assert format_of("rows.json", endings) == "json"  # type: ignore[arg-type]


def test_a_missing_package_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = Extra("pictures", ("json", "not_installed_at_all"))
    monkeypatch.setattr("klcli.render.formats.EXTRAS", {"csv": extra})
    message = r"needs not_installed_at_all: pip install 'klcli\[pictures\]'"
    with pytest.raises(UsageError, match=message):
        check_outputs([str(tmp_path / "a.csv")])


def render_line(line: str, stream: TextIO, _view: View) -> None:
    stream.write(line)


def test_text_is_written_as_utf_8_with_its_own_line_ends() -> None:
    stream = io.BytesIO()
    as_text(render_line)("KL(P‖Q)\n", stream, DEFAULT_VIEW)
    assert stream.getvalue() == "KL(P‖Q)\n".encode()
    assert not stream.closed
