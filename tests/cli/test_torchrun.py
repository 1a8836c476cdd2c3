"""The ranks of torchrun: they share a run, and where one ends early all do, with one message."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running import timeless

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL"),
]

TWO = ("--standalone", "--nproc-per-node", "2")
GUARD = 600
"""Seconds after which a test that waits is taken to hang."""
PROGRAM = """
import math, os, sys, time
from pathlib import Path
from klcli.errors import SourceError
from klcli.runs import folder as run, ranks
from klcli.runs.ranks import RankStore

place, what, *words = sys.argv[1:]
rank = os.environ.get("RANK", "0")
add = RankStore.add
run.PART_SECONDS = math.inf
if what.startswith("hold"):
    ranks.SEARCH_SECONDS = 600  # for a rank that is killed is found, sooner or later

def disturbed(self, batch):
    add(self, batch)
    if len(self.batches) == 12:
        Path(place, f"half-{rank}").write_text("all of its share")
    if len(self.batches) != 5 or not what.endswith((rank, "all")):
        return
    if what.startswith("fail"):
        raise SourceError("made up")
    Path(place, f"pid-{rank}").write_text(str(os.getpid()))
    time.sleep(3600)

RankStore.add = disturbed
from klcli.cli import main
main(words)
"""
"""klcli, where a rank, or ``all``, does what it is told at its fifth batch: it is to ``fail``, to
``wait`` for the end, or to ``hold`` until one of them is killed."""


class Torchrun:
    """Two ranks that run ``klcli`` with some words."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self._folder, self._words = folder, words
        (folder / "program.py").write_text(PROGRAM)

    @contextmanager
    def run(self, what: str = "") -> Iterator["subprocess.Popen[str]"]:
        """Have it running."""
        for old in self._folder.glob("pid-*"):
            old.unlink()
        launch = [sys.executable, "-m", "torch.distributed.run", *TWO, "--"]
        program = [str(self._folder / "program.py"), str(self._folder), what]
        with subprocess.Popen(
            [*launch, *program, *self._words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=dict(os.environ),
        ) as process:
            yield process

    def process_of(self, rank: int) -> int:
        """The process of a rank that waits, once it does."""
        return int(self.note(f"pid-{rank}"))

    def note(self, name: str) -> str:
        """What a rank writes into a file, once it has."""
        path, end = self._folder / name, time.monotonic() + GUARD
        while not (path.exists() and (text := path.read_text())):
            assert time.monotonic() < end
            time.sleep(0.01)
        return text


@pytest.fixture
def words(reference: Path, candidate: Path, corpus: Path) -> list[str]:
    """A comparison of 24 batches."""
    options = ("--context", "64", "--limit", "24", "--batch-tokens", "64", "--format", "json")
    return [str(one) for one in ("compare", reference, candidate, corpus, *options)]


def alone(words: list[str]) -> object:
    """The JSON of one process."""
    done = subprocess.run(
        [sys.executable, "-m", "klcli", *words],
        capture_output=True,
        check=True,
        env=dict(os.environ),
    )
    return timeless(done.stdout)


def said_by_klcli(err: str) -> list[str]:
    """What klcli said, of what torchrun and klcli did; of klcli there is no traceback."""
    assert "/klcli/" not in err
    return [line for line in err.splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("killed", [0, 1])
def test_after_the_kill_of_a_rank_the_same_command_goes_on_to_the_same_json(
    words: list[str], tmp_path: Path, killed: int
) -> None:
    run, output = tmp_path / "t.run", tmp_path / "t.json"
    torchrun = Torchrun(tmp_path, [*words, "--run", str(run), "--output", str(output)])
    with torchrun.run("hold all") as ranks:
        processes = [torchrun.process_of(rank) for rank in (0, 1)]
        os.kill(processes[killed], signal.SIGKILL)
        out, err = ranks.communicate(timeout=GUARD)
    assert (ranks.returncode, out) == (1, "")
    assert said_by_klcli(err) == [
        f"Error (rank {1 - killed}): rank {killed} died. What the ranks have scored is kept beside "
        f"{run}: the same command goes on from there"
    ]
    kept = tmp_path / f"t.run.rank-{1 - killed}-of-2"
    manifest = json.loads((kept / "manifest.json").read_text())
    assert (len(manifest["parts"]), manifest["complete"]) == (1, False)
    assert not run.exists()
    assert not output.exists()
    assert not list(tmp_path.rglob("*.tmp"))

    with torchrun.run() as ranks:
        out, err = ranks.communicate(timeout=GUARD)
    assert ranks.returncode == 0, err
    undisturbed = alone(words)
    assert timeless(out) == timeless(output.read_text()) == undisturbed
    assert alone(["report", str(run), "--format", "json"]) == undisturbed


def test_a_rank_that_waits_for_a_killed_one_ends_too(words: list[str], tmp_path: Path) -> None:
    torchrun = Torchrun(tmp_path, words)
    with torchrun.run("hold 1") as ranks:
        process = torchrun.process_of(1)
        torchrun.note("half-0")
        os.kill(process, signal.SIGKILL)
        out, err = ranks.communicate(timeout=GUARD)
    assert (ranks.returncode, out) == (1, "")
    assert said_by_klcli(err) == [
        "Error (rank 0): rank 1 died. Nothing is kept: with --run DIR the same command could go on"
    ]


def test_the_error_of_a_rank_is_said_with_its_number(words: list[str], tmp_path: Path) -> None:
    with Torchrun(tmp_path, words).run("fail 1") as ranks:
        out, err = ranks.communicate(timeout=GUARD)
    assert (ranks.returncode, out) == (1, "")
    first, *others = said_by_klcli(err)
    assert first == "Error (rank 1): made up"
    assert [line.split(".")[0] for line in others] == ["Error (rank 0): rank 1 failed"]


def test_an_error_of_all_ranks_is_said_once(words: list[str], tmp_path: Path) -> None:
    words[1] = str(tmp_path / "nothing")
    with Torchrun(tmp_path, words).run() as ranks:
        out, err = ranks.communicate(timeout=GUARD)
    assert (ranks.returncode, out) == (1, "")
    assert sum("no model at" in line for line in said_by_klcli(err)) == 1


def test_ranks_that_torchrun_ends_keep_what_they_have_scored(
    words: list[str], tmp_path: Path
) -> None:
    torchrun = Torchrun(tmp_path, [*words, "--run", str(tmp_path / "t.run")])
    with torchrun.run("wait all") as ranks:
        for rank in (0, 1):
            torchrun.process_of(rank)
        ranks.terminate()
        out, err = ranks.communicate(timeout=GUARD)
    assert (ranks.returncode != 0, out) == (True, "")
    (message,) = said_by_klcli(err)
    assert "torchrun ended all ranks. What the ranks have scored is kept beside" in message
    for rank in (0, 1):
        manifest = (tmp_path / f"t.run.rank-{rank}-of-2" / "manifest.json").read_text()
        assert len(json.loads(manifest)["parts"]) == 1
