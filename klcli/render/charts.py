"""Pictures of a report, as SVG: how its numbers are distributed, and where in the text they lie.

Needs the extra ``html``, so import it only where a picture is wanted. Apart from ``nll_plane`` they
are drawn from what is in the JSON report too.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, TypeGuard, TypeVar

import altair as alt
import numpy as np
import numpy.typing as npt

from klcli.choices import SliceBy
from klcli.errors import KlcliError
from klcli.judge.report import Along, Distribution, Report, Slice
from klcli.measure.scores import TokenScores
from klcli.render.drawing import LIGHT, WIDTH, Row, Theme, Words, chart_of, log_axis, svg_of
from klcli.render.models import labels_of
from klcli.render.numbers import count, estimate, figure
from klcli.render.slices import SLICED_BY
from klcli.render.summary import at_least, is_masked, scored_tokens
from klcli.render.text import visible

_SQUARE = 340
_CELLS = 40
"""Cells along each side of the plane of two NLLs."""
_FAINTEST = 0.12
"""The opacity of a cell that holds one token."""
_BAR = 22
"""The height of a slice, with what is around it."""
_NOTE = 230
"""The width of what is said beside a slice."""

_MARKED = {"median": 0.5, "p90": 0.9, "p99": 0.99}
"""Quantiles that are marked on the cumulative line, and their heights."""
_BELOW = "p99"
"""The one that is named below the line: above it there is p90."""
_ROUNDING = 1e-9
"""By how much an edge may miss its power of ten."""
Kept = TypeVar("Kept")


def distribution(report: Report, theme: Theme = LIGHT) -> str:
    """How many tokens have which KL, or of one model which NLL: histogram and cumulative.

    Raises:
        KlcliError: the report was written by a klcli that kept no distribution.
    """
    shape = _kept(report.distribution)
    histogram = _histogram(report, shape, theme)
    chart = alt.vconcat(histogram, _cumulative(report, shape, theme), spacing=14)
    return svg_of(chart, _about_distribution(report, shape), theme)


def along(report: Report, theme: Theme = LIGHT) -> str:
    """The mean KL, or of one model NLL, of equal parts of the text.

    Raises:
        KlcliError: the report was written by a klcli that kept no such means.
    """
    parts = _kept(report.along)
    ends = [*parts.starts[1:], report.counts["tokens"] or 0]
    rows = [
        {"x": start, "end": end, "y": mean}
        for start, end, mean in zip(parts.starts, ends, parts.means, strict=True)
        if _is_finite(mean)
    ]
    scale = alt.Scale(domain=[0, max(ends[-1], 1)], nice=False)
    bars = chart_of(rows, 150).mark_rect(color=theme.data, stroke=theme.ground, strokeWidth=0.5)
    bars = bars.encode(
        x=alt.X(
            "x:Q", title="scored token, in reading order", scale=scale, axis=alt.Axis(tickCount=8)
        ),
        x2="end:Q",
        y=alt.Y("y:Q", title=f"mean {_measure(report)}, nats", axis=alt.Axis(tickCount=5)),
        y2=alt.datum(0),
    )
    mean = chart_of(_mean_of(report, parts.metric), 150).mark_rule(color=theme.mark, size=1.5)
    return svg_of(bars + mean.encode(y="value:Q"), _about_along(report, parts), theme)


def nll_plane(report: Report, theme: Theme = LIGHT) -> str:
    """The NLL of one model against that of the other: how many tokens lie where.

    Raises:
        KlcliError: the report was read from a file, which holds no single tokens.
    """
    scores = scored_tokens(report).scores
    end = _largest_nll(scores)
    scale = alt.Scale(domain=[0, end], nice=False)
    names = labels_of(report.models)
    x = alt.X("x:Q", title=f"NLL of {names['reference']}, nats", scale=scale)
    y = alt.Y("y:Q", title=f"NLL of {names['candidate']}, nats", scale=scale)
    cells = chart_of(list(_cells(scores, end)), _SQUARE, _SQUARE)
    cells = cells.mark_rect(color=theme.data, strokeWidth=0)
    opacity = alt.Opacity("opacity:Q", scale=None)
    cells = cells.encode(x=x, x2="x2:Q", y=y, y2="y2:Q", opacity=opacity)
    equal = chart_of([{"x": 0, "y": 0}, {"x": end, "y": end}], _SQUARE, _SQUARE)
    diagonal = equal.mark_line(color=theme.mark, strokeWidth=1.5).encode(x=x, y=y)
    return svg_of(cells + diagonal, _about_plane(report), theme)


def slices(report: Report, by: SliceBy, theme: Theme = LIGHT) -> str:
    """The mean KL, or of one model NLL, of the tokens of each kind, as bars.

    Raises:
        KlcliError: the report has no such slices.
    """
    some = [one for one in report.slices if one.by == by]
    if not some:
        raise KlcliError(f"this report has no slices by {by}: the text of its tokens is not known")
    rows = [_slice_row(report, one) for one in some]
    longest = max((row["mean"] for row in rows if row["mean"]), default=1)
    height, width = _BAR * len(rows), WIDTH - _NOTE
    names = alt.Y("slice:N", sort=None, title=None)
    means = alt.X(
        "mean:Q",
        title=f"mean {_measure(report)}, nats",
        scale=alt.Scale(domain=[0, longest]),
        axis=alt.Axis(tickCount=5),
    )
    bars = chart_of(rows, height, width).mark_bar(color=theme.data, height=_BAR - 8)
    notes = chart_of(rows, height, width).mark_text(align="left", color=theme.ink, dx=10)
    notes = notes.encode(x=alt.value(width), y=names, text="said:N")
    chart = bars.encode(x=means, y=names) + notes
    return svg_of(chart, _about_slices(report, by, rows), theme)


def _kept(kept: Kept | None) -> Kept:
    if kept is None:
        raise KlcliError(
            "this report was written by a klcli that did not keep what the picture shows: "
            "run the comparison again, or show the folder of the run"
        )
    return kept


def _histogram(report: Report, shape: Distribution, theme: Theme) -> alt.LayerChart:
    x = alt.X("x:Q", **log_axis(*_ends(shape), title=None, labels=False))
    rows = [
        {"x": low, "x2": high, "y": tokens}
        for low, high, tokens in zip(shape.edges, shape.edges[1:], shape.counts, strict=False)
        if tokens
    ]
    y = alt.Y("y:Q", title="tokens", axis=alt.Axis(format=",~r", tickCount=4, tickMinStep=1))
    bars = chart_of(rows, 170).mark_rect(color=theme.data, stroke=theme.ground, strokeWidth=0.5)
    mean = chart_of(_mean_of(report, shape.metric, *_ends(shape)), 170)
    rule = mean.mark_rule(color=theme.mark, size=1.5).encode(x="value:Q")
    said = mean.mark_text(color=theme.mark, baseline="bottom", dy=-3, fontWeight=600)
    said = said.encode(x="value:Q", y=alt.value(0), text="said:N")
    return bars.encode(x=x, x2="x2:Q", y=y, y2=alt.datum(0)) + rule + said


def _cumulative(report: Report, shape: Distribution, theme: Theme) -> alt.LayerChart:
    """The share of the tokens up to each edge; those at 0 and at infinity count as such."""
    x = alt.X("x:Q", **log_axis(*_ends(shape), title=f"{_measure(report)} of a token, nats (log)"))
    first, last = _ends(shape)
    lower = accumulate(shape.counts, initial=shape.zero + shape.below)
    rows = [
        {"x": edge, "y": tokens / max(_tokens(shape), 1)}
        for edge, tokens in zip(shape.edges, lower, strict=True)
        if first * (1 - _ROUNDING) <= edge <= last * (1 + _ROUNDING)
    ]
    y = alt.Y(
        "y:Q",
        title="tokens up to here",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1]),
    )
    line = chart_of(rows, 120).mark_line(color=theme.data, strokeWidth=2).encode(x=x, y=y)
    quantiles = list(_quantiles(report, shape))
    dots = chart_of(quantiles, 120).mark_circle(color=theme.mark, size=40, opacity=1)
    above = chart_of([one for one in quantiles if one["name"] != _BELOW], 120)
    below = chart_of([one for one in quantiles if one["name"] == _BELOW], 120)
    above = above.mark_text(color=theme.ink, align="right", baseline="bottom", dx=-7)
    below = below.mark_text(color=theme.ink, align="left", baseline="top", dx=5, dy=6)
    return alt.layer(
        line,
        dots.encode(x="x:Q", y="y:Q"),
        *(text.encode(x="x:Q", y="y:Q", text="said:N") for text in (above, below)),
    )


def _quantiles(report: Report, shape: Distribution) -> Iterator[Row]:
    first, last = _ends(shape)
    for name, height in _MARKED.items():
        at = report.metrics[shape.metric].get(name)
        if at is not None and first <= at <= last:
            yield {"name": name, "x": at, "y": height, "said": f"{name} {figure(at)}"}


def _mean_of(
    report: Report, metric: str, low: float = -math.inf, high: float = math.inf
) -> list[Row]:
    """The mean as the one row of a chart; none where it is not known or lies outside."""
    mean = report.metrics[metric]["mean"]
    if not _is_finite(mean) or not low <= mean <= high:
        return []
    return [{"value": mean, "said": f"mean {figure(mean)}"}]


def _ends(shape: Distribution) -> tuple[float, float]:
    """Whole decades around the bins that hold tokens; some usual ones if there are none."""
    filled = np.flatnonzero(shape.counts)
    if not len(filled):
        return 1e-4, 10.0
    low, high = math.log10(shape.edges[filled[0]]), math.log10(shape.edges[filled[-1] + 1])
    return 10.0 ** math.floor(low + _ROUNDING), 10.0 ** math.ceil(high - _ROUNDING)


def _tokens(shape: Distribution) -> int:
    return sum(shape.counts) + shape.zero + shape.below + shape.above + shape.infinite


def _largest_nll(scores: TokenScores) -> float:
    """Where the axes of both NLLs end: a whole number that no finite one is above."""
    largest = 0.0
    for _, part in scores.blocks():
        for x in _both_nlls(part):
            largest = x.max(initial=largest)
    return float(max(math.ceil(largest), 1))


def _both_nlls(part: TokenScores) -> npt.NDArray[np.float64]:
    """The NLLs of either model, (2, tokens), of the tokens where both are finite."""
    both = np.stack([part["nll_reference"], part["nll_candidate"]])
    return both[:, np.isfinite(both).all(axis=0)]


def _cells(scores: TokenScores, end: float) -> Iterator[Row]:
    """Cells of the plane that hold a token, the stronger the more of them, on a log scale."""
    tokens = np.zeros((_CELLS, _CELLS), dtype=np.int64)
    for _, part in scores.blocks():
        cells = np.clip((_both_nlls(part) / end * _CELLS).astype(np.int64), 0, _CELLS - 1)
        np.add.at(tokens, (cells[0], cells[1]), 1)
    size, most = end / _CELLS, math.log(max(tokens.max(), 2))
    for i, j in np.argwhere(tokens).tolist():
        share = math.log(tokens[i, j]) / most
        yield {
            "x": i * size,
            "x2": (i + 1) * size,
            "y": j * size,
            "y2": (j + 1) * size,
            "opacity": round(_FAINTEST + (1 - _FAINTEST) * share, 3),
        }


def _slice_row(report: Report, one: Slice) -> dict[str, Any]:
    metric = _metric(report)
    mean, share = one.means[metric], one.means["share"]
    value = "unknown" if mean is None else figure(mean)
    of_all = "" if share is None else f", {share:.0%} of all {_measure(report)}"
    return {
        "slice": visible(one.slice, keep_spaces=True),
        "mean": mean if _is_finite(mean) else None,
        "said": f"{value} ({count(one.tokens, 'token')}{of_all})",
    }


def _about_distribution(report: Report, shape: Distribution) -> Words:
    quantiles = [
        f"{name} {figure(value)}"
        for name in (*_MARKED, "max")
        if (value := report.metrics[shape.metric].get(name)) is not None
    ]
    lines = [_headline(report), *_aside(_not_drawn(shape))]
    what = f"Histogram and cumulative distribution of the {_measure(report)} of tokens, log axis"
    return Words(
        "kl-distribution",
        _subject(report),
        lines,
        f"{what}. {'. '.join(lines)}. {', '.join(quantiles)}.",
    )


def _about_along(report: Report, parts: Along) -> Words:
    known = [mean for mean in parts.means if _is_finite(mean)]
    hidden = len(parts.means) - len(known)
    said = f"Not drawn: {count(hidden, 'part')} without a finite mean" if hidden else ""
    lines = [f"Mean of {count(len(parts.means), 'equal part')}; the line is that of all", said]
    return Words(
        "kl-along",
        f"{_measure(report)} along the text",
        [line for line in lines if line],
        f"Bars: mean {_measure(report)} of {count(len(parts.means), 'equal part')} of the text, "
        f"{_range(known)}. {_headline(report)}. {said}".strip(),
    )


def _about_plane(report: Report) -> Words:
    names = list(labels_of(report.models).values())
    means = [report.metrics[f"nll_{side}"]["mean"] for side in report.models]
    said = [
        f"{name} {'unknown' if x is None else figure(x)}"
        for name, x in zip(names, means, strict=True)
    ]
    infinite = report.counts.get("infinite") or 0
    lines = ["Stronger: more tokens (log)", "On the line both models are equally sure"]
    lines += _aside([f"{count(infinite, 'token')} at infinity"] if infinite else [])
    return Words(
        "kl-plane",
        "NLL of each token, by either model",
        lines,
        f"How many tokens have which NLL by {names[0]} (across) and by {names[1]} (up). "
        f"{'. '.join(lines)}. Mean NLL in nats: {', '.join(said)}.",
    )


def _about_slices(report: Report, by: SliceBy, rows: Iterable[Row]) -> Words:
    said = "; ".join(f"{row['slice']}: {row['said']}" for row in rows)
    title = f"{_measure(report)} by {SLICED_BY[by]}"
    return Words(f"kl-by-{by}", title, [], f"Bars: mean {title}, in nats. {said}.")


def _subject(report: Report) -> str:
    """What was measured, of which models, by their base names."""
    names = list(labels_of(report.models).values())
    if report.command == "perplexity":
        return f"{_measure(report)} of {names[0]}"
    return f"KL({names[0]} || {names[1]})"  # fonts of pictures often lack the one sign ‖


def _headline(report: Report) -> str:
    """The mean with its interval, and how many tokens it is of."""
    metric = report.metrics[_metric(report)]
    mean, low, high = (metric[field] for field in ("mean", "ci_low", "ci_high"))
    tokens = count(report.counts["tokens"], "token")
    if mean is None:
        return tokens
    said = estimate(mean, low, high)
    interval = f" (95 %: {said.interval})" if said.interval else ""
    return f"Mean {at_least(report, _metric(report))}{said.number} nats{interval}, {tokens}"


def _not_drawn(shape: Distribution) -> list[str]:
    """The tokens that a log axis has no place for."""
    known = {
        "at 0": shape.zero,
        f"below {shape.edges[0]:.0g}": shape.below,
        f"above {shape.edges[-1]:g}": shape.above,
        "at infinity": shape.infinite,
    }
    return [f"{count(tokens, 'token')} {where}" for where, tokens in known.items() if tokens]


def _aside(what: list[str]) -> list[str]:
    return [f"Not drawn: {', '.join(what)}"] if what else []


def _range(means: list[float]) -> str:
    return f"{figure(min(means))} to {figure(max(means))} nats" if means else "all unknown"


def _metric(report: Report) -> str:
    return "kl" if report.command == "compare" else "nll"


def _measure(report: Report) -> str:
    """The metric as people know it."""
    if report.command == "compare":
        return "KL"
    return "pseudo-NLL" if is_masked(report) else "NLL"


def _is_finite(x: float | None) -> TypeGuard[float]:
    return x is not None and math.isfinite(x)
