"""`klcli record`, killed by the system at any moment, goes on where it stopped."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

SERVER = """
import gc, json, os, sys
from transformers import AutoTokenizer, GPT2LMHeadModel
import klcli.api
from klcli.cli import main
from klcli.sources.recording import writer

writer.SHARD_BYTES = 2048
gc.freeze()
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        main(json.loads(line))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs ``klcli`` in a process of its own for each line, without loading torch anew for each."""


class Klcli:
    """A server of processes that run ``klcli``."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout

    def start(self, *arguments: str | Path | int) -> int:
        """Start a command; its process."""
        print(json.dumps([str(one) for one in arguments]), file=self._orders, flush=True)
        return int(self._answers.readline())

    def wait(self) -> int:
        """Wait for the command; its exit code, negative for a signal."""
        return int(self._answers.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[Klcli]:
    """A server that is ready."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        klcli = Klcli(process)
        klcli.start("--version")
        assert klcli.wait() == 0
        yield klcli
        assert process.stdin is not None
        process.stdin.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def shards_of(folder: Path) -> set[str]:
    """The shards that are there or being written."""
    return {name for name in (os.listdir(folder) if folder.exists() else ()) if "shard" in name}


def check_what_is_left(folder: Path) -> int:
    """All that the manifest names is there; the rows of it. Whole is only what has them all."""
    if not (folder / "manifest.json").exists():
        return 0
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = {f"shard-{n:05}.safetensors": one for n, one in enumerate(manifest["shards"])}
    for name, entry in (manifest["files"] | shards).items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"], name
    rows = sum(shard["rows"] for shard in manifest["shards"])
    assert manifest["complete"] is False or rows == manifest["rows"]
    return int(rows)


def run_until_there_is_a_new_shard(folder: Path, before: set[str], deadline: float) -> float:
    """Wait for it; how long that took."""
    begin = time.monotonic()
    while shards_of(folder) <= before:
        assert time.monotonic() - begin < deadline, "no shard was written"
        time.sleep(0.001)
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("kills", "windows"), [(3, 10), pytest.param(20, 40, marks=pytest.mark.slow)]
)
def test_a_recording_killed_again_and_again_is_that_of_an_undisturbed_run(
    server: Klcli, reference: Path, corpus: Path, tmp_path: Path, kills: int, windows: int
) -> None:
    command = ("record", reference, corpus, "--context", "64", "--limit", windows, "-o")
    whole, folder = tmp_path / "whole", tmp_path / "rec"
    server.start(*command, whole)
    to_first = run_until_there_is_a_new_shard(whole, set(), 60)
    begin = time.monotonic()
    assert server.wait() == 0
    to_last = time.monotonic() - begin
    chance, kept = random.Random(kills), [0]
    while len(kept) <= kills:
        before = shards_of(folder)
        child = server.start(*command, folder)
        if chance.random() < 0.3:  # before anything new is written
            time.sleep(chance.uniform(0, to_first))
        else:
            run_until_there_is_a_new_shard(folder, before, 60)
            time.sleep(chance.uniform(0, to_last / kills / 3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        assert server.wait() in (-signal.SIGKILL, 0)
        kept.append(check_what_is_left(folder))
        if kept[-1] == 64 * windows:  # a busy machine let it come to its end before the kill
            break
    assert kept == sorted(kept), "nothing recorded is lost"
    assert kept[-1] > 0
    server.start(*command, folder)
    assert server.wait() == 0
    assert files_of(folder) == files_of(whole)
