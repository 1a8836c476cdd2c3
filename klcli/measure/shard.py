"""Shards: parts of a run that are scored apart, and joined later."""

import re
from typing import NamedTuple

from klcli.errors import UsageError


class Shard(NamedTuple):
    """Every ``of``-th batch of a run, from the ``number``-th on, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def batches(self, count: int) -> range:
        """Which of so many batches belong to it, counted from 0.

        Raises:
            UsageError: none does.
        """
        own = range(self.number - 1, count, self.of)
        if not own:
            raise UsageError(
                f"there are {count} batches for {self.of} shards or ranks: have fewer of them, or "
                "give a smaller --batch-tokens"
            )
        return own


WHOLE = Shard(1, 1)
"""The shard that is the whole run."""


def check_whole(shard: Shard) -> None:
    """Refuse to judge a part of a run: the tokens of the others may differ.

    Raises:
        UsageError: it is not the whole run.
    """
    if shard != WHOLE:
        raise UsageError(
            f"a shard of a run cannot be gated, nor be a baseline, and this is shard {shard}: join "
            "the shards with klcli merge, and judge the whole run"
        )


def parse_shard(text: str) -> Shard:
    """Parse "3/16", the third of sixteen.

    Raises:
        UsageError: it is not a shard.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of:
        raise UsageError(f"--shard {text!r}: write I/N, as in 3/16")
    return Shard(number, of)
