"""Where a command may write: never over, in or around what it reads."""

import os
from collections.abc import Iterable
from pathlib import Path

from klcli.errors import UsageError


def check_apart(what: str, output: str, inputs: Iterable[str]) -> None:
    """Hold the place of an output against those of the inputs, wherever links lead.

    ``what`` is the option that names the output. An input that is not on this machine, such as a
    name of the Hub, is nowhere.

    Raises:
        UsageError: it is an input, lies in one, or has one in it.
    """
    target = Path(os.path.realpath(output))
    for given in inputs:
        if not os.path.exists(given):  # a Path raises where a name is too long
            continue
        place = Path(os.path.realpath(given))
        if target == place:
            raise UsageError(f"{what} {output} is an input of this run: choose another place")
        if place in target.parents:
            raise UsageError(
                f"{what} {output} lies in {given}, an input of this run: choose another place"
            )
        if target in place.parents:
            raise UsageError(
                f"{given}, an input of this run, lies in {what} {output}: choose another place"
            )


def obstacle_to(target: Path) -> str | None:
    """Why a file cannot be written, as far as can be seen without trying; None if nothing is."""
    folder = target.parent
    if target.is_dir():
        return "it is a folder"
    if not folder.is_dir():
        return f"there is no folder {folder}; make it first"
    if target.exists() and not os.access(target, os.W_OK):
        return "it is write-protected"
    if not is_special(target) and not os.access(folder, os.W_OK):
        return f"the folder {folder} is write-protected"
    return None


def is_special(path: Path) -> bool:
    """Whether it is a pipe or a device, which cannot be put in place by renaming."""
    return path.exists() and not path.is_file() and not path.is_dir()
