"""All columns of a block of rows at once, for logits of 32 or 16 bits: which kernel does it, where.

What ``exact`` says in float64, a function a column, the compiled kernels say in one go: kl,
kl_reverse and jsd to about 2e-6 of themselves, tv to 1e-5 (1e-3 where one row is the other, peaked
and shifted by a thousand), nll to 5e-7 nats, entropy to 1e-6. ``cpu`` has those of the CPU, ``gpu``
those of GPUs. Logits in float64, lists and llama.cpp's files stay with ``exact``, and so do GPUs on
which Triton does not run.
"""

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from klcli.measure.kernels import cpu
from klcli.measure.kernels.constants import TOP
from klcli.measure.kernels.results import Measured

WITHOUT_FLOAT64 = ("mps",)
"""Devices that share their memory with the CPU, so that a copy is cheap."""


def scoring_device(devices: Sequence[torch.device]) -> torch.device:
    """Where blocks that lie on these devices are measured: on the first that is not the CPU.

    But on the CPU where that device has no float64.
    """
    device = next((one for one in devices if one.type != "cpu"), devices[0])
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def supports(logits: Tensor) -> bool:
    """Whether there is a kernel for these logits where they are measured."""
    if logits.dtype not in cpu.DTYPES:
        return False
    device = scoring_device([logits.device])
    return device.type == "cpu" or (device.type == "cuda" and runs_triton(device, logits.dtype))


@cache
def runs_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton is there, compiles for this device, and finds the C compiler that it needs."""
    try:
        from klcli.measure.kernels import gpu

        row = torch.zeros(1, TOP, dtype=dtype, device=device)
        gpu.measure_rows([row], torch.zeros(1, dtype=torch.long, device=device), TOP, TOP)
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
        return cpu.measure_rows(sides, targets.numpy(), vocabulary_size, width)
    from klcli.measure.kernels import gpu  # which takes Triton, and that is not everywhere

    return gpu.measure_rows(sides, targets, vocabulary_size, width)


def _check(logits: Tensor, rows: int, width: int) -> None:
    if not supports(logits):
        raise TypeError(f"no kernel for logits of {logits.dtype} on {logits.device}")
    if logits.ndim != 2 or not 0 < width <= logits.shape[1]:
        raise ValueError(f"no {width} columns in logits of shape {tuple(logits.shape)}")
    if len(logits) != rows:
        raise ValueError(f"{len(logits)} rows have {rows} targets")
