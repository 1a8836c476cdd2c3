"""Annotations and summaries of GitHub Actions, as its runner reads them."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from klcli.errors import Notice
from klcli.judge.report import Report
from klcli.render.github import (
    MOST_ANNOTATIONS,
    MOST_BYTES,
    append_step_summary,
    escape_data,
    escape_property,
    render_github,
)
from klcli.render.text import visible
from tests.render import golden
from tests.render.reports import (
    HOSTILE,
    compare_report,
    gate,
    gated_report,
    hostile_report,
    outlier,
)
from tests.render.test_markdown import inline_parts

COMMAND = re.compile(r"::(error|warning|notice) title=([^:,]*)::(.*)")
"""A line as the runner takes it apart: at the second ``::``, at commas, at the first ``=``."""

COMMANDS = ("::set-output name=verdict::pass", "##[set-output name=verdict]pass", "::error::x")
"""Texts that the runner obeys where they begin a line, or with ``##[`` wherever they stand."""


def unescaped(text: str) -> str:
    for escape, character in {"%3A": ":", "%2C": ",", "%0D": "\r", "%0A": "\n"}.items():
        text = text.replace(escape, character)
    return text.replace("%25", "%")


def annotations_of(report: Report) -> list[tuple[str, str, str]]:
    """Level, title and message of every line, as the runner reads them."""
    stream = io.StringIO(newline="")
    render_github(report, stream)
    found = [COMMAND.fullmatch(line) for line in stream.getvalue().splitlines()]
    assert all(found)
    return [(one[1], unescaped(one[2]), unescaped(one[3])) for one in found if one]


def test_a_failed_gate_is_an_error_and_the_headline_a_notice() -> None:
    found = annotations_of(gated_report())
    assert [level for level, *_ in found] == ["error", "error", "warning", "notice"]
    assert found[0][1] == "klcli FAIL kl.mean<=0.0123455"
    assert "0.01235" in found[0][2]
    assert found[-1][2] == (
        "FAIL: candidate differs from reference, kl 0.0123 ± 0.0012 nats a token, 3,584 tokens"
    )


def test_an_inconclusive_gate_is_a_warning() -> None:
    gates = [gate("kl<=1", 0.9, 1.0, verdict="inconclusive", reason="the limit lies inside")]
    found = annotations_of(compare_report(gates=gates, verdict="inconclusive"))
    assert [level for level, *_ in found] == ["warning", "notice"]


def test_hostile_text_is_no_command() -> None:
    found = annotations_of(hostile_report())
    assert {level for level, *_ in found} == {"error", "warning", "notice"}
    assert f"klcli FAIL {visible(''.join(HOSTILE.values()), keep_spaces=True)}".rstrip() in [
        title for _, title, _ in found
    ]


@pytest.mark.parametrize("text", COMMANDS)
@pytest.mark.parametrize("start", ["", "\n", "\r\n", " ", "\u2028", "\x85"])
def test_a_command_in_a_text_stays_a_text(text: str, start: str) -> None:
    said = f"{start}{text}"
    report = compare_report(
        gates=[gate(said, 0.5, 0.25, reason=said)],
        verdict="fail",
        models={"reference": {"source": said}, "candidate": {"source": said}},
        warnings=[Notice(code="a", message=said)],
    )
    assert [level for level, *_ in annotations_of(report)] == ["error", "warning", "notice"]


@pytest.mark.parametrize("text", ["50%", "%0A", "%250A", "a:b,c=d", "a\r\nb", "::x::", "%3A"])
def test_an_escaped_text_reads_as_what_it_was(text: str) -> None:
    assert unescaped(escape_data(text)) == text
    assert unescaped(escape_property(text)) == text
    assert not {"\r", "\n"} & {*escape_data(text)}
    assert not {"\r", "\n", ":", ","} & {*escape_property(text)}


def test_of_many_annotations_the_last_says_how_many_more_there_are() -> None:
    gates = [gate(f"kl<={limit}", 20.0, float(limit)) for limit in range(15)]
    errors = [a for a in annotations_of(compare_report(gates=gates)) if a[0] == "error"]
    assert len(errors) == MOST_ANNOTATIONS
    assert errors[-1][2] == "7 more: see the summary of the step"


def test_a_summary_looks_as_it_should(tmp_path: Path) -> None:
    assert append_step_summary(gated_report(), tmp_path / "summary.md")
    golden.check("step-summary.md", (tmp_path / "summary.md").read_text(encoding="utf-8"))


def test_a_summary_is_appended_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("# Before\n")
    assert append_step_summary(compare_report(), path)
    assert path.read_text(encoding="utf-8").startswith("# Before\n## candidate differs")


def test_hostile_text_in_a_summary_becomes_nothing_but_text(tmp_path: Path) -> None:
    append_step_summary(hostile_report(), tmp_path / "summary.md")
    kinds = {part.type for part in inline_parts((tmp_path / "summary.md").read_text("utf-8"))}
    assert kinds <= {"text", "text_special", "code_inline", "softbreak", "strong_open",
                     "strong_close"}  # fmt: skip


def test_a_long_summary_has_fewer_outliers(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    report = compare_report(outliers=[outlier(before="x" * 1000)] * 3000)
    assert append_step_summary(report, path)
    assert MOST_BYTES / 4 < path.stat().st_size <= MOST_BYTES
    assert "# Warnings" not in path.read_text(encoding="utf-8")


def test_a_full_summary_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_bytes(b"x" * (MOST_BYTES - 100))
    assert not append_step_summary(compare_report(), path)
    assert path.stat().st_size == MOST_BYTES - 100


def test_a_report_without_gates_has_no_verdict() -> None:
    ((level, _, message),) = annotations_of(replace(compare_report(), warnings=()))
    assert level == "notice"
    assert message.startswith("candidate differs from reference, kl ")
