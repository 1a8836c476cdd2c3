"""A report on a terminal, or in a pipe: the first screen, or with ``--details`` everything."""

from rich.console import Console

from klcli.judge.report import Report
from klcli.render import summary
from klcli.render.details import print_details
from klcli.render.layout import print_warnings
from klcli.render.screen import print_screen
from klcli.render.verdict import print_last_verdict, print_verdict
from klcli.render.view import DEFAULT_VIEW, View


class StreamConsole(Console):
    """A console that leaves it to its caller what a reader who has gone means."""

    def on_broken_pipe(self) -> None:
        """Go on with the error, where Rich would end the program with code 1."""
        raise BrokenPipeError


def render_terminal(report: Report, console: Console, view: View = DEFAULT_VIEW) -> None:
    """Print a report within the width of the console: its verdict first and last, and warnings.

    Raises:
        KlcliError: all tokens are asked of a report that was read from a file and holds none.
    """
    print_verdict(report, console)
    console.print()
    (print_details if view.details else print_screen)(report, console, view)
    print_last_verdict(report, console)


def render_warnings(report: Report, console: Console, view: View = DEFAULT_VIEW) -> None:
    """Print the warnings of a report by themselves, where its format goes to another stream."""
    print_warnings(summary.warnings(report, view), console)
