"""How pictures are drawn: themes, axes, and from a chart to static SVG and PNG.

Needs the extra ``html``, so import it only where a picture is wanted. Nothing is fetched: data,
fonts and schemas are all here. Text that is not ours must be ``visible`` before it comes here: Vega
escapes markup, but a control character would end the process.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import altair as alt
import vl_convert

WIDTH = 560
"""Of what lies between the axes, in pixels."""

Row = Mapping[str, Any]

_PNG_SCALE = 2
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_LABEL = "format(datum.value, datum.value < 0.001 ? '~e' : ',~r')"
_FEW_DECADES = 10**2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours as SVG takes them: of text, lesser text, lines, ground, data, and what is marked."""

    ink: str
    muted: str
    grid: str
    ground: str
    data: str
    mark: str


LIGHT = Theme(
    ink="#1b1d21", muted="#565b64", grid="#dfe2e7", ground="#ffffff", data="#2166ac", mark="#b2480e"
)
DARK = Theme(
    ink="#eceef1", muted="#aeb4be", grid="#3b4048", ground="#16181c", data="#6db3f2", mark="#f2a25c"
)
PAGE = Theme(
    **{name: f"var(--chart-{name}, {colour})" for name, colour in asdict(LIGHT).items()}
    | {"ground": "transparent"}
)
"""For a picture inside a page, which sets ``--chart-ink`` and so on. Not for PNG."""


class Words(NamedTuple):
    """What a picture is called in its file, what stands above it, and what it shows in words."""

    id: str
    title: str
    lines: Sequence[str]
    description: str


def chart_of(rows: Sequence[Row], height: int, width: int = WIDTH) -> alt.Chart:
    """A chart of rows of data, with no mark yet."""
    return alt.Chart(alt.InlineData(values=list(rows)), width=width, height=height)


def log_axis(low: float, high: float, **axis: Any) -> dict[str, Any]:
    """What makes a log axis of a channel: a tick a decade, and at 2 and 5 where there are few."""
    steps = (1, 2, 5) if high / low < _FEW_DECADES else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return {
        "scale": alt.Scale(type="log", domain=[low, high], nice=False),
        "axis": alt.Axis(
            values=[tick for tick in ticks if low <= tick <= high], labelExpr=_LABEL, **axis
        ),
    }


def svg_of(chart: alt.TopLevelMixin, words: Words, theme: Theme) -> str:
    """A chart under its title as static SVG, which says in words what it shows."""
    subtitle = {"subtitle": list(words.lines)} if words.lines else {}
    title = alt.TitleParams(words.title, **subtitle)
    spec = _themed(chart, theme).properties(title=title).to_dict()
    svg = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return _described(svg, words)


def png_of(svg: str) -> bytes:
    """A picture as PNG, in twice its size for dense screens. Not for the theme ``PAGE``."""
    return vl_convert.svg_to_png(svg, scale=_PNG_SCALE)


def _themed(chart: Any, theme: Theme) -> Any:
    axis = {
        "labelColor": theme.muted, "titleColor": theme.ink, "titleFontWeight": "normal",
        "gridColor": theme.grid, "domainColor": theme.muted, "tickColor": theme.muted,
        "labelFontSize": 11, "titleFontSize": 12, "titlePadding": 8, "labelLimit": 260,
    }  # fmt: skip
    title = {
        "anchor": "start", "frame": "group", "color": theme.ink, "fontSize": 15, "offset": 22,
        "fontWeight": 600, "subtitleColor": theme.muted, "subtitleFontSize": 12,
        "subtitlePadding": 6,
    }  # fmt: skip
    return chart.configure(
        font=_FONT, background=theme.ground, padding=14, axis=axis, title=title,
        view={"stroke": None}, text={"fontSize": 11}, aria=False,
    )  # fmt: skip


def _described(svg: str, words: Words) -> str:
    """The picture as one image with a name and a description, for who cannot see it."""
    title, description = f"{words.id}-title", f"{words.id}-description"
    opening = f'<svg role="img" aria-labelledby="{title}" aria-describedby="{description}" '
    said = (
        f'<title id="{title}">{escape(words.title)}</title>'
        f'<desc id="{description}">{escape(words.description)}</desc>'
    )
    svg = svg.replace("<svg ", opening, 1)
    return re.sub(r"(<svg [^>]*>)", lambda found: found.group(1) + said, svg, count=1)
