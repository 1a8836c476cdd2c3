"""Memory of the loop: its peak, less what a process has after loading and one forward pass.

Each measurement has a process of its own, which sets its peak back before the loop begins
(`/proc/self/clear_refs`, so on Linux only). Models have random weights, windows 2,048 tokens.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import subjects
from bench.causal import run_loop
from bench.timing import MEGABYTE, Figure, figure, run_process

CONTEXT, WINDOWS = 2048, 2
GOALS = {"SmolLM2-135M": 400, "V = 262,144": 600}
CLEAR = Path("/proc/self/clear_refs")


def figures(scale: float = 1.0) -> Iterator[Figure | str]:
    """Both commands, with a usual vocabulary and with a very large one."""
    if not CLEAR.exists():
        yield "memory of the loop: this system cannot set the peak of a process back"
        return
    context = max(32, round(CONTEXT * scale))
    for shape, goal in GOALS.items():
        for command in ("perplexity", "compare"):
            found = run_process(
                sys.executable, "-m", "bench.memory", shape, command, str(context)
            ).output
            added = json.loads(found) / MEGABYTE
            measure = f"memory of the loop, {command}, {shape}, context {context}, float32"
            yield figure(measure, [added], goal, unit="MB")


def _measure(shape: str, command: str, context: int) -> int:
    """Bytes that the loop adds in this process."""
    source = subjects.random_source(shape)
    sources = [source, source] if command == "compare" else [source]
    table = subjects.windows(sources, WINDOWS, context)
    ids = torch.tensor(table.windows[0].inputs).long()[None]
    with torch.inference_mode():
        source._model(input_ids=ids, use_cache=False)
    before = _status("VmRSS")
    CLEAR.write_text("5")
    run_loop(sources, table)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """Bytes of this process: resident now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    print(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3])))
