"""The command line: parse, call one function, show the result, exit. No arithmetic.

``main`` is the only place where an error becomes a message and an exit code. Nothing here imports
torch or transformers before a command needs them.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import click

from klcli import torchrun
from klcli.cli.commands import cli
from klcli.cli.showing import drop, say, sparing
from klcli.errors import ExitCode, KlcliError, in_one_line
from klcli.render.alphabet import MISSING

__all__ = ["cli", "main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit: the only place where an error becomes a message and a code."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of loaders; klcli has its own
    logging.disable(logging.WARNING)  # advice of libraries to developers
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console may lack a letter
            stream.reconfigure(errors=MISSING)
    code = _exit_code(arguments)
    with sparing(sys.stdout):
        pass  # it is flushed here, where a failure does not change the code
    sys.exit(code)


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        with in_one_line():
            return int(cli.main(arguments, prog_name="klcli", standalone_mode=False) or 0)
    except KlcliError as error:
        if not (error.said or (error.said is None and not torchrun.is_first_rank())):
            say(f"Error{_which_rank()}: {error}")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        if torchrun.is_first_rank():
            say("Interrupted.")
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        if torchrun.is_first_rank():
            with sparing(sys.stderr):
                error.show(sys.stderr)
        return error.exit_code
    except SystemExit:  # click ends so where the reader of its help has gone
        drop(sys.stdout)
        return ExitCode.DONE


def _which_rank() -> str:
    """Who makes an error, where there are several processes."""
    rank = torchrun.rank_among_several()
    return "" if rank is None else f" (rank {rank})"
