"""Golden files: what a renderer is meant to write. ``KLCLI_ACCEPT=1 pytest`` takes new ones."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def check(name: str, text: str) -> None:
    """Hold ``text`` against the golden file of that name, or make it the new one."""
    path = FOLDER / name
    if os.environ.get("KLCLI_ACCEPT"):
        path.write_text(text, encoding="utf-8", newline="")
    assert path.is_file(), f"there is no {path}: KLCLI_ACCEPT=1 makes one"
    assert text == path.read_text(encoding="utf-8"), "KLCLI_ACCEPT=1 takes the new output"
