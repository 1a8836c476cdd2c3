"""The picture of a ranking, as SVG: size on disk against KL, and the frontier of the best.

Needs the extra ``html``, so import it only where a picture is wanted.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import altair as alt
from rich.cells import cell_len

from klcli.render.drawing import LIGHT, WIDTH, Row, Theme, Words, chart_of, log_axis, svg_of
from klcli.render.numbers import count, estimate
from klcli.render.text import keep_end, keep_start, visible

_HEIGHT = 320
_NAME = 32
"""Cells of the longest name beside a point."""
_CELL, _LINE, _DOT = 6.3, 13, 8
"""The width of a cell of text, its height, and what a point takes, in pixels."""
_PARTS = re.compile(r".*[-./ ]", re.DOTALL)
"""What ends where a new part of a name begins; ``Q4_K_M`` is one part."""
_LINE_OF_TEXT = 88
"""Cells of a line above the picture."""
_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A candidate: its size on disk, its mean KL in nats, and the ends of the interval of that."""

    name: str
    bytes: int
    kl: float | None
    low: float | None = None
    high: float | None = None


class _Frame(NamedTuple):
    """What the axes show: sizes in a ``unit`` of so many bytes, and KL."""

    unit: str
    bytes: int
    sizes: tuple[float, float]
    kls: tuple[float, float]

    def place(self, point: Point) -> tuple[float, float]:
        """Where a point is drawn, in pixels from the upper left."""
        smallest, largest = self.sizes
        low, high = map(math.log, self.kls)
        x = (point.bytes / self.bytes - smallest) / (largest - smallest)
        return WIDTH * x, _HEIGHT * (high - math.log(point.kl or 1)) / (high - low)

    def value(self, x: float, y: float) -> tuple[float, float]:
        """The size and the KL that are drawn at a place."""
        smallest, largest = self.sizes
        low, high = self.kls
        return smallest + (largest - smallest) * x / WIDTH, high * (low / high) ** (y / _HEIGHT)


class _Label(NamedTuple):
    """Where a name may be written: its left end and its middle, in pixels."""

    x: float
    y: float
    width: float

    def overlaps(self, other: "_Label") -> bool:
        apart = self.x > other.x + other.width or other.x > self.x + self.width
        return not apart and abs(self.y - other.y) < _LINE

    def fits(self) -> bool:
        return self.x >= 0 and self.x + self.width <= WIDTH and 0 <= self.y <= _HEIGHT


def pareto(points: Sequence[Point], theme: Theme = LIGHT) -> str:
    """The size on disk of candidates against their KL, with names and intervals.

    Those that no other candidate beats in both are joined by a line, the frontier. A log axis has
    no place for a KL that is 0, infinite or unknown: such a candidate is named above the picture.
    """
    drawn = [point for point in points if point.kl is not None and 0 < point.kl < math.inf]
    frame = _frame_of(drawn)
    scale = alt.Scale(domain=frame.sizes, nice=False)
    x = alt.X("x:Q", title=f"size on disk, {frame.unit}", scale=scale)
    y = alt.Y("y:Q", **log_axis(*frame.kls, title="KL, nats a token (log)"))
    rows = [_row(point, frame) for point in drawn]
    dots = chart_of(rows, _HEIGHT).mark_circle(color=theme.data, size=64, opacity=1)
    ranged = chart_of([row for row in rows if "low" in row], _HEIGHT)
    ranges = ranged.mark_rule(color=theme.data, size=1.5)
    best = [_row(point, frame) for point in frontier(points) if point in drawn]
    line = chart_of(best, _HEIGHT).mark_line(
        color=theme.mark, strokeWidth=1.5, interpolate="step-after"
    )
    labels = list(_labels(drawn, frame))
    names = chart_of(labels, _HEIGHT).mark_text(color=theme.ink, align="left", baseline="middle")
    chart = alt.layer(
        line.encode(x=x, y=y),
        ranges.encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
        dots.encode(x=x, y=y),
        names.encode(x=x, y=y, text="name:N"),
    )
    return svg_of(chart, _words(points, drawn, len(labels)), theme)


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points of known KL that no other beats in both size and KL, the smallest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.bytes, _kl(one))):
        if _kl(point) < (_kl(best[-1]) if best else math.inf):
            best.append(point)
    return best


def _kl(point: Point) -> float:
    return math.inf if point.kl is None else point.kl


def _frame_of(points: Sequence[Point]) -> _Frame:
    """Axes with room around the points: a fifth of the sizes, and half as much of the KL."""
    sizes = [point.bytes for point in points] or [0]
    kls = [point.kl for point in points if point.kl] or [0.1]
    unit, size = next((one for one in _UNITS if max(sizes) >= one[1]), _UNITS[-1])
    room = max((max(sizes) - min(sizes)) / 5, max(sizes) / 10, 1)
    ends = (max(min(sizes) - room, 0) / size, (max(sizes) + room) / size)
    return _Frame(unit, size, ends, (min(kls) / 1.5, max(kls) * 1.5))


def _row(point: Point, frame: _Frame) -> Row:
    """A point as the chart takes it; the end of an interval may lie outside."""
    row = {"x": point.bytes / frame.bytes, "y": point.kl}
    if point.low is None or point.high is None:
        return row
    bottom, top = frame.kls
    return {**row, "low": max(point.low, bottom), "high": min(point.high, top)}


def _labels(points: Sequence[Point], frame: _Frame) -> Iterator[Row]:
    """Each name beside its point where nothing else is; none where there is no such place."""
    dots = [frame.place(point) for point in points]
    taken = [_Label(x - _DOT / 2, y, _DOT) for x, y in dots]
    for name, (x, y) in zip(_short_names(points), dots, strict=True):
        for label in _places(x, y, _CELL * cell_len(name)):
            if label.fits() and not any(map(label.overlaps, taken)):
                taken.append(label)
                size, kl = frame.value(label.x, label.y)
                yield {"x": size, "y": kl, "name": name}
                break


def _places(x: float, y: float, width: float) -> Iterator[_Label]:
    """Where a name may stand: best above to the right or below to the left, off the line."""
    for line in (0.6, 0, 1.2, 1.8):
        for dx, dy in ((_DOT, -1), (-_DOT - width, 1), (_DOT, 1), (-_DOT - width, -1)):
            yield _Label(x + dx, y + dy * line * _LINE, width)


def _short_names(points: Sequence[Point]) -> list[str]:
    """The names less what all begin or end with, such as the model's name and ``.gguf``."""
    names = [point.name for point in points]
    if len(names) > 1:
        first, last = _alike(names), _alike([name[::-1] for name in names])
        names = [name[first : len(name) - last] or name for name in names]
    return [_shown(name) for name in names]


def _alike(names: Sequence[str]) -> int:
    """How many characters of the names are alike, in whole parts."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    parts = _PARTS.match("".join(column[0] for column in columns))
    return len(parts.group()) if parts else 0


def _shown(name: str) -> str:
    return keep_end(visible(name, keep_spaces=True), _NAME)


def _words(points: Sequence[Point], drawn: Sequence[Point], named: int) -> Words:
    others = [f"{_shown(one.name)} ({_said(one)})" for one in points if one not in drawn]
    lines = ["On the line: no other candidate is both smaller and closer to the reference"]
    lines += [keep_start(f"Not drawn: {', '.join(others)}", _LINE_OF_TEXT)] if others else []
    lines += ["Names that find no room are left out"] if named < len(drawn) else []
    best = frontier(points)
    said = [
        f"{_shown(one.name)}{' *' if one in best else ''}: {one.bytes:,} bytes, {_said(one)}"
        for one in points
    ]
    what = f"Size on disk against KL of {count(len(points), 'candidate')}; * is on the line"
    return Words("kl-pareto", "Size against KL", lines, f"{what}. {'; '.join(said)}.")


def _said(point: Point) -> str:
    if point.kl is None:
        return "KL unknown"
    said = estimate(point.kl, point.low, point.high)
    return f"KL {said.number} ({said.interval})" if said.interval else f"KL {said.number}"
