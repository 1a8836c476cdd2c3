"""What the compiled kernels give: columns of one side or two."""

from typing import NamedTuple

import torch
from torch import Tensor


class Predicted(NamedTuple):
    """What one model says at each row: (rows,), and (rows, 10) for the last two.

    In rows that are not ``usable`` numbers are NaN (0 in the last), ranks and ids -1. ``nll`` and
    ``rank`` are NaN and -1 as well where the target is not known. ``padded_mass`` is the
    probability of the ids from ``vocabulary_size`` on. ``top_ids`` are the most probable ids, best
    first, the lowest first on ties; there are fewer than ten of a smaller vocabulary.
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
