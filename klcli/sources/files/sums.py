"""Whether rows of probabilities, or of log-probabilities, are distributions: they sum to 1.

They cannot do so exactly in 16 bits. With the unit roundoff u of their type, n ids and the smallest
number s of the type, rounding changes a sum of probabilities by u + n·s/2 at most, and the
logarithm of a sum of e^(ln p) by u·ln n (each p becomes p^(1 ± u), and Σ p^(1-u) <= n^u).
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SUM_TOLERANCE = 1e-3
"""How far a sum may be from 1 whatever the type: sums of others are not exact either."""


class WrongSum(NamedTuple):
    """The first row that is not a distribution, and why."""

    row: int
    reason: str


def find_wrong_sum(values: Tensor, kind: Literal["probs", "log_probs"]) -> WrongSum | None:
    """The first row of (rows, ids) that does not sum to 1; None where each does.

    Log-probabilities with NaN or +inf are let through: such a row is left out, and counted, where
    it is measured.
    """
    tolerance = sum_tolerance(values.dtype, values.shape[-1], kind)
    if kind == "probs":
        exact = values.double()
        sums = exact.sum(dim=-1)
        wrong = ~((sums - 1).abs() <= tolerance) | (exact < 0).any(dim=-1)
    else:
        logs = values.to(torch.promote_types(values.dtype, torch.float32)).logsumexp(dim=-1)
        sums = logs.double().exp()
        wrong = (logs.abs() > tolerance) & values.amax(dim=-1).isfinite()
    if not bool(wrong.any()):
        return None
    row = int(wrong.nonzero()[0])
    return WrongSum(row, _reason(float(sums[row]), values, kind, tolerance))


def sum_tolerance(dtype: torch.dtype, ids: int, kind: Literal["probs", "log_probs"]) -> float:
    """How far a sum of ``ids`` probabilities, or its logarithm, may be from 1, or from 0."""
    limits = torch.finfo(dtype)
    unit = limits.eps / 2
    if kind == "log_probs":
        return SUM_TOLERANCE + unit * math.log(ids)
    return SUM_TOLERANCE + unit + ids * limits.smallest_normal * limits.eps / 2


def _reason(total: float, values: Tensor, kind: str, tolerance: float) -> str:
    dtype = str(values.dtype).removeprefix("torch.")
    allowed = f"{dtype} and {values.shape[-1]} ids allow 1 ± {tolerance:.2g}"
    if kind == "probs":
        return (
            f"is not a probability distribution: it sums to {total:.6g}, and {allowed}; save all "
            "ids of a softmax, or say what the numbers are with --values"
        )
    return (
        f"does not hold log-probabilities: e^x sums to {total:.6g}, and {allowed}; save natural "
        "logarithms of all ids (ln p, not -ln p), or say --values logits if they are logits"
    )
