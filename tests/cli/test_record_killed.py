"""`klcli record`, killed by the system at any moment, goes on where it stopped."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

SERVER = """
import gc, itertools, json, os, signal, sys
from transformers import AutoTokenizer, GPT2LMHeadModel
import klcli.workflow
from klcli.cli import main
from klcli.sources.recording import writer

writer.SHARD_BYTES = 2048
gc.freeze()
for line in sys.stdin:
    words, last = json.loads(line)
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        steps = itertools.count()

        def step(*_):
            if next(steps) == last:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(step)
        try:
            main(words)
        finally:
            sys.setprofile(None)
            os.write(into, b"%d" % next(steps))
    os.close(into)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, int(os.read(out, 20) or last)]), flush=True)
    os.close(out)
"""
"""Runs ``klcli`` in a process of its own for each line, without loading torch anew for each.

A step is where a function of Python or C is called or returns. At the last that it is given the
system kills it: so a kill can be anywhere, and is at the same place every time.
"""


class Klcli:
    """A server of processes that run ``klcli``."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout

    def run(self, *arguments: str | Path | int, last: int | None = None) -> tuple[int, int]:
        """Run a command: its exit code, negative for a signal, and the steps that it took."""
        print(json.dumps([[str(one) for one in arguments], last]), file=self._orders, flush=True)
        code, steps = json.loads(self._answers.readline())
        return code, steps


@pytest.fixture(scope="module")
def server() -> Iterator[Klcli]:
    """A server that is ready."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        klcli = Klcli(process)
        assert klcli.run("--version")[0] == 0
        yield klcli
        assert process.stdin is not None
        process.stdin.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


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


@pytest.mark.parametrize(
    ("kills", "windows"), [(3, 10), pytest.param(20, 40, marks=pytest.mark.slow)]
)
def test_a_recording_killed_again_and_again_is_that_of_an_undisturbed_run(
    server: Klcli, reference: Path, corpus: Path, tmp_path: Path, kills: int, windows: int
) -> None:
    command = ("record", reference, corpus, "--context", "64")
    all_of_it = (*command, "--limit", windows, "-o")
    whole, folder = tmp_path / "whole", tmp_path / "rec"
    code, steps = server.run(*all_of_it, whole)
    to_begin = server.run(*command, "--limit", 1, "-o", tmp_path / "one window")[1]
    assert (code, to_begin < steps) == (0, True)
    chance, kept = random.Random(kills), [0]
    for _ in range(kills):
        if chance.random() < 0.3:  # before anything new is written
            last = chance.randrange(to_begin)
        else:
            last = to_begin + chance.randrange((steps - to_begin) // kills)
        assert server.run(*all_of_it, folder, last=last)[0] == -signal.SIGKILL
        kept.append(check_what_is_left(folder))
    assert kept == sorted(kept), "nothing recorded is lost"
    assert len(set(kept)) > kills / 3
    assert kept[-1] < 64 * windows
    assert server.run(*all_of_it, folder)[0] == 0
    assert files_of(folder) == files_of(whole)
