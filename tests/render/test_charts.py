"""Pictures: what they show, in which colours, and that no text in them does harm."""

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from xml.etree import ElementTree

import numpy as np
import pytest

from klcli.errors import KlcliError
from klcli.judge.report import Report
from klcli.judge.shape import along_of, distribution_of
from klcli.render import charts
from klcli.render.data import render_json
from klcli.render.drawing import DARK, LIGHT, PAGE, Theme, png_of
from klcli.render.pareto import Point, frontier, pareto
from klcli.render.pictures import render_png, render_svg
from tests.render.reports import (
    HOSTILE,
    compare_report,
    mean,
    one_slice,
    perplexity_report,
    tokens,
)

SVG = "{http://www.w3.org/2000/svg}"


def shaped(report: Report) -> Report:
    """A report with the distribution of its own tokens."""
    assert report.tokens is not None
    scores = report.tokens.scores
    return replace(report, distribution=distribution_of(scores), along=along_of(scores))


def of_kls(*kls: float) -> Report:
    """A comparison of tokens with these KLs."""
    some = tokens(["x"] * len(kls))
    some.scores["kl"][:] = kls
    return shaped(
        compare_report(tokens=some, counts={**compare_report().counts, "tokens": len(kls)})
    )


def points(*sizes_and_kls: tuple[int, float | None]) -> list[Point]:
    return [
        Point(name=f"quant-{number}.gguf", bytes=size, kl=kl)
        for number, (size, kl) in enumerate(sizes_and_kls)
    ]


COMPARED = shaped(compare_report())
SCORED = shaped(perplexity_report())
DRAWN: dict[str, Callable[[Theme], str]] = {
    "distribution": lambda theme: charts.distribution(COMPARED, theme),
    "distribution-nll": lambda theme: charts.distribution(SCORED, theme),
    "along": lambda theme: charts.along(COMPARED, theme),
    "along-nll": lambda theme: charts.along(SCORED, theme),
    "plane": lambda theme: charts.nll_plane(COMPARED, theme),
    "slices": lambda theme: charts.slices(COMPARED, "confidence", theme),
    "slices-nll": lambda theme: charts.slices(SCORED, "position", theme),
    "pareto": lambda theme: pareto(points((4, 0.1), (5, 0.01), (6, 0.02)), theme),
}
EVERY_PICTURE = pytest.mark.parametrize("name", DRAWN)


@cache
def drawn(name: str, theme: Theme) -> str:
    """A picture, drawn once for all tests."""
    return DRAWN[name](theme)


def text_of(svg: str) -> list[str]:
    """Every line of text that is drawn."""
    drawn = ElementTree.fromstring(svg).iter(f"{SVG}text")
    return [line for node in drawn for line in node.itertext()]


def described(svg: str) -> str:
    return ElementTree.fromstring(svg).findtext(f"{SVG}desc") or ""


@EVERY_PICTURE
def test_a_picture_is_one_image_with_a_name_and_a_description(name: str) -> None:
    root = ElementTree.fromstring(drawn(name, LIGHT))
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("role") == "img"
    assert title is not None
    assert title.text
    assert root.get("aria-labelledby") == title.get("id")
    assert description is not None
    assert root.get("aria-describedby") == description.get("id")
    assert re.search(r"\d", description.text or "")


@EVERY_PICTURE
def test_a_picture_asks_for_nothing_outside(name: str) -> None:
    svg = drawn(name, LIGHT)
    assert set(re.findall(r"https?://[^\"\s]+", svg)) == {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    assert not re.search(r"href=|url\(|@import|<script|<image|<style", svg)


@EVERY_PICTURE
def test_a_picture_has_the_colours_of_its_theme_alone(name: str) -> None:
    for theme in (LIGHT, PAGE):
        used = set(re.findall(r'(?:fill|stroke)="([^"]+)"', drawn(name, theme)))
        assert used <= {*asdict(theme).values(), "none", "transparent"}


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_as_accessibility_asks(theme: Theme) -> None:
    assert min(contrast(one, theme.ground) for one in (theme.ink, theme.muted, theme.mark)) >= 4.5
    assert contrast(theme.data, theme.ground) >= 3


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_a_page_sets_the_colours_by_its_own_variables() -> None:
    svg = drawn("distribution", PAGE)
    assert "var(--chart-ink, #1b1d21)" in svg
    assert not re.search(r'="#', svg)


def test_hostile_names_are_only_text() -> None:
    names = list(HOSTILE.values())
    sides = {
        "reference": {"source": HOSTILE["html"] + HOSTILE["ansi"]},
        "candidate": {"source": HOSTILE["bidi"] + HOSTILE["surrogate"]},
    }
    report = shaped(compare_report(models=sides))
    for svg in (
        charts.distribution(report),
        charts.nll_plane(report),
        pareto([Point(name=name, bytes=1 + i, kl=1 / (1 + i)) for i, name in enumerate(names)]),
    ):
        ElementTree.fromstring(svg)
        assert "script&gt;" in svg
        assert "<script" not in svg
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", svg)


def test_the_distribution_says_the_mean_its_interval_and_what_is_not_drawn() -> None:
    report = of_kls(0.0, 0.0, 0.01, 0.02, 1e-9, 200.0, math.inf)
    report = replace(
        report, metrics={**report.metrics, "kl": mean(0.272, ci_low=0.26, ci_high=0.284)}
    )
    svg = charts.distribution(report)
    shown, said = " ".join(text_of(svg)), described(svg)
    assert "KL(reference || candidate)" in shown
    for apart in (
        "Mean 0.272 nats (95 %: 0.260 to 0.284), 7 tokens",
        "2 tokens at 0",
        "1 token below 1e-08",
        "1 token above 100",
        "1 token at infinity",
    ):
        assert apart in shown
        assert apart in said


def test_the_histogram_has_a_bar_for_each_bin_that_holds_a_token() -> None:
    root = ElementTree.fromstring(charts.distribution(of_kls(0.011, 0.011, 0.2, 3.0)))
    bars = [
        path for group in root.iter(f"{SVG}g") if "mark-rect" in group.get("class", "")
        for path in group.iter(f"{SVG}path")
    ]  # fmt: skip
    heights = sorted(float(re.findall(r"v([\d.]+)h", bar.get("d", ""))[0]) for bar in bars)
    assert len(heights) == 3
    assert heights[2] == pytest.approx(2 * heights[0])
    assert heights[1] == pytest.approx(heights[0])


@pytest.mark.parametrize("kl", [0.0, math.inf, math.nan, 1e-12, 500.0])
def test_tokens_that_are_all_off_the_axis_still_make_a_picture(kl: float) -> None:
    report = of_kls(kl, kl)
    ElementTree.fromstring(charts.distribution(report))
    ElementTree.fromstring(charts.along(report))
    ElementTree.fromstring(charts.nll_plane(report))


def test_a_report_that_was_read_from_json_gives_the_same_pictures() -> None:
    stream = io.StringIO()
    render_json(COMPARED, stream)
    again = Report.from_dict(json.loads(stream.getvalue()))
    assert charts.distribution(again) == drawn("distribution", LIGHT)
    assert charts.along(again) == drawn("along", LIGHT)
    assert charts.slices(again, "kind") == charts.slices(COMPARED, "kind")


def test_pictures_that_need_what_a_report_does_not_have_say_so() -> None:
    old = compare_report(tokens=None, distribution=None, along=None)
    for draw in (charts.distribution, charts.along):
        with pytest.raises(KlcliError, match="did not keep what the picture shows"):
            draw(old)
    with pytest.raises(KlcliError, match="holds no single tokens"):
        charts.nll_plane(old)
    with pytest.raises(KlcliError, match="no slices by position"):
        charts.slices(old, "position")


def test_one_model_is_shown_by_its_nll() -> None:
    assert text_of(drawn("distribution-nll", LIGHT)).count("NLL of file.npz") == 1
    assert "NLL along the text" in text_of(drawn("along-nll", LIGHT))
    masked = replace(SCORED, protocol={"name": "masked"})
    assert "pseudo-NLL of file.npz" in text_of(charts.distribution(masked))


def test_each_slice_says_its_mean_its_tokens_and_its_share() -> None:
    rows = [
        one_slice("kind", "digits", 63, kl=0.5, share=0.25),
        one_slice("kind", "URL", 1, kl=math.inf, share=None),
    ]
    shown = text_of(charts.slices(compare_report(slices=rows), "kind"))
    assert "0.500 (63 tokens, 25% of all KL)" in shown
    assert "inf (1 token)" in shown


def test_the_frontier_is_what_no_other_beats_in_size_and_kl() -> None:
    random = np.random.default_rng(0)
    places = {(size, kl) for size, kl in random.integers(1, 9, (30, 2)).tolist()}
    beaten = {
        (size, kl)
        for size, kl in places
        for other, lower in places
        if other <= size and lower <= kl and (other, lower) != (size, kl)
    }
    best = frontier(points(*places))
    assert [(one.bytes, one.kl) for one in best] == sorted(places - beaten)


def test_a_candidate_that_is_the_same_ends_the_frontier() -> None:
    some = points((4, 0.1), (5, 0.0), (6, 0.05), (7, None))
    assert frontier(some) == some[:2]


def test_points_are_named_by_where_their_names_differ() -> None:
    shown = text_of(pareto([
        Point(name="model-7B-Q4_0.gguf", bytes=4_000_000_000, kl=0.1),
        Point(name="model-7B-Q8_0.gguf", bytes=8_000_000_000, kl=0.001),
    ]))  # fmt: skip
    assert {"Q4_0", "Q8_0"} <= set(shown)
    assert "size on disk, GB" in shown


def test_candidates_without_a_place_on_a_log_axis_are_named() -> None:
    svg = pareto(
        [
            *points((5, 0.1)),
            Point(name="same", bytes=9, kl=0.0),
            Point(name="gone", bytes=9, kl=None),
        ]
    )
    assert "Not drawn: same (KL 0), gone (KL unknown)" in text_of(svg)
    assert "same *: 9 bytes, KL 0" in described(svg)
    ElementTree.fromstring(pareto([]))


def test_twenty_names_lie_on_none_of_each_other() -> None:
    some = points(*((4_000 + 10 * i, 0.1 - 0.001 * i) for i in range(20)))
    assert "Names that find no room are left out" in text_of(pareto(some))


def test_png_is_a_picture_in_twice_the_size() -> None:
    svg = drawn("along", LIGHT)
    png = png_of(svg)
    width = float(ElementTree.fromstring(svg).get("width", 0))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(png[16:20], "big") == pytest.approx(2 * width, abs=2)


def test_files_hold_the_distribution() -> None:
    svg, png = io.BytesIO(), io.BytesIO()
    render_svg(COMPARED, svg)
    render_png(COMPARED, png)
    assert svg.getvalue().decode() == drawn("distribution", LIGHT)
    assert png.getvalue() == png_of(drawn("distribution", LIGHT))
