"""Whatever becomes of stdout, stderr and the machine: one line, the right code, nothing lost."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from klcli.sources.hf import loading
from tests.running import Run

LONG = "a" * 300
"""A name that no file system takes."""


def shell(line: str, fixtures: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash; ``$K`` is klcli, ``$R`` and ``$C`` are two logit files."""
    logits = fixtures / "logits"
    names = f'K="{sys.executable} -m klcli" R="{logits}/reference.npz" C="{logits}/candidate.npz"\n'
    return subprocess.run(
        ["bash", "-c", names + line], capture_output=True, text=True, encoding="utf-8", check=False
    )


@pytest.mark.parametrize("command", ["--help", "inspect $R", "compare $R $C", "compare --help"])
def test_a_reader_who_leaves_is_not_an_error(fixtures: Path, command: str) -> None:
    done = shell(f"$K {command} 2>&1 | true; exit ${{PIPESTATUS[0]}}", fixtures)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["--help", "inspect $R", "compare $R $C"])
def test_a_full_stdout_is_said_in_one_line(fixtures: Path, command: str) -> None:
    done = shell(f"$K {command} --quiet >/dev/full".replace("--help --quiet", "--help")
                 .replace("inspect $R --quiet", "inspect $R"), fixtures)  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith("No space left on device")


def test_a_full_stderr_does_not_swallow_the_result(fixtures: Path) -> None:
    wanted = shell("$K compare $R $C --format csv", fixtures)
    done = shell("$K compare $R $C --format csv 2>/dev/full", fixtures)
    assert (done.returncode, done.stdout) == (0, wanted.stdout)
    assert done.stdout.count("\n") > 10


@pytest.mark.parametrize(
    ("line", "code"),
    [("compare $R $C --gate 'kl.mean<=0'", 3), ("compare $R nonsense", 1), ("compare $R", 2)],
)
def test_a_full_stderr_does_not_change_the_code(fixtures: Path, line: str, code: int) -> None:
    assert shell(f"$K {line} 2>/dev/full", fixtures).returncode == code


@pytest.mark.parametrize(
    "command",
    [
        f"compare {LONG} $C",
        f"compare $R {LONG}.npz",
        f"compare $R {LONG}.jsonl",
        f"compare $R {LONG}.kld",
        f"compare $R $C --output {LONG}.json",
        f"compare $R $C --run {LONG}",
        f"perplexity $R {LONG}",
        f"report {LONG}",
        f"merge {LONG} --run {LONG}2",
        f"inspect {LONG}",
        "inspect $R/inside",
        "report $R/inside",
        "compare $R $C --baseline $R/inside --gate 'kl.mean<=baseline'",
        "compare $R $C --output $R/inside/x.json",
        "compare $R $C --run $R/inside",
    ],
)
def test_a_path_that_cannot_be_is_one_error(
    klcli: Run, fixtures: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logits = fixtures / "logits"
    line = command.replace("'", "").replace("$R", str(logits / "reference.npz"))
    done = klcli(*line.replace("$C", str(logits / "candidate.npz")).split())
    assert done.code in (1, 2)
    assert "Error: " in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_memory_that_runs_out_comes_with_advice(
    klcli: Run, reference: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhausted(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(loading, "_load_weights", exhausted)
    done = klcli("perplexity", reference, corpus)
    assert done.code == 1
    assert "memory ran out" in done.err
    assert "--dtype bfloat16" in done.err


def test_ctrl_c_while_torch_is_loaded_exits_130(
    klcli: Run, reference: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "_load_weights", interrupted)
    done = klcli("perplexity", reference, corpus)
    assert (done.code, done.err.splitlines()[-1]) == (130, "Interrupted.")
