"""What the ranks of one run tell each other when one of them ends early."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from klcli.errors import RankError, UsageError
from klcli.runs import ranks
from klcli.runs.ranks import Ranks, joined_ranks


class Store:
    """A store in memory, of which one end may be cut off."""

    def __init__(self) -> None:
        self.notes: dict[str, bytes] = {}
        self.counts: dict[str, int] = {}
        self.is_there = True

    def set(self, name: str, note: str) -> None:
        self._must_be_there()
        self.notes[name] = note.encode()

    def get(self, name: str) -> bytes:
        self._must_be_there()
        return self.notes[name]

    def check(self, names: list[str]) -> bool:
        self._must_be_there()
        return all(name in self.notes for name in names)

    def add(self, name: str, number: int) -> int:
        self._must_be_there()
        self.counts[name] = self.counts.get(name, 0) + number
        return self.counts[name]

    def _must_be_there(self) -> None:
        if not self.is_there:
            raise RuntimeError("Connection reset by peer")


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def three(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Ranks]:
    """Three ranks, all of which live in this process."""
    monkeypatch.setattr(ranks, "SEARCH_SECONDS", 0.05)
    everybody = [Ranks(rank, 3, ranks._Board(store)) for rank in range(3)]
    for one in everybody:
        one._processes = [(socket.gethostname(), os.getpid())] * 3
    return everybody


def a_dead_process() -> tuple[str, int]:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return socket.gethostname(), process.pid


def ending(one: Ranks, run: str | None = "a.run") -> RankError:
    return one.ending(ranks._Lost(), run)


def test_a_rank_that_failed_is_named(three: list[Ranks]) -> None:
    three[1].leave(failed=True)
    assert str(ending(three[0])).startswith("rank 1 failed. What the ranks have scored is kept")


def test_a_rank_whose_process_is_gone_is_named(three: list[Ranks]) -> None:
    three[0]._processes[2] = a_dead_process()
    assert str(ending(three[0])).startswith("rank 2 died.")


def test_a_rank_that_ended_because_of_another_is_not_named(three: list[Ranks]) -> None:
    three[0]._processes[1] = a_dead_process()
    three[1].leave(failed=False)
    assert str(ending(three[0])).startswith("a rank was lost.")


def test_a_process_of_another_machine_is_not_looked_for(three: list[Ranks]) -> None:
    three[0]._processes[1] = ("elsewhere", a_dead_process()[1])
    assert str(ending(three[0])).startswith("a rank was lost.")


def test_one_rank_says_it(three: list[Ranks]) -> None:
    three[1].leave(failed=True)
    assert [ending(three[rank]).said for rank in (2, 0)] == [False, True]


def test_what_is_not_kept_is_said(three: list[Ranks]) -> None:
    assert "Nothing is kept: with --run DIR" in str(ending(three[0], run=None))


def test_a_rank_goes_on_until_another_ends(three: list[Ranks]) -> None:
    three[0].look()
    three[1].leave(failed=False)
    with pytest.raises(ranks._Lost):
        three[0].look()


def test_without_the_machine_of_the_store_all_end(three: list[Ranks], store: Store) -> None:
    store.is_there = False
    with pytest.raises(ranks._Lost):
        three[1].look()
    error = ending(three[1])
    assert (str(error).split(".")[0], error.said) == ("a rank was lost", False)


def test_a_process_that_is_alone_shares_nothing() -> None:
    with joined_ranks("a.run") as alone:
        assert (alone.shard, alone.joins, alone.folder("a.run")) == (None, False, Path("a.run"))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("environment", "message"),
    [({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"), ({"WORLD_SIZE": "2"}, "RANK expected")],
)
def test_an_environment_of_another_launcher_is_a_usage_error(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message), joined_ranks(None):
        pass
