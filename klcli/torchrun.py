"""What torchrun says of this process, by its environment; nothing else reads that.

torchrun starts several processes, the *ranks* of one run. Rank 0 shows results and progress.
"""

import os

from klcli.errors import UsageError


def world_size() -> int:
    """How many processes share a run: 1 without torchrun.

    Raises:
        UsageError: the environment does not give a number.
    """
    given = os.environ.get("WORLD_SIZE") or "1"
    if not given.isdecimal():
        raise UsageError(f"WORLD_SIZE is {given!r} in the environment: torchrun sets a number")
    return int(given)


def local_rank() -> str | None:
    """The number of this process among those of its machine; None without torchrun."""
    return os.environ.get("LOCAL_RANK")


def is_first_rank() -> bool:
    """Whether this process shows results and progress: of several ranks one does."""
    return os.environ.get("RANK", "0") == "0"


def rank_among_several() -> str | None:
    """The number of this process where there are several; None where it is alone."""
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return None if is_alone else os.environ.get("RANK")
