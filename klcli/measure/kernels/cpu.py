"""Blocks of logits on a CPU: handed to the compiled kernels, on as many threads as torch has."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klcli.measure.kernels.constants import TOP
from klcli.measure.kernels.cpu_columns import PairColumns, SideColumns
from klcli.measure.kernels.cpu_rows import compare_rows, predict_rows, widen
from klcli.measure.kernels.results import Measured, Predicted

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.uint16}
"""As what the kernels take logits that NumPy or Numba has no numbers for."""
DTYPES = (torch.float32, *BITS)
MIXED_ROWS = 16
"""How many rows of two dtypes are made float32 at once: a few, which the cache has."""


def measure_rows(
    logits: Sequence[Tensor], ids: npt.NDArray[np.int64], vocabulary_size: int, width: int
) -> Measured:
    """What ``dispatch.measure_rows`` says, of sides and targets (``ids``) on the CPU."""
    rows = len(ids)
    outputs = [_side_columns(rows, width) for _ in logits]
    pair = PairColumns(*(np.empty(rows) for _ in PairColumns._fields))
    mixed = len({side.dtype for side in logits}) > 1
    step = MIXED_ROWS if mixed else max(1, rows)

    def work(start: int, stop: int) -> None:
        for first in range(start, stop, step):
            part = slice(first, min(first + step, stop))
            flat = [_flat(side[part]) for side in logits]
            if mixed:
                flat = [_as_float32(*one, rows=len(ids[part]), width=width) for one in flat]
            rest = (ids[part], vocabulary_size, width, *(_rows(one, part) for one in outputs))
            if len(flat) == 1:
                predict_rows(*flat[0], *rest)
            else:
                compare_rows(*flat[0], *flat[1], *rest, _rows(pair, part))

    _share_out(work, rows)
    differences = dict(zip(PairColumns._fields, map(torch.from_numpy, pair), strict=True))
    return Measured(
        sides=tuple(Predicted(*map(torch.from_numpy, columns)) for columns in outputs),
        differences=differences if len(logits) == 2 else {},
    )


def _as_float32(
    values: npt.NDArray[Any], stride: int, *, rows: int, width: int
) -> tuple[npt.NDArray[np.float32], int]:
    """What ``_flat`` gives, in float32. PyTorch would start threads of its own in each of ours."""
    wide = np.empty((rows, width), np.float32)
    widen(values, stride, wide)
    return wide.reshape(-1), width


def _rows(columns: Any, part: slice) -> Any:
    """Where some of the rows go."""
    return columns._make(column[part] for column in columns)


def _flat(logits: Tensor) -> tuple[npt.NDArray[Any], int]:
    """The memory that some rows lie in as one flat array, and how far their beginnings are apart.

    That keeps the rows where they are even if there are gaps between them, and tells the compiler
    that a row has none.
    """
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    stride = logits.stride(0)
    length = (len(logits) - 1) * stride + logits.shape[1] if len(logits) else 0
    flat = logits.as_strided((length,), (1,))
    return flat.view(BITS.get(logits.dtype, logits.dtype)).numpy(), stride


def _side_columns(rows: int, width: int) -> SideColumns:
    top = (rows, min(TOP, width))
    return SideColumns(
        nll=np.empty(rows),
        rank=np.empty(rows, np.int64),
        entropy=np.empty(rows),
        confidence=np.empty(rows),
        padded_mass=np.empty(rows),
        usable=np.empty(rows, np.bool_),
        top_ids=np.empty(top, np.int64),
        top_probabilities=np.empty(top),
    )


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that stay; a forked process has none of its parent's, hence its number."""
    return ThreadPoolExecutor(threads, thread_name_prefix="klcli")


def _share_out(work: Callable[[int, int], None], rows: int) -> None:
    """Call ``work`` for ranges of rows, as many at once as PyTorch may use threads.

    Numba's own ``prange`` would bring a second OpenMP or pool that spins beside PyTorch's.
    """
    threads = min(torch.get_num_threads(), rows)
    if threads <= 1:
        work(0, rows)
        return
    borders = [rows * i // threads for i in range(threads + 1)]
    jobs = _pool(os.getpid(), torch.get_num_threads()).map(work, borders[:-1], borders[1:])
    for _ in jobs:
        pass
