"""How a long run tells its caller where it stands."""

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]
"""Called with the tokens done so far and the tokens in all: before the first batch of those that
are left, and after each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a caller wants to hear; None for nothing.

    ``status`` is called with what is being done before tokens are scored, ``announce`` with what a
    user should know before a long run.
    """

    progress: Progress | None = None
    status: Callable[[str], None] | None = None
    announce: Callable[[str], None] | None = None

    def begin(self, what: str) -> None:
        """Say what is being done now."""
        if self.status is not None:
            self.status(what)

    def tell(self, what: str) -> None:
        """Say something that a user should know."""
        if self.announce is not None:
            self.announce(what)
