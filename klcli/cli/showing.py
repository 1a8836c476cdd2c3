"""Showing what a command found: stdout has the result, stderr all else."""

import contextlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

from klcli.choices import Format
from klcli.errors import ExitCode, OutputError
from klcli.storage.places import obstacle_to

if TYPE_CHECKING:
    from klcli.judge.report import Report
    from klcli.render.view import View


_PASSWORD = re.compile(r"(\w+://)[^/@\s]*@")


def safe(message: str) -> str:
    """A message quotes file names and text: no control character of theirs reaches a terminal."""
    from klcli.render.text import visible

    return visible(message, keep_spaces=True)


def typed(arguments: Sequence[str]) -> str:
    """The command as a user typed it, for a shell; passwords in addresses are left out."""
    return shlex.join(["klcli", *(_PASSWORD.sub(r"\1", one) for one in arguments)])


def verdict_code(verdict: str | None) -> ExitCode:
    """The exit code of a verdict; None where there are no gates."""
    codes = {"fail": ExitCode.GATE_FAILED, "inconclusive": ExitCode.GATE_INCONCLUSIVE}
    return codes.get(verdict or "", ExitCode.DONE)


def say(message: str) -> None:
    """A line on stderr; nothing where it cannot be written to, for the result comes first."""
    import click

    with sparing(sys.stderr):
        click.echo(safe(message), sys.stderr)


def print_warnings(report: "Report", view: "View") -> None:
    """Print the warnings of a report on stderr, if that can be written to."""
    from klcli.render.terminal import StreamConsole, render_warnings

    with sparing(sys.stderr):
        render_warnings(report, StreamConsole(stderr=True), view)


def print_report(report: "Report", format_: Format, view: "View") -> None:
    """Print a report on stdout. A reader who has gone is not an error.

    Raises:
        OutputError: stdout cannot be written to.
    """
    from klcli.render.formats import PRINTERS
    from klcli.render.terminal import StreamConsole, render_terminal

    if format_ == "github":
        _summarise_step(report, view)
    with onto_stdout():
        if format_ == "table":
            render_terminal(report, StreamConsole(), view)
        else:
            PRINTERS[format_](report, sys.stdout, view)


def check_summary(format_: Format) -> None:
    """Find out before the long work whether the summary of a step can be written, if one is.

    Raises:
        OutputError: its file cannot be written.
    """
    path = _step_summary()
    if format_ == "github" and path is not None and (obstacle := obstacle_to(path)):
        raise OutputError(f"cannot write the summary of the step to {path}: {obstacle}")


def _step_summary() -> Path | None:
    """The file for the summary of this step of GitHub Actions; None where this is none."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    return Path(path) if path else None


def _summarise_step(report: "Report", view: "View") -> None:
    """Add the report to the summary of the step, where this is a step of GitHub Actions.

    Raises:
        OutputError: the file of the summary cannot be written.
    """
    from klcli.render.github import append_step_summary

    path = _step_summary()
    if path is None:
        return
    try:
        has_room = append_step_summary(report, path, view)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write the summary of the step to {path}: {reason}") from error
    if not has_room:
        say("Warning: the summary of this step is full: GitHub takes 1 MiB")


def print_result(result: Any, format_: str, room: ModuleType) -> None:
    """Print what ``layers`` or ``rank`` found on stdout, as its ``room`` of ``render`` does.

    Raises:
        OutputError: stdout cannot be written to.
    """
    from klcli.render.terminal import StreamConsole
    from klcli.render.view import DEFAULT_VIEW

    with onto_stdout():
        if format_ == "table":
            room.render_terminal(result, StreamConsole())
        else:
            room.PRINTERS[format_](result, sys.stdout, DEFAULT_VIEW)


def open_page(report: "Report", view: "View") -> None:
    """Write a report as a page to a new file for temporary ones, and open it in a browser.

    Raises:
        OutputError: the page cannot be written, or there is no browser.
    """
    import webbrowser

    from klcli.render.files import write_outputs

    folder = Path(tempfile.mkdtemp(prefix="klcli-"))
    page = folder / "report.html"
    write_outputs(report, [str(page)], view)
    if not webbrowser.open(page.as_uri()):
        raise OutputError(f"no browser opens: open {page} yourself")


@contextlib.contextmanager
def onto_stdout() -> Iterator[None]:
    """What is printed in here reaches stdout. A reader who has gone is not an error.

    Raises:
        OutputError: stdout cannot be written to.
    """
    try:
        yield
        if sys.stdout is not None:  # closed before the start
            sys.stdout.flush()
    except BrokenPipeError:
        drop(sys.stdout)
    except OSError as error:
        drop(sys.stdout)
        raise OutputError(f"cannot write to stdout: {error.strerror or error}") from error


@contextlib.contextmanager
def sparing(stream: TextIO | None) -> Iterator[None]:
    """A stream that cannot be written to is not written to any more."""
    try:
        yield
        if stream is not None:
            stream.flush()
    except OSError:
        drop(stream)


def drop(stream: TextIO | None) -> None:
    """What is still in the buffer goes nowhere, or flushing it at exit would fail once more."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
