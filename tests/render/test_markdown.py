import io
import json
import re

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from klcli.errors import Notice
from klcli.judge.report import Report
from klcli.render.markdown import code, escape, render_markdown
from klcli.render.text import visible
from klcli.render.view import DEFAULT_VIEW, View
from tests.render import golden
from tests.render.reports import (
    HOSTILE,
    compare_report,
    gated_report,
    hostile_report,
    outlier,
    perplexity_report,
)

MARKDOWN = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def as_markdown(report: Report, view: View = DEFAULT_VIEW) -> str:
    stream = io.StringIO(newline="")
    render_markdown(report, stream, view)
    return stream.getvalue()


def inline_parts(text: str) -> list[Token]:
    """What stands in the lines and cells of a page, as a reader of Markdown takes it."""
    return [part for token in MARKDOWN.parse(text) for part in token.children or ()]


@pytest.mark.parametrize(
    ("name", "report"),
    [("compare", compare_report()), ("gated", gated_report()), ("perplexity", perplexity_report())],
)
def test_a_page_looks_as_it_should(name: str, report: Report) -> None:
    golden.check(f"{name}.md", as_markdown(report))


def test_slices_are_tables() -> None:
    page = as_markdown(compare_report(), View(slices=("confidence", "kind")))
    assert "| 0–0.25 | 1,774 | 0.000998 | 48.692 | 2.1411 | 2.1511 |" in page
    assert "| URL | 63 | inf | – | 2.1411 | 2.1511 |" in page


def test_hostile_text_becomes_nothing_but_text() -> None:
    kinds = {part.type for part in inline_parts(as_markdown(hostile_report()))}
    assert kinds <= {"text", "text_special", "code_inline", "softbreak", "strong_open",
                     "strong_close"}  # fmt: skip


def test_hostile_text_leaves_tables_whole() -> None:
    blocks = as_markdown(hostile_report()).split("\n\n")
    tables = [block.split("\n") for block in blocks if block.startswith("| ")]
    assert max(map(len, tables)) == 2 + len(HOSTILE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_a_token_is_read_as_what_it_is(name: str) -> None:
    text = HOSTILE[name]
    report = compare_report(
        outliers=[outlier(token=text, before="", after="", top_reference=[(text, 1.0)])]
    )
    spans = [p.content for p in inline_parts(as_markdown(report)) if p.type == "code_inline"]
    assert f"[{visible(text)}]" in spans
    assert visible(text) in spans


@pytest.mark.parametrize("text", ["`", "``a`", " a ", "a`b", "|", "\\", " ` "])
def test_a_code_span_says_what_it_was_given(text: str) -> None:
    (span,) = inline_parts(code(text))
    assert (span.type, span.content) == ("code_inline", text)


@pytest.mark.parametrize("name", HOSTILE)
def test_an_escaped_text_says_what_it_was_given(name: str) -> None:
    text = visible("x" + HOSTILE[name] + "x", keep_spaces=True)
    shown = "".join(part.content for part in inline_parts(escape(text)))
    assert shown.replace("\u2060", "") == text


def test_warnings_are_on_the_page() -> None:
    report = compare_report(warnings=[Notice(code="a", message="<b>5 | 6</b>\n# 7")])
    assert as_markdown(report).endswith(
        "## Warnings\n\n" + r"- \<b\>5 | 6\</b\>\\n\# 7" + f"\n\n`{report.signature}`\n"
    )


def test_a_saved_report_makes_the_same_page() -> None:
    saved = Report.from_dict(json.loads(json.dumps(gated_report().to_dict())))
    assert as_markdown(saved) == as_markdown(gated_report())


@pytest.mark.parametrize(
    "name",
    ["@everyone", "https://evil.example", "www.evil.example", "a@evil.example", "#123", "x/y#1"],
)
def test_no_name_becomes_a_link_or_a_mention(name: str) -> None:
    """What GitHub makes into links and mentions in the finished page, whatever was escaped."""
    shown = escape(name)
    becomes_link = re.compile(r"@\w|://|www\.|#\d")
    assert becomes_link.search(name)
    assert not becomes_link.search(shown)
    assert shown.replace("\u2060", "").replace("\\", "") == name
