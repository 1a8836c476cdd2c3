"""All columns of a block of rows at once, for logits of 32 or 16 bits.

What ``klcli.measure.divergence`` says in float64, a function a column, the kernels say in one go:
kl, kl_reverse and jsd to about 2e-6 of themselves, tv to 1e-5 (1e-3 where one row is the other,
peaked and shifted by a thousand), nll to 5e-7 nats, entropy to 1e-6. ``fused_kernels`` has those of
the CPU, ``fused_triton`` those of GPUs. Logits in float64, lists and llama.cpp's files stay with
``divergence``, and so do GPUs on which Triton does not run.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klcli.measure.fused_kernels import (
    PairColumns,
    SideColumns,
    compare_rows,
    predict_rows,
    widen,
)

TOP = 5
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.uint16}
"""As what the kernels take logits that NumPy or Numba has no numbers for."""
DTYPES = (torch.float32, *BITS)
MIXED_ROWS = 16
"""How many rows of two dtypes are made float32 at once: a few, which the cache has."""
WITHOUT_FLOAT64 = ("mps",)
"""Devices that share their memory with the CPU, so that a copy is cheap."""


class Predicted(NamedTuple):
    """What one model says at each row: (rows,), and (rows, 5) for the last two.

    In rows that are not ``usable`` numbers are NaN (0 in the last), ranks and ids -1. ``nll`` and
    ``rank`` are NaN and -1 as well where the target is not known. ``padded_mass`` is the
    probability of the ids from ``vocabulary_size`` on. ``top_ids`` are the most probable ids, best
    first, the lowest first on ties; there are fewer than five of a smaller vocabulary.
    """

    nll: Tensor
    rank: Tensor
    entropy: Tensor
    confidence: Tensor
    padded_mass: Tensor
    usable: Tensor
    top_ids: Tensor
    top_probabilities: Tensor

    @property
    def top1(self) -> Tensor:
        """The most probable id, the lowest on ties."""
        return self.top_ids[:, 0]


class Measured(NamedTuple):
    """One side or two at some rows, and how two differ (rows,): NaN unless both are usable."""

    sides: tuple[Predicted, ...]
    differences: dict[str, Tensor]

    def usable(self) -> Tensor:
        """Which rows are distributions on every side."""
        return torch.stack([side.usable for side in self.sides]).all(dim=0)

    def columns(self) -> dict[str, Tensor]:
        """The measured columns of TokenScores, by name."""
        suffixes = ("_reference", "_candidate") if len(self.sides) == 2 else ("",)
        return self.differences | {
            f"{name}{suffix}": getattr(side, name)
            for suffix, side in zip(suffixes, self.sides, strict=True)
            for name in ("nll", "rank", "entropy", "top1", "confidence")
        }


def scoring_device(devices: Sequence[torch.device]) -> torch.device:
    """Where blocks that lie on these devices are measured: on the first that is not the CPU.

    But on the CPU where that device has no float64.
    """
    device = next((one for one in devices if one.type != "cpu"), devices[0])
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def supports(logits: Tensor) -> bool:
    """Whether there is a kernel for these logits where they are measured."""
    if logits.dtype not in DTYPES:
        return False
    device = scoring_device([logits.device])
    return device.type == "cpu" or (device.type == "cuda" and runs_triton(device, logits.dtype))


@cache
def runs_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton is there, compiles for this device, and finds the C compiler that it needs."""
    try:
        from klcli.measure import fused_triton

        row = torch.zeros(1, TOP, dtype=dtype, device=device)
        fused_triton.measure_rows([row], torch.zeros(1, dtype=torch.long, device=device), TOP, TOP)
    except ImportError:
        return False
    except Exception as error:  # compilers have many ways to fail; float64 says the same, slower
        warnings.warn(f"no Triton on {device}, float64 takes longer: {error!r}", stacklevel=2)
        return False
    return True


def measure_rows(
    logits: Sequence[Tensor], targets: Tensor, vocabulary_size: int, width: int
) -> Measured:
    """What one model says, or two say and how they differ.

    Args:
        logits: of each side, (rows, at least ``width``), for which ``supports`` holds.
        targets: the token that followed, int64 (rows,); negative where it is not known.
        vocabulary_size: ids from here on stand for no token.
        width: how many columns count; the others are as if they were not there.
    """
    for side in logits:
        _check(side, len(targets), width)
    if len(targets) and int(targets.max()) >= width:
        raise IndexError(f"a target is {int(targets.max())}, the rows have {width} ids")
    device = scoring_device([side.device for side in logits])
    sides = [side.detach()[:, :width].to(device) for side in logits]
    targets = targets.long().contiguous().to(device)
    if device.type == "cpu":
        return _measure_on_cpu(sides, targets.numpy(), vocabulary_size, width)
    from klcli.measure import fused_triton  # which takes Triton, and that is not everywhere

    return fused_triton.measure_rows(sides, targets, vocabulary_size, width)


def _check(logits: Tensor, rows: int, width: int) -> None:
    if not supports(logits):
        raise TypeError(f"no kernel for logits of {logits.dtype} on {logits.device}")
    if logits.ndim != 2 or not 0 < width <= logits.shape[1]:
        raise ValueError(f"no {width} columns in logits of shape {tuple(logits.shape)}")
    if len(logits) != rows:
        raise ValueError(f"{len(logits)} rows have {rows} targets")


def _measure_on_cpu(
    logits: Sequence[Tensor], ids: npt.NDArray[np.int64], vocabulary_size: int, width: int
) -> Measured:
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
