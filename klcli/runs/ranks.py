"""Several processes that share one run: the ranks that torchrun starts.

Each of n ranks scores every n-th batch, and in the end all have the columns of all. What travels
are columns, which lie in the memory of the machine, so gloo carries them whatever models run on.

When a rank dies, torchrun ends the others with a signal. They keep what they have scored, and one
of them says what happened. Who that is, and who was the first to end, they find out in the store
by which torchrun brings them together.
"""

import contextlib
import hashlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from klcli import torchrun
from klcli.errors import KlcliError, RankError, UsageError
from klcli.measure.gathered import Evaluation, ScoredBatch, gather
from klcli.measure.shard import Shard
from klcli.runs.folder import RunFolder
from klcli.text.windows import WindowTable

Item = TypeVar("Item")

PATIENCE = timedelta(hours=24)
"""How long a rank waits for the slowest one while both live."""
JOINING = timedelta(minutes=5)
"""How long the ranks look for each other."""
SEARCH_SECONDS = 2.0
"""How long a rank looks for the one that ended first: torchrun takes a moment to bury it."""
PAUSE_SECONDS = 0.02

ENDED, FAILED = "ended", "failed"
"""What is on the board if a rank ended early, so that all shall, and which one failed by itself."""

_runs = itertools.count()


@contextlib.contextmanager
def joined_ranks(run: str | None) -> Iterator["Ranks"]:
    """Do something with the other ranks of torchrun, where there are any: all come to its end.

    ``run`` is the folder that the user keeps the run in, for the message.

    After an error the signal by which torchrun ends a rank stays unheard: the process has yet to
    say what happened, and is about to end.

    Raises:
        RankError: another rank ended early, or torchrun ended all of them. Of this and of any other
            error of several ranks ``said`` is false in one of them only.
        UsageError: the ranks do not find each other.
    """
    if torchrun.world_size() == 1:
        yield Ranks()
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world = next(rendezvous("env://", timeout=JOINING))
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            "WORLD_SIZE is set in the environment, but the ranks do not find each other "
            f"({' '.join(str(error).split())[:200]}): start klcli with torchrun, or unset it"
        ) from error
    ranks = Ranks(rank, world, _Board(PrefixStore(f"klcli/{next(_runs)}", store)))
    before = _handle_sigterm(_terminate)
    try:
        ranks.join()
        yield ranks
        ranks.meet()
    except BaseException as error:
        _handle_sigterm(signal.SIG_IGN)  # it is ending already, and still has to say so
        if isinstance(error, _Lost | _Terminated):
            raise ranks.ending(error, run) from None
        ranks.leave(failed=isinstance(error, Exception))
        if isinstance(error, KlcliError):
            error.said = not ranks.is_first_to_say(str(error))
        raise
    _handle_sigterm(before)
    ranks.disconnect()


class _Lost(Exception):
    """Another rank is not there any more."""


class _Terminated(BaseException):
    """torchrun ends this rank. Like KeyboardInterrupt it is nothing that a handler may swallow."""


def _terminate(_number: int, _frame: object) -> NoReturn:
    """End by an exception, so that what was scored is kept; once, for that takes a moment."""
    _handle_sigterm(signal.SIG_IGN)
    raise _Terminated


def _handle_sigterm(handler: Any) -> Any:
    """Have SIGTERM handled so, where Python lets us; returns how it was handled before."""
    if handler is None or threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler)


class Ranks:
    """One process and those that it shares a run with: number ``rank`` (from 0) of ``world``."""

    def __init__(self, rank: int = 0, world: int = 1, board: "_Board | None" = None) -> None:
        self.rank, self.world = rank, world
        self._board = board or _Board(None)
        self._group: Any = None
        self._processes: list[tuple[str, int]] = []

    @property
    def shard(self) -> Shard | None:
        """Which batches are this rank's; None if it is alone."""
        return Shard(self.rank + 1, self.world) if self.world > 1 else None

    @property
    def joins(self) -> bool:
        """Whether this rank keeps the whole run, beside its own part of it."""
        return self.world > 1 and self.rank == 0

    def folder(self, run: str) -> Path:
        """Where this rank keeps what it has scored; nobody else needs to see that folder."""
        return Path(f"{run}.rank-{self.rank}-of-{self.world}" if self.world > 1 else run)

    def join(self) -> None:
        """Connect to all other ranks, while none of them has begun."""
        import torch.distributed as dist

        with _losing():
            if dist.is_initialized():
                self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
            else:
                dist.init_process_group(
                    "gloo",
                    store=self._board.store,
                    rank=self.rank,
                    world_size=self.world,
                    timeout=PATIENCE,
                )
                self._group = dist.group.WORLD
        self._processes = self.exchange((socket.gethostname(), os.getpid()))

    def meet(self) -> None:
        """Wait until every rank has come this far. Signals are heard meanwhile.

        Raises:
            _Lost: one is not there any more.
        """
        import torch.distributed as dist

        with _losing():
            arrival = dist.barrier(self._group, async_op=True)
            while not arrival.is_completed():
                time.sleep(PAUSE_SECONDS)
            arrival.wait()

    def exchange(self, item: Item) -> list[Item]:
        """What every rank gave, in the order of their numbers."""
        import torch.distributed as dist

        everybody: list[Any] = [None] * self.world
        with _losing():
            dist.all_gather_object(everybody, item, group=self._group)
        return everybody

    def look(self) -> None:
        """Find out whether all are still there.

        Raises:
            _Lost: one ended early.
        """
        if self.world > 1 and (self._board.read(ENDED) is not None or self._board.store is None):
            raise _Lost

    def disconnect(self) -> None:
        """Close the connections, which all have used for the last time."""
        import torch.distributed as dist

        dist.destroy_process_group(self._group)

    def leave(self, *, failed: bool) -> None:
        """Tell the others that this rank ends early, and whether that is its own failure."""
        self._board.write(f"{ENDED} {self.rank}")
        if failed:
            self._board.write(FAILED, str(self.rank))
        self._board.write(ENDED)

    def is_first_to_say(self, message: str) -> bool:
        """Whether no other rank has said the same."""
        return self._board.count(hashlib.sha256(message.encode()).hexdigest()) == 1

    def ending(self, end: BaseException, run: str | None) -> RankError:
        """The error by which this rank ends since another one did."""
        self.leave(failed=False)
        what = self._first_end() or (
            "torchrun ended all ranks" if isinstance(end, _Terminated) else "a rank was lost"
        )
        error = RankError(
            f"{what}. What the ranks have scored is kept beside {run}: the same command goes on "
            "from there"
            if run is not None
            else f"{what}. Nothing is kept: with --run DIR the same command could go on"
        )
        error.said = not self.is_first_to_say(str(error))
        return error

    def _first_end(self) -> str | None:
        """Which rank ended first, as far as can be seen from here."""
        deadline = time.monotonic() + SEARCH_SECONDS
        while self._board.store is not None and time.monotonic() < deadline:
            if (failed := self._board.read(FAILED)) is not None:
                return f"rank {failed} failed"
            for rank, process in enumerate(self._processes):
                if _is_dead(*process) and self._board.read(f"{ENDED} {rank}") is None:
                    return f"rank {rank} died"
            time.sleep(PAUSE_SECONDS)
        return None


class _Board:
    """Where the ranks leave notes for each other, beside the columns.

    It lies in the store by which they found each other, and is gone (None) with the machine that
    has the store. Then it is left alone, for torch writes a page to stderr at every try.
    """

    def __init__(self, store: Any) -> None:
        self.store = store

    def write(self, name: str, note: str = "") -> None:
        """Leave a note for all."""
        self._ask("set", name, note)

    def read(self, name: str) -> str | None:
        """The note of that name, None without one."""
        note = self._ask("get", name) if self._ask("check", [name]) else None
        return None if note is None else str(note.decode())

    def count(self, name: str) -> int:
        """How many have counted that by now, with this one."""
        return int(self._ask("add", name, 1) or 1)

    def _ask(self, what: str, *given: Any) -> Any:
        if self.store is None:
            return None
        try:
            return getattr(self.store, what)(*given)
        except RuntimeError:
            self.store = None
            return None


@contextlib.contextmanager
def _losing() -> Iterator[None]:
    """torch.distributed raises RuntimeError where it does not reach another rank."""
    try:
        yield
    except RuntimeError as error:
        raise _Lost from error


def _is_dead(host: str, process: int) -> bool:
    """Whether a process of this machine is gone; of others that cannot be seen."""
    if host != socket.gethostname() or os.name == "nt":  # where signal 0 would be Ctrl-C
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's by now
        return False
    return False


@dataclass(slots=True)
class RankStore:
    """What this rank scores of a run: a ``Store`` of ``evaluate``; ``folder`` may keep it too."""

    ranks: Ranks
    folder: RunFolder | None
    batches: list[ScoredBatch] = field(default_factory=list)
    """Of several ranks: those of this one, and after ``gather`` those of all."""

    def finished(self) -> Iterator[ScoredBatch]:
        """What was kept before."""
        for batch in self.folder.finished() if self.folder is not None else ():
            self._remember(batch)
            yield batch

    def add(self, batch: ScoredBatch) -> None:
        """Take one more batch.

        Raises:
            _Lost: another rank ended early.
        """
        self._remember(batch)
        if self.folder is not None:
            self.folder.add(batch)
        self.ranks.look()

    def gather(self, own: Evaluation, table: WindowTable, *, per_bin: int | None) -> Evaluation:
        """The evaluation of all ranks, the same on each of them, where ``own`` is of this one."""
        if self.ranks.world == 1:
            return own
        if self.folder is not None:
            self.folder.flush()
        self.ranks.meet()
        everybody = self.ranks.exchange(self.batches)
        self.batches = [batch for batches in everybody for batch in batches]
        return gather(self.batches, table, paired=own.scores.paired, per_bin=per_bin)

    def _remember(self, batch: ScoredBatch) -> None:
        if self.ranks.world > 1:
            self.batches.append(batch)
