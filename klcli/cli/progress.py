"""Progress on stderr: a bar where that is a terminal, else one line if a run takes long."""

import contextlib
import time
from collections.abc import Callable, Iterator

from klcli.cli.showing import safe, say


@contextlib.contextmanager
def progress_hooks(quiet: bool) -> Iterator[dict[str, Callable[..., None]]]:
    """Callbacks that draw a bar with the time left on stderr, where that is a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from klcli.render.terminal import StreamConsole

    console = StreamConsole(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[tokens]}", markup=False),
        TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("starting", total=None, tokens="")
        forecast = Forecast(None if quiet or console.is_terminal else say)

        def announce(what: str) -> None:
            if quiet:
                return
            if console.is_terminal:
                console.print(safe(what), markup=False)  # above the bar
            else:
                say(what)

        def progress(done: int, total: int) -> None:
            forecast.at(done, total)
            bar.update(
                task,
                description="scoring",
                completed=done,
                total=total,
                tokens=f"{done:,} of {total:,} tokens",
            )

        yield {
            "announce": announce,
            "status": lambda what: bar.update(task, description=safe(what)),
            "progress": progress,
        }


class Forecast:
    """Says once how long a run will take, where no bar can be drawn and it takes long."""

    AFTER, LONG = 5.0, 60.0  # seconds

    def __init__(self, show: Callable[[str], None] | None) -> None:
        self._show = show
        self._first: tuple[float, int] | None = None

    def at(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None or done <= self._first[1]:  # the first batch, also of a second pass
            self._first = (now, done)
            return
        begin, before = self._first
        if self._show is None or now - begin < self.AFTER:
            return
        left = (now - begin) / (done - before) * (total - done)
        if left > self.LONG:
            self._show(f"{done:,} of {total:,} tokens are scored, about {left / 60:.0f} min left")
        self._show = None
