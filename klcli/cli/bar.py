"""The line of a terminal that says where a run stands; it is drawn anew ten times a second."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from klcli.cli.pace import Pace
from klcli.cli.showing import safe
from klcli.render.numbers import duration

ROOM = 100
"""Columns of a terminal in which a pace stands in words."""
LONG, SHORT = 80, 55
"""Columns that are left to the words and numbers of the line, with and without that room."""
LONGEST_BAR, SHORTEST_BAR = 40, 4


class Bar:
    """What is being done, a bar, and the pace; gone when the run is done."""

    def __init__(self, pace: Pace, console: Console) -> None:
        short = console.width < ROOM
        room = console.width - (SHORT if short else LONG)
        self._drawn = Progress(
            TextColumn("{task.description}", markup=False, table_column=_one_line()),
            BarColumn(max(SHORTEST_BAR, min(LONGEST_BAR, room))),
            _PaceColumn(pace, short=short),
            console=console,
            transient=True,
        )
        self._task = self._drawn.add_task("starting", total=None)

    def __enter__(self) -> "Bar":
        self._drawn.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drawn.stop()

    def wait(self, what: str) -> None:
        """Say what is being done while no token is scored."""
        self._replace(safe(what), total=None, done=0)

    def score(self, done: int, total: int) -> None:
        """Say how many tokens are done."""
        if self._drawn.tasks[0].total != total:
            self._replace("scoring", total=total, done=done)
        self._drawn.update(self._task, completed=done)

    def announce(self, what: str) -> None:
        """Say something that stays on the screen, above the line."""
        self._drawn.console.print(safe(what), markup=False)

    def _replace(self, what: str, *, total: int | None, done: int) -> None:
        """Begin a line of its own, for a task of Rich cannot lose its total again."""
        self._drawn.remove_task(self._task)
        self._task = self._drawn.add_task(what, total=total, completed=done)


class _PaceColumn(ProgressColumn):
    """The pace while tokens are scored, else for how long something has been going on."""

    def __init__(self, pace: Pace, *, short: bool) -> None:
        super().__init__(table_column=_one_line())
        self._pace, self._short = pace, short

    def render(self, task: Task) -> Text:
        """What Rich shows of a task."""
        if task.total is None:
            return Text(duration(task.elapsed or 0.0))
        return Text(self._pace.line(short=self._short))


def _one_line() -> Column:
    return Column(no_wrap=True, overflow="ellipsis")
