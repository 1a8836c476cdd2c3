"""Logit files: what comparing two of them takes against reading them and adding them up.

Two files of 2,048 rows of 49,152 float32 logits, which the machine has in its memory. The scoring
pass is held against `numpy.load(path).sum()` of both, the command against a Python process that
imports torch and does that.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bench.timing import KLCLI, Figure, figure, in_turns, ratio, run_process
from klcli.align import align
from klcli.measure.evaluate import evaluate
from klcli.sources.files.arrays import ArraySource, open_arrays
from klcli.sources.options import LoadOptions
from klcli.text.scope import Scope
from klcli.text.windows import WindowTable

ROWS, WIDTH = 2048, 49_152
BATCH_TOKENS = 2048
SPREAD, NOISE = 2.5, 0.5
"""Standard deviations of the reference's logits, and of how the candidate's differ from them."""
READ_AND_SUM = "import numpy, sys, torch; [numpy.load(path).sum() for path in sys.argv[1:]]"


def figures(scale: float = 1.0) -> Iterator[Figure]:
    """The scoring pass, and the whole process."""
    rows = max(16, round(ROWS * scale))
    with tempfile.TemporaryDirectory(prefix="klcli-bench-") as folder:
        paths = _write(Path(folder), rows)
        sources = [open_arrays(str(path), LoadOptions()) for path in paths]
        table = align(sources, [], Scope()).table
        what = f"two logit files of {rows} × {WIDTH}, float32"
        yield ratio(
            f"{what}: scoring pass ÷ reading and adding up",
            partial(_score, sources, table),
            partial(_read_and_sum, paths),
            goal=12,
        )
        times = in_turns(
            5,
            lambda: run_process(*KLCLI, "compare", *paths, "--quiet").seconds,
            lambda: run_process(sys.executable, "-c", READ_AND_SUM, *paths).seconds,
        )
        yield figure(
            f"{what}: klcli compare ÷ a process that imports torch, reads and adds up",
            [taken / bare for taken, bare in times],
            goal=2.5,
        )


def _write(folder: Path, rows: int) -> list[Path]:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((rows, WIDTH), dtype=np.float32) * np.float32(SPREAD)
    tokens = rng.integers(0, WIDTH, rows + 1)
    paths = [folder / "reference.npy", folder / "candidate.npy"]
    np.save(paths[0], logits)
    logits += rng.standard_normal((rows, WIDTH), dtype=np.float32) * np.float32(NOISE)
    np.save(paths[1], logits)
    for path in paths:
        np.save(path.with_suffix(".tokens.npy"), tokens)
    return paths


def _score(sources: Sequence[ArraySource], table: WindowTable) -> None:
    evaluate(table, sources, batch_tokens=BATCH_TOKENS, vocabulary_size=WIDTH)


def _read_and_sum(paths: Sequence[Path]) -> list[float]:
    return [float(np.load(path).sum()) for path in paths]
