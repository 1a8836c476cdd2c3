"""Many candidates against one reference, for people and programs: a table, data, a page, a picture.

A table has a row for each candidate. Those that could not be compared stand below it.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

from rich.console import Console
from rich.text import Text

from klcli.choices import FileFormat, RankFormat
from klcli.judge.intervals import Metric
from klcli.judge.metrics import METRICS
from klcli.judge.ranking import SIGNIFICANT, Candidate, Ranking
from klcli.render.data import harmless
from klcli.render.formats import Writer, as_text
from klcli.render.layout import print_compact, print_hanging, print_heading
from klcli.render.markdown import escape, fact_line, table_of
from klcli.render.models import base_names, details_of, name_of
from klcli.render.numbers import ABSENT, count, figure, number, percent
from klcli.render.summary import Fact, Table, windows_of
from klcli.render.text import visible
from klcli.render.verdict import verdict_text
from klcli.render.view import DEFAULT_VIEW, View

TITLE = "Candidates by KL(reference ‖ candidate), in nats a token"
IN_ORDER = "Candidates in natural order: KL(reference ‖ candidate), in nats a token"
ALIKE = "≈"
_ABOUT_ALIKE = (
    f"{ALIKE} does not differ significantly from the one above (paired token by token, Holm, "
    f"{SIGNIFICANT:.0%})"
)
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
_CSV = (
    "candidate", "bytes", "bits_per_weight", "kl", "kl_low", "kl_high", "kl_p999",
    "perplexity_ratio", "top1_agreement", "nll", "difference_to_above", "p_holm", "verdict",
    "error",
)  # fmt: skip


def render_terminal(ranking: Ranking, console: Console) -> None:
    """Print the table within the width of the console, and what the gates say."""
    print_heading(_title(ranking), _facts(ranking), console)
    if any(one.error is None for one in ranking.candidates):
        print_compact(table(ranking), console)
    for one, name in _named(ranking):
        if one.error is not None:
            said = Text.assemble((name, "bold"), f"  {visible(one.error, keep_spaces=True)}")
            print_hanging(Text("✗ "), said, console)
    for sentence in _remarks(ranking):
        print_hanging(Text(), Text(sentence, "dim"), console)
    if ranking.verdict is not None:
        print_hanging(verdict_text(ranking.verdict), Text(f"  {_gates(ranking)}"), console)


def render_markdown(ranking: Ranking, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the table as Markdown, with all text escaped."""
    blocks = [
        f"# {_title(ranking)}",
        "\n".join(map(fact_line, _facts(ranking))),
        table_of(table(ranking)),
    ]
    if failed := failures(ranking):
        said = [f"- {escape(name)}: {escape(error)}" for name, error in failed]
        blocks += ["## Not compared", "\n".join(said)]
    blocks += [escape(sentence) for sentence in _remarks(ranking)]
    if ranking.verdict is not None:
        blocks.append(f"**{ranking.verdict.upper()}**: {_gates(ranking)}")
    stream.write("\n\n".join(blocks) + "\n")


def render_json(ranking: Ranking, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the result as JSON, in ASCII: no text in it can reach a terminal as a control code."""
    json.dump(ranking.to_dict(), stream, indent=2, allow_nan=False)
    stream.write("\n")


def render_csv(ranking: Ranking, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write a row for each candidate, with whole numbers; names and errors are made visible."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV)
    for one in ranking.candidates:
        writer.writerow("" if cell is None else cell for cell in _cells(one))


def render_html(ranking: Ranking, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write a page with the picture and the table. It needs ``klcli[html]``."""
    from klcli.render.drawing import PAGE
    from klcli.render.html import embedded, page

    stream.write(
        page(
            "ranking.html.j2",
            title=_title(ranking),
            verdict=None if ranking.verdict is None else verdict_text(ranking.verdict).plain,
            ranking=ranking,
            gates=_gates(ranking),
            facts=_facts(ranking),
            table=table(ranking),
            failures=failures(ranking),
            remarks=list(_remarks(ranking)),
            picture=embedded(_picture(ranking, theme=PAGE)),
        )
    )


def render_svg(ranking: Ranking, stream: BinaryIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the picture of sizes and KL as SVG. It needs ``klcli[html]``."""
    stream.write(_picture(ranking).encode())


def render_png(ranking: Ranking, stream: BinaryIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the picture of sizes and KL as PNG. It needs ``klcli[html]``."""
    from klcli.render.drawing import png_of

    stream.write(png_of(_picture(ranking)))


PRINTERS: Mapping[RankFormat, Callable[[Ranking, TextIO, View], None]] = {
    "json": render_json,
    "csv": render_csv,
    "markdown": render_markdown,
}
"""What prints the result on stdout, by format; the table is the terminal's own."""

WRITERS: Mapping[FileFormat, Writer] = {
    "json": as_text(render_json),
    "csv": as_text(render_csv),
    "markdown": as_text(render_markdown),
    "html": as_text(render_html),
    "svg": render_svg,
    "png": render_png,
}
"""What writes the result to a file, by format."""


def table(ranking: Ranking) -> Table:
    """A row for each candidate that was compared, without columns of which nothing is known."""
    rows = [_row(ranking, one, name) for one, name in _named(ranking) if one.error is None]
    heads = list(dict.fromkeys(head for row in rows for head in row))
    known = [
        head for head in heads if any(row.get(head, ABSENT) not in (ABSENT, "") for row in rows)
    ]
    cells = [[row.get(head, ABSENT) for head in known] for row in rows]
    return Table(head=known, rows=cells)


def failures(ranking: Ranking) -> list[tuple[str, str]]:
    """The candidates that could not be compared, and why."""
    return [
        (name, visible(one.error, keep_spaces=True))
        for one, name in _named(ranking)
        if one.error is not None
    ]


def _row(ranking: Ranking, one: Candidate, name: str) -> dict[str, str]:
    bound = "≥ " if "kl" in one.lower_bounds else ""
    metrics, kl = one.metrics, one.metrics["kl"]
    return {
        "candidate": name,
        "": ALIKE if one.is_like_above else "",
        "KL": f"{bound}{figure(kl['mean'])}",
        **(_over_steps(one) if ranking.in_order else {}),
        "95 %": _interval(kl),
        "gates": one.verdict or "",
        "size": _size(one.model.get("bytes")),
        "bits": ABSENT if (bits := one.model.get("bits_per_weight")) is None else f"{bits:.3g}",
        "p99.9": figure(kl["p999"]),
        "PPL ratio": figure(metrics["perplexity_ratio"]["value"], 4),
        "top-1 %": percent(metrics["top1_agreement"]["value"]),
    }


def _over_steps(one: Candidate) -> dict[str, str]:
    """NLL of the candidate on each text, and of two texts the gap: the first less the second."""
    names = base_names([corpus.name for corpus in one.corpora])
    nlls = [corpus.metrics["nll_candidate"]["mean"] for corpus in one.corpora]
    row = {f"NLL {name}": number(nll) for name, nll in zip(names, nlls, strict=True)}
    if len(nlls) == 2 and nlls[0] is not None and nlls[1] is not None:
        row["gap"] = number(nlls[0] - nlls[1])
    return row


def _interval(metric: Metric) -> str:
    low, high = metric["ci_low"], metric["ci_high"]
    return ABSENT if low is None or high is None else f"{figure(low)}–{figure(high)}"


def _size(size: int | None) -> str:
    if size is None:
        return ABSENT
    unit, many = next(((u, n) for u, n in _UNITS if size >= n), _UNITS[-1])
    return f"{size / many:.3g} {unit}"


def _title(ranking: Ranking) -> str:
    return IN_ORDER if ranking.in_order else TITLE


def _facts(ranking: Ranking) -> list[Fact]:
    facts = [Fact("reference", name_of(ranking.reference), details_of(ranking.reference))]
    if ranking.corpora:
        names = ", ".join(visible(name, keep_spaces=True) for name in ranking.corpora)
        facts.append(Fact("corpus", names, ""))
    if ranking.protocol:
        facts.append(Fact("windows", "", windows_of(ranking.protocol)))
    measured = [one for one in ranking.candidates if one.error is None]
    if measured:
        facts.append(Fact("scored", "", count(measured[0].counts["tokens"], "token")))
    return facts


def _named(ranking: Ranking) -> Iterator[tuple[Candidate, str]]:
    """Each candidate with its base name, or as much more as tells them apart."""
    names = base_names([one.source for one in ranking.candidates])
    return zip(ranking.candidates, names, strict=True)


def _remarks(ranking: Ranking) -> Iterator[str]:
    for one in ranking.warnings:
        yield visible(f"{'Warning: ' if one.is_warning else ''}{one.message}", keep_spaces=True)
    if any(one.is_like_above for one in ranking.candidates):
        yield _ABOUT_ALIKE
    if any("kl" in one.lower_bounds for one in ranking.candidates):
        yield f"≥ {METRICS['kl'].label} is a lower bound: a file holds only top tokens"


def _gates(ranking: Ranking) -> str:
    judged = [one for one in ranking.candidates if one.verdict is not None]
    passed = sum(one.verdict == "pass" for one in judged)
    return f"{passed} of {count(len(judged), 'candidate')} passed every gate"


def _cells(one: Candidate) -> Sequence[Any]:
    metrics, above = one.metrics, one.above
    kl = metrics.get("kl", {})
    return (
        harmless(visible(one.source, keep_spaces=True)),
        one.model.get("bytes"), one.model.get("bits_per_weight"),
        kl.get("mean"), kl.get("ci_low"), kl.get("ci_high"), kl.get("p999"),
        *(metrics.get(name, {}).get("value") for name in ("perplexity_ratio", "top1_agreement")),
        metrics.get("nll_candidate", {}).get("mean"),
        None if above is None else above.difference,
        None if above is None else above.p_holm,
        one.verdict,
        None if one.error is None else harmless(visible(one.error, keep_spaces=True)),
    )  # fmt: skip


def _picture(ranking: Ranking, **theme: Any) -> str:
    from klcli.render.pareto import Point, pareto

    points = []
    for one, name in _named(ranking):
        kl, size = one.metrics.get("kl", {}), one.model.get("bytes")
        if size is not None:
            low, high = kl.get("ci_low"), kl.get("ci_high")
            points.append(Point(name=name, bytes=size, kl=one.kl, low=low, high=high))
    return pareto(points, **theme)
