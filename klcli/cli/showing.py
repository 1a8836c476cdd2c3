"""Showing what a command found: stdout has the result, stderr all else."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from klcli.choices import Format, LayersFormat
from klcli.errors import ExitCode, OutputError

if TYPE_CHECKING:
    from klcli.judge.layers import Layers
    from klcli.judge.report import Report
    from klcli.render.view import View


def safe(message: str) -> str:
    """A message quotes file names and text: no control character of theirs reaches a terminal."""
    from klcli.render.text import visible

    return visible(message, keep_spaces=True)


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


def _summarise_step(report: "Report", view: "View") -> None:
    """Add the report to the summary of the step, where this is a step of GitHub Actions.

    Raises:
        OutputError: the file of the summary cannot be written.
    """
    from klcli.render.github import append_step_summary

    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        has_room = append_step_summary(report, Path(path), view)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write the summary of the step to {path}: {reason}") from error
    if not has_room:
        say("Warning: the summary of this step is full: GitHub takes 1 MiB")


def print_layers(layers: "Layers", format_: LayersFormat) -> None:
    """Print what ``klcli layers`` found on stdout.

    Raises:
        OutputError: stdout cannot be written to.
    """
    from klcli.render.layers import PRINTERS, render_terminal
    from klcli.render.terminal import StreamConsole
    from klcli.render.view import DEFAULT_VIEW

    with onto_stdout():
        if format_ == "table":
            render_terminal(layers, StreamConsole())
        else:
            PRINTERS[format_](layers, sys.stdout, DEFAULT_VIEW)


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
