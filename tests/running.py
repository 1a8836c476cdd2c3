"""The command line as a user runs it: arguments in, code and streams out."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Run = Callable[..., "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def timeless(printed: str | bytes) -> dict[str, Any]:
    """A report as JSON, without how long the run took and the command that asked for it."""
    report: dict[str, Any] = json.loads(printed)
    del report["seconds"]
    report["environment"].pop("command_line", None)
    return report
