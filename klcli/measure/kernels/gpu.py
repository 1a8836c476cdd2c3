"""Blocks of logits on a GPU: handed to the Triton kernels, one program a row."""

# mypy: disable-error-code="no-untyped-call"

from collections.abc import Sequence

import torch
from torch import Tensor

from klcli.measure.kernels.constants import TOP
from klcli.measure.kernels.gpu_rows import (
    COLUMNS,
    DIFFERENCES,
    SIDE,
    WARPS,
    compare_row,
    predict_row,
)
from klcli.measure.kernels.results import Measured, Predicted

LOAD_BYTES = 16
"""How much a thread reads at once."""


def measure_rows(
    logits: Sequence[Tensor], targets: Tensor, vocabulary_size: int, width: int
) -> Measured:
    """What ``dispatch.measure_rows`` says, of sides and targets on one GPU; found on the CPU.

    Args:
        logits: of each side, float32, bfloat16 or float16 (rows, at least ``width``).
        targets: the token that followed, int64 (rows,), below ``width``; negative where it is not
            known.
        vocabulary_size: ids from here on stand for no token.
        width: how many columns count.
    """
    sides = [(side if side.stride(1) == 1 else side.contiguous()).detach() for side in logits]
    names = DIFFERENCES if len(sides) == 2 else ()
    # Ids and ranks too, which float64 holds exactly: one copy brings everything to the CPU.
    length = len(sides) * SIDE.value + len(names)
    found = torch.empty((len(targets), length), dtype=torch.float64, device=targets.device)
    if len(targets):
        with torch.cuda.device_of(targets):
            (compare_row if names else predict_row)[(len(targets),)](
                *(part for side in sides for part in (side, side.stride(0))),
                targets,
                vocabulary_size,
                width,
                found,
                GROUP=LOAD_BYTES // max(side.itemsize for side in sides),
                ALIGNED=all(n % 16 == 0 for n in (width, *(side.stride(0) for side in sides))),
                num_warps=WARPS,
                enable_fp_fusion=True,
            )
    *parts, differences = found.cpu().split([SIDE.value] * len(sides) + [len(names)], dim=1)
    return Measured(
        sides=tuple(_predicted(part, min(TOP, width)) for part in parts),
        differences=dict(zip(names, differences.unbind(1), strict=True)),
    )


def _predicted(found: Tensor, count: int) -> Predicted:
    """One side out of what ``gpu_rows`` wrote: (rows, SIDE)."""
    numbers, ids, probabilities = found.split([len(COLUMNS), TOP, TOP], dim=1)
    columns = dict(zip(COLUMNS, numbers.unbind(1), strict=True))
    return Predicted(
        **columns
        | {
            "rank": columns["rank"].long(),
            "usable": columns["usable"].bool(),
            "top_ids": ids[:, :count].long(),
            "top_probabilities": probabilities[:, :count],
        }
    )
