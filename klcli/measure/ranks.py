"""Several processes that share one run: the ranks that torchrun starts.

Each rank scores every so manyth batch, and in the end all have the columns of all. What travels are
columns, which lie in the memory of the machine, so gloo carries them whatever the models run on.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from klcli.measure.evaluate import Evaluation, Gathered, ScoredBatch, Store
from klcli.text.windows import WindowTable

PATIENCE = timedelta(hours=24)
"""How long a rank waits for the slowest one; torchrun ends all of them when one dies."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is, counted from 0."""

    rank: int
    world: int

    @property
    def shard(self) -> tuple[int, int]:
        """Which share of the batches is this process'."""
        return self.rank + 1, self.world


def ranks() -> Ranks:
    """The place of this process among the ranks of torchrun, or the only one without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return Ranks(int(os.environ.get("RANK", "0")) if world > 1 else 0, world)


def wait_for_all() -> None:
    """Go on when every rank has come this far; the last thing that they do together."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


@dataclass(slots=True)
class Shared:
    """A ``Store`` that remembers what a rank has scored, to share it; ``kept`` may keep it too."""

    kept: Store | None
    batches: list[ScoredBatch] = field(default_factory=list)

    def finished(self) -> Iterator[ScoredBatch]:
        """What was kept before."""
        for batch in self.kept.finished() if self.kept is not None else ():
            self.batches.append(batch)
            yield batch

    def add(self, batch: ScoredBatch) -> None:
        """Remember one more batch."""
        self.batches.append(batch)
        if self.kept is not None:
            self.kept.add(batch)

    def gather(self, table: WindowTable, *, paired: bool, keep: int) -> Evaluation:
        """The evaluation of all ranks, the same on each of them."""
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        everybody: list[list[ScoredBatch]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everybody, self.batches)
        found = Gathered(table, paired=paired, keep=keep)
        for batches in everybody:
            for batch in batches:
                found.add(batch)
        return found.finish()
