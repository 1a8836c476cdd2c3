"""The page of a report in a browser: what a reader sees and does."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

import klcli
from klcli.judge.report import Report
from klcli.render.html import render_html
from klcli.render.text import visible
from tests.browser.page import Page
from tests.render.reports import HOSTILE, gated_report, hostile_report, perplexity_report

pytest.importorskip("jinja2", reason="pages need klcli[html]")
pytest.importorskip("altair", reason="pages need klcli[html]")
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]

Open = Callable[[Path], Page]

NUMBER_OF = "return document.querySelectorAll(arguments[0]).length"
ESCAPE = "\ue00c"
ENTER = "\ue007"
RIGHT, DOWN = "\ue014", "\ue015"


def written(report: Report, path: Path) -> Path:
    stream = io.StringIO()
    render_html(report, stream)
    path.write_text(stream.getvalue(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[klcli.Report, Path]:
    """A comparison of two tiny models on two texts, and its page."""
    fixtures = Path(__file__).resolve().parents[2] / "fixtures"
    models = fixtures / "models"
    corpora = [fixtures / "corpus.txt", fixtures / "other.txt"]
    report = klcli.compare(
        models / "reference", models / "candidate", corpora, limit=16, keep_top="all", device="cpu"
    )
    return report, written(report, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def page(real: tuple[klcli.Report, Path], opened: Open) -> Page:
    """That page, just opened, at its text."""
    page = opened(real[1])
    to_text(page)
    return page


def to_text(page: Page) -> None:
    """Scroll to the text, of which only what is near is drawn."""
    page.run("document.getElementById('text-section').scrollIntoView()")
    page.wait("return document.querySelector('#text .t') !== null")


def test_every_scored_token_of_what_is_on_screen_is_there_with_a_name_and_a_colour(
    page: Page, real: tuple[klcli.Report, Path]
) -> None:
    assert page.run(NUMBER_OF, "#text h3") == 2
    shown = page.run("return [...document.querySelectorAll('#text .t')].map(t => t.textContent)")
    tokens = real[0].tokens
    assert tokens is not None
    first = [tokens.texts[one].replace("\n", "↵\n") for one in tokens.scores["token_id"][:50]]
    assert shown[:50] == first
    assert page.run(NUMBER_OF, "#text .w1, #text .w2, #text .w3") > 10


def test_a_token_under_the_mouse_shows_what_both_models_expected(page: Page) -> None:
    page.hover(page.element("#text .t:nth-child(9)"))
    assert "KL" in page.panel
    assert "reference" in page.panel
    assert page.run(NUMBER_OF, "#panel li") == 20
    assert page.run(NUMBER_OF, "#panel li.true") <= 2


def test_a_click_pins_a_token_and_escape_lets_it_go(page: Page) -> None:
    page.element("#text .t:nth-child(9)").click()
    pinned = page.panel
    assert page.run(NUMBER_OF, "#text .pinned") == 1
    page.hover(page.element("#text .t:nth-child(30)"))
    assert page.panel == pinned
    page.press(ESCAPE)
    assert page.run(NUMBER_OF, "#text .pinned") == 0
    page.hover(page.element("#text .t:nth-child(31)"))
    assert page.panel != pinned


def test_another_measure_recolours_the_text_and_the_legend(page: Page) -> None:
    classes = "return [...document.querySelectorAll('#text .t')].map(t => t.className).join()"
    before, legend = page.run(classes), page.element("#legend").text
    page.run(
        "const m = document.getElementById('measure'); m.value = 'delta_p';"
        "m.dispatchEvent(new Event('change'))"
    )
    assert page.run(classes) != before
    assert page.element("#legend").text != legend
    assert page.run(NUMBER_OF, "#text .b1, #text .b2, #text .b3, #text .b4") > 0
    assert "better" in page.element("#legend").text


def test_keys_lead_to_the_outliers_and_from_token_to_token(
    page: Page, real: tuple[klcli.Report, Path]
) -> None:
    tokens = real[0].tokens
    assert tokens is not None
    flagged = tokens.flagged.nonzero()[0].tolist()
    page.press("n")
    assert page.focused == flagged[0]
    page.press("n")
    assert page.focused == flagged[1]
    page.press("p")
    assert page.focused == flagged[0]
    page.press(RIGHT)
    assert page.focused == flagged[0] + 1
    page.press(DOWN)
    assert page.focused is not None
    assert page.focused > flagged[0] + 2
    assert page.run(NUMBER_OF, '#text [tabindex="0"]') == 1
    page.press(ENTER)
    assert page.run(NUMBER_OF, "#text .pinned") == 1


def test_keys_of_one_letter_can_be_turned_off(page: Page) -> None:
    page.run("document.getElementById('letters').checked = false")
    page.press("n")
    assert page.focused is None


def test_search_finds_what_lies_across_tokens_and_goes_on(page: Page) -> None:
    page.press("/")
    page.press("the cat")
    page.wait("return document.getElementById('matches').textContent.startsWith('1 of')")
    hits = page.run("return [...document.querySelectorAll('#text .hit')].map(t => t.textContent)")
    assert "the cat" in "".join(hits[:4]).lower()
    page.press(ENTER)
    assert page.element("#matches").text.startswith("2 of")
    page.press("zzzz")
    page.wait("return document.getElementById('matches').textContent === 'not found'")


def test_a_passage_leads_to_its_place_in_the_text(
    page: Page, real: tuple[klcli.Report, Path]
) -> None:
    page.run("document.querySelector('#passages + ol a').click()")
    assert page.focused == real[0].passages[0].index
    assert page.run(
        "const b = document.activeElement.getBoundingClientRect();"
        "return b.top >= 0 && b.bottom <= innerHeight"
    )


def test_nothing_leaves_the_page_and_the_browser_has_no_complaint(page: Page) -> None:
    page.press("n")
    page.run("dispatchEvent(new Event('beforeprint')); dispatchEvent(new Event('afterprint'))")
    assert all(one.startswith(("file:", "data:", "blob:")) for one in page.requests())
    assert page.complaints() == []


def test_hostile_text_shows_as_text(opened: Open, tmp_path: Path) -> None:
    page = opened(written(hostile_report(), tmp_path / "hostile.html"))
    to_text(page)
    shown = page.run("return [...document.querySelectorAll('#text .t')].map(t => t.textContent)")
    wanted = [
        "↵\n".join(visible(line, keep_spaces=True) for line in text.split("\n"))
        for text in HOSTILE.values()
    ]
    assert shown == wanted
    assert page.run(NUMBER_OF, "script:not([id])") == 1
    assert page.complaints() == []


def test_it_fits_a_phone(page: Page) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.run("return document.documentElement.scrollWidth") <= 360
        page.press("n")
        assert page.run(
            "const t = document.activeElement.getBoundingClientRect();"
            "return t.bottom <= document.getElementById('panel').getBoundingClientRect().top"
        )
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, axe: str, scheme: str) -> None:
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    page.press("n")
    assert serious(page, axe) == []


def test_axe_finds_nothing_serious_where_there_is_less(
    opened: Open, axe: str, tmp_path: Path
) -> None:
    for name, report in {
        "gates": gated_report(),
        "one model": perplexity_report(),
        "no tokens": Report.from_dict(gated_report().to_dict()),
    }.items():
        assert serious(opened(written(report, tmp_path / f"{name}.html")), axe) == [], name


def serious(page: Page, axe: str) -> list[str]:
    """What axe finds serious or critical, each with the first place where it is."""
    page.run(axe)
    found = page.browser.execute_async_script(
        "const done = arguments[0]; axe.run().then(found => done(found.violations))"
    )
    return [
        f"{one['id']}: {one['nodes'][0]['html']}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
