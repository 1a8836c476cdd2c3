"""The command line as a user runs it: arguments in, code and streams out."""

from collections.abc import Callable
from dataclasses import dataclass

Run = Callable[..., "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str
