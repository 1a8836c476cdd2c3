"""By how much the numbers of a file may be off: they were rounded, and the file does not say how.

A server computes log-probabilities in float32 or less, and a program writes some of their digits.
The truth then lies within half a step of what is written, and nothing else is known of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rounding:
    """How some numbers were rounded.

    ``decimals`` are the places behind the point, ``digits`` the significant ones, and ``epsilon``
    is that of the format in which they were computed: half of it is lost when a number is rounded
    to the format, and half when it is written with the fewest digits that tell it from others.
    """

    decimals: int
    digits: int
    epsilon: float

    def error_of(self, values: Tensor) -> Tensor:
        """By how much each number may be off, float64 of the same shape; 0 for infinite ones."""
        finite = values.isfinite()
        size = torch.where(finite, values.abs(), 1.0).clamp(min=1e-300)
        by_digits = torch.pow(10.0, size.log10().floor() + 1 - self.digits)
        step = by_digits.clamp(min=10.0**-self.decimals)
        return torch.where(finite, step / 2 + self.epsilon * size.clamp(min=1.0), 0.0)


def rounding_of(values: Sequence[float]) -> Rounding:
    """How these numbers were rounded: by what the longest of them shows."""
    written = [_places(value) for value in values if np.isfinite(value)]
    return Rounding(
        decimals=max((decimals for decimals, _ in written), default=0),
        digits=max((digits for _, digits in written), default=1),
        epsilon=torch.finfo(_format_of(values)).eps,
    )


def _places(value: float) -> tuple[int, int]:
    """The decimal places and the significant digits of the shortest way to write a number."""
    _, digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    assert isinstance(exponent, int)
    return max(0, -exponent), len(digits)


def _format_of(values: Sequence[float]) -> torch.dtype:
    """The coarsest format that has all these numbers; float32 at least, as servers compute in."""
    exact = torch.tensor(values, dtype=torch.float64)
    if torch.equal(exact.bfloat16().double(), exact):
        return torch.bfloat16
    with np.errstate(over="ignore"):
        half = np.array(values).astype(np.float16)
    shown = all(
        value in (float(one), float(str(one))) for value, one in zip(values, half, strict=True)
    )
    return torch.float16 if shown else torch.float32
