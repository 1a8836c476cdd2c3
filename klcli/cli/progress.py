"""Progress on stderr: a line that is drawn anew on a terminal, else a line if a run takes long."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from klcli.cli.pace import Pace
from klcli.cli.showing import say

if TYPE_CHECKING:
    from klcli.render.terminal import StreamConsole


@contextlib.contextmanager
def progress_hooks(quiet: bool, noun: str = "tokens") -> Iterator[dict[str, Callable[..., None]]]:
    """Callbacks that tell on stderr where a run stands, and how long it took once it is done.

    ``noun`` is what is counted.
    """
    if quiet:
        yield dict.fromkeys(("progress", "status", "announce"), lambda *_: None)
        return
    from klcli.render.terminal import StreamConsole

    console, pace = StreamConsole(stderr=True), Pace(noun)
    with _drawn(pace, console) if console.is_terminal else _said(pace) as hooks:
        yield hooks
    if pace.tokens:
        say(pace.closing())


@contextlib.contextmanager
def _said(pace: Pace) -> Iterator[dict[str, Callable[..., None]]]:
    """Callbacks for where no line can be drawn anew."""
    forecast = Forecast(pace, say)

    def progress(done: int, total: int) -> None:
        pace.at(done, total)
        forecast.look()

    yield {"announce": say, "status": lambda _: None, "progress": progress}


class Forecast:
    """Says once how long a run will take, where it takes long."""

    AFTER, LONG = 5.0, 60.0  # seconds

    def __init__(self, pace: Pace, show: Callable[[str], None]) -> None:
        self._pace = pace
        self._show: Callable[[str], None] | None = show

    def look(self) -> None:
        """Say it, if it is time."""
        pace = self._pace
        left = pace.left
        if self._show is None or left is None or pace.elapsed < self.AFTER:
            return
        if left > self.LONG:
            self._show(
                f"{pace.done:,} of {pace.total:,} {pace.noun} done, about {left / 60:.0f} min left"
            )
        self._show = None


@contextlib.contextmanager
def _drawn(pace: Pace, console: "StreamConsole") -> Iterator[dict[str, Callable[..., None]]]:
    """Callbacks for a terminal: a line with what is being done, a bar and the pace."""
    from klcli.cli.bar import Bar

    with Bar(pace, console) as bar:

        def progress(done: int, total: int) -> None:
            pace.at(done, total)
            bar.score(done, total)

        yield {"announce": bar.announce, "status": bar.wait, "progress": progress}
