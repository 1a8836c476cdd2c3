"""A headless Chromium, and the pages that tests open in it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.page import Page

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install it")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


@pytest.fixture
def opened(chromium: Any) -> Callable[[Path], Page]:
    """Open a page, and wait until its text is there."""

    def open_(path: Path) -> Page:
        return Page.opened(chromium, path)

    return open_


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which finds what keeps people from using a page."""
    folder = ROOT / "node_modules" / "axe-core"
    path = Path(os.environ.get("KLCLI_AXE", folder / "axe.min.js"))
    if not path.is_file():
        pytest.skip("no axe-core: npm install --no-save axe-core, or name axe.min.js in KLCLI_AXE")
    return path.read_text(encoding="utf-8")
