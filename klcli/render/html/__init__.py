"""The report as a page that one opens: a single file, which asks nothing of any network."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import resources
from typing import Any, NamedTuple, TextIO, get_args

from klcli.choices import SliceBy
from klcli.errors import KlcliError
from klcli.judge.report import Report, Slice
from klcli.render import summary
from klcli.render.answers import sentence_about_answers, survival_table
from klcli.render.headline import headlines, other_warnings
from klcli.render.models import labels_of
from klcli.render.numbers import figure
from klcli.render.slices import slice_tables
from klcli.render.text import visible
from klcli.render.verdict import extent, verdict_text, who
from klcli.render.view import DEFAULT_VIEW, View

_SUPERFLUOUS = re.compile(
    r' (?:xmlns(?::\w+)?="[^"]*"|role="graphics-[^"]*"|aria-roledescription="[^"]*")'
)
"""What an SVG needs in a file of its own only, and names of parts of what is one image."""
_FOR_EACH_KIND = View(slices=get_args(SliceBy))


class Picture(NamedTuple):
    """An SVG, and the id of the section that it stands in."""

    name: str
    svg: str


def render_html(report: Report, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the report as a page with everything in it. It needs ``klcli[html]``.

    The tokens are there if the report has them: coloured, with what the models expected. One that
    was read from a file is shown without.
    """
    stream.write(page("page.html.j2", **_context(report)))


def page(template: str, **context: Any) -> str:
    """A page out of a template of this folder, in the style of all pages."""
    return f"{_template(template).render(style=_asset('page.css'), **context)}\n"


def embedded(svg: str) -> str:
    """A picture as a part of a page."""
    return _SUPERFLUOUS.sub("", svg)


def _context(report: Report) -> dict[str, Any]:
    script = _asset("page.js")
    tokens = report.tokens
    return {
        "report": report,
        "title": who(report),
        "extent": " · ".join(extent(report)),
        "verdict": verdict_text(report.verdict).plain if report.verdict else None,
        "headlines": headlines(report),
        "gates": summary.gate_lines(report),
        "warnings": [_text(one.message) for one in other_warnings(report)],
        "remarks": list(filter(None, (*summary.remarks(report), sentence_about_answers(report)))),
        "findings": summary.findings(report),
        "findings_title": summary.FINDINGS,
        "pictures": list(_pictures(report)),
        "facts": summary.facts(report),
        "tables": list(_tables(report)),
        "slices": slice_tables(report, _FOR_EACH_KIND),
        "passages": report.passages,
        "outliers": report.outliers,
        "measured": "KL" if report.command == "compare" else "NLL",
        "labels": labels_of(report.models),
        "signature": _text(report.signature),
        "command_line": report.environment.get("command_line"),
        "versions": _versions(report),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "packed": _packed(report),
        "lacks_tops": tokens is not None and _lacks_tops(report),
    }


def _pictures(report: Report) -> Iterator[Picture]:
    """The charts that this report has the numbers for."""
    from klcli.render import charts
    from klcli.render.drawing import PAGE

    drawn: dict[str, Callable[..., str]] = {
        "distribution": charts.distribution,
        "along": charts.along,
    }
    if report.command == "compare" and report.tokens is not None:
        drawn["plane"] = charts.nll_plane
    for by in dict.fromkeys(one.by for one in report.slices if not _is_all(report, one)):
        drawn[f"slices-{by}"] = partial(charts.slices, by=by)
    for name, draw in drawn.items():
        try:
            yield Picture(name, embedded(draw(report, theme=PAGE)))
        except KlcliError:  # one of a klcli that kept fewer numbers
            continue


def _is_all(report: Report, one: Slice) -> bool:
    """Whether a slice has all tokens: a picture of it would show one bar."""
    return one.tokens == report.counts["tokens"]


def _tables(report: Report) -> Iterator[summary.Table]:
    yield from summary.text_tables(report)
    yield from summary.spread_tables(report, list(summary.SPREAD))
    yield summary.value_table(report)
    if (survival := survival_table(report)) is not None:
        yield survival


def _packed(report: Report) -> str | None:
    from klcli.render.html.tokens import pack

    return None if report.tokens is None else pack(report.tokens)


def _lacks_tops(report: Report) -> bool:
    from klcli.render.html.tokens import has_every_top

    assert report.tokens is not None
    return report.command == "compare" and not has_every_top(report.tokens)


def _versions(report: Report) -> str:
    known = {k: v for k, v in report.environment.items() if k != "command_line" and v is not None}
    return _text(", ".join(f"{name} {value}" for name, value in known.items()))


def _text(text: Any) -> str:
    return visible(str(text), keep_spaces=True)


@cache
def _template(name: str) -> Any:
    import jinja2  # of the extra

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"visible": _text, "token": visible, "figure": figure}
    return environment.from_string(_asset(name))


@cache
def _asset(name: str) -> str:
    return (resources.files(__name__) / name).read_text(encoding="utf-8")
