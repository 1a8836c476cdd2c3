"""A page in a browser, as tests use it."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

PATIENCE = 20.0
"""Seconds that a busy machine has to show something."""


@dataclass(frozen=True, slots=True)
class Page:
    """A report that is open in a browser."""

    browser: Any

    @classmethod
    def opened(cls, browser: Any, path: Path) -> Self:
        """Open the file of a page, with nothing in the logs of the browser."""
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(path.as_uri())
        page = cls(browser)
        if page.run("return document.getElementById('text') !== null"):
            page.wait("return 'ready' in document.documentElement.dataset")
        return page

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.browser.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> None:
        """Wait until a script returns something true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script, *arguments):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def element(self, selector: str) -> Any:
        """The first element of a CSS selector."""
        return self.browser.find_element("css selector", selector)

    def hover(self, element: Any) -> None:
        """Move the mouse onto an element."""
        from selenium.webdriver import ActionChains

        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.browser).move_to_element(element).perform()

    @property
    def panel(self) -> str:
        """What the panel says of a token."""
        return str(self.run("return document.getElementById('panel').innerText"))

    @property
    def focused(self) -> int | None:
        """The row of the token that has the focus."""
        row: int | None = self.run("return document.activeElement.row ?? null")
        return row

    def complaints(self) -> list[str]:
        """What the browser has logged."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address that was asked for."""
        messages = (
            json.loads(one["message"])["message"] for one in self.browser.get_log("performance")
        )
        return [
            one["params"]["request"]["url"]
            for one in messages
            if one["method"] == "Network.requestWillBeSent"
        ]
