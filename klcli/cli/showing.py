"""Showing what a command found: stdout has the result, stderr all else."""

import os
import sys
from typing import TYPE_CHECKING

from klcli.choices import Format
from klcli.errors import ExitCode, OutputError

if TYPE_CHECKING:
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


def print_warnings(report: "Report", view: "View") -> None:
    """Print the warnings of a report on stderr."""
    from rich.console import Console

    from klcli.render.terminal import render_warnings

    render_warnings(report, Console(stderr=True), view)


def print_report(report: "Report", format_: Format, view: "View") -> None:
    """Print a report on stdout. A reader who has gone is not an error.

    Raises:
        OutputError: stdout cannot be written to.
    """
    from klcli.render.data import RENDERERS
    from klcli.render.terminal import StdoutConsole, render_terminal

    if sys.stdout is None:  # closed before the start
        return
    try:
        if format_ == "table":
            render_terminal(report, StdoutConsole(), view)
        else:
            RENDERERS[format_](report, sys.stdout, view)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    except OSError as error:
        _drop_stdout()
        raise OutputError(f"cannot write to stdout: {error.strerror or error}") from error


def _drop_stdout() -> None:
    """What is still in the buffer goes nowhere, or flushing it at exit would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
