"""Measuring one block of rows: with a compiled kernel where one can read it, else in slices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from klcli.choices import RowKind
from klcli.measure.kernels import dispatch
from klcli.measure.kernels.exact import log_probabilities, mass_above
from klcli.measure.kernels.sides import Side, Whole, divergences, read_side
from klcli.measure.scores import BROKEN, SIDES, TOPS
from klcli.sources.rows import Rows, TopBlock

CPU_SLICE = 2**17
"""How many logits the kernel takes at once on a CPU, so that its temporaries stay in the cache."""
DEVICE_SLICE = 2**25
"""The same on a GPU, which wants more work at once."""


@dataclass(frozen=True, slots=True)
class Block:
    """The distributions of one source at some tokens."""

    content: Tensor | TopBlock
    kind: RowKind
    width: int

    def part(self, start: int, stop: int, device: torch.device) -> Tensor | TopBlock:
        """Some rows, cut to ``width``."""
        if isinstance(self.content, TopBlock):
            return TopBlock(*(tensor[start:stop].to(device) for tensor in self.content))
        return self.content[start:stop, : self.width].to(device)

    def cut_mass(self) -> float:
        """The largest probability that any row gives to the ids beyond ``width``."""
        if isinstance(self.content, TopBlock) or self.content.shape[-1] <= self.width:
            return 0.0
        if self.is_compiled:
            nowhere = torch.full((len(self.content),), -1)
            (side,) = dispatch.measure_rows(
                [self.content], nowhere, self.width, self.content.shape[-1]
            ).sides
            return _largest(side.padded_mass)
        rows = range(len(self.content))
        return max(
            _largest(mass_above(log_probabilities(self.content[i : i + 1]), self.width))
            for i in rows
        )

    @property
    def is_compiled(self) -> bool:
        """Whether a compiled kernel can read it."""
        whole = self.kind in ("logits", "log_probs") and isinstance(self.content, Tensor)
        return whole and dispatch.supports(cast("Tensor", self.content))

    @property
    def columns(self) -> int:
        """How many numbers there are to a row."""
        return self.content.ids.shape[-1] if isinstance(self.content, TopBlock) else self.width

    @property
    def device(self) -> torch.device:
        first = self.content.ids if isinstance(self.content, TopBlock) else self.content
        return first.device


def block_of(rows: Rows, start: int, stop: int, width: int) -> Block:
    """Rows ``start`` to ``stop``, which lie in one block of theirs."""
    return Block(rows.block(start, stop), rows.kind, width)


@dataclass(slots=True)
class MeasuredBlock:
    """One block, measured: columns (rows,), and ids and probabilities (rows, k) of each side."""

    columns: dict[str, Tensor]
    padded_mass: dict[str, float]
    tops: dict[str, tuple[Tensor, Tensor]]


@torch.inference_mode()
def measure(blocks: Sequence[Block], targets: Tensor, vocabulary_size: int) -> MeasuredBlock:
    """Measure the same rows of one side or two: with a compiled kernel, or in slices."""
    if all(block.is_compiled for block in blocks):
        return _measure_compiled(blocks, targets, vocabulary_size)
    device = dispatch.scoring_device([block.device for block in blocks])
    elements = CPU_SLICE if device.type == "cpu" else DEVICE_SLICE
    step = max(1, elements // max(block.columns for block in blocks))
    parts = [
        _measure_slice(
            [read_side(b.part(start, start + step, device), b.kind) for b in blocks],
            targets[start : start + step].to(device),
            vocabulary_size,
        )
        for start in range(0, len(targets), step)
    ]
    return MeasuredBlock(
        columns={name: _join(part.columns[name] for part in parts) for name in parts[0].columns},
        padded_mass={
            side: max(block.cut_mass(), *(part.padded_mass[side] for part in parts))
            for side, block in zip(SIDES, blocks, strict=False)
        },
        tops={
            side: (
                _join(part.tops[side][0] for part in parts),
                _join(part.tops[side][1] for part in parts),
            )
            for side in parts[0].tops
        },
    )


def _measure_compiled(
    blocks: Sequence[Block], targets: Tensor, vocabulary_size: int
) -> MeasuredBlock:
    contents = [cast("Tensor", block.content) for block in blocks]
    width = blocks[0].width
    found = dispatch.measure_rows(contents, targets, vocabulary_size, width)
    tops = {
        side: (one.top_ids, one.top_probabilities)
        for side, one in zip(SIDES, found.sides, strict=False)
    }
    return MeasuredBlock(
        columns=_without_excluded(found.columns(), [side.usable for side in found.sides]),
        padded_mass={
            side: max(block.cut_mass(), _largest(one.padded_mass))
            for side, block, one in zip(SIDES, blocks, found.sides, strict=False)
        },
        tops=tops if len(blocks) == 2 else {},
    )


def _measure_slice(sides: Sequence[Side], targets: Tensor, vocabulary_size: int) -> MeasuredBlock:
    named = dict(zip(SIDES, sides, strict=False))
    usable = [side.usable() for side in sides]
    targets = targets.to(usable[0].device)
    columns: dict[str, Tensor] = {}
    for name, side in named.items():
        suffix = f"_{name}" if len(sides) == 2 else ""
        columns |= {f"{c}{suffix}": values for c, values in side.predictions(targets).items()}
    if len(sides) == 2:
        columns |= divergences(sides[0], sides[1], targets)
    return MeasuredBlock(
        columns=_without_excluded(columns, usable),
        padded_mass={name: _padded_mass(side, vocabulary_size) for name, side in named.items()},
        tops={name: side.top() for name, side in named.items()} if len(sides) == 2 else {},
    )


def _padded_mass(side: Side, vocabulary_size: int) -> float:
    if not isinstance(side, Whole):
        return 0.0
    return _largest(mass_above(side.log_p, vocabulary_size))


def _largest(mass: Tensor) -> float:
    return float(mass.nan_to_num(0.0).max())


def _join(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.cpu() for part in parts])


def _without_excluded(columns: dict[str, Tensor], usable: Sequence[Tensor]) -> dict[str, Tensor]:
    """Columns with NaN or -1 where a row was no distribution, and the column that says so.

    ``usable`` (rows,) is of each side. ``BROKEN`` stands for the first choice of a side whose fault
    it is.
    """
    both = torch.stack(list(usable)).all(dim=0)
    cleaned = {
        name: torch.where(both, values, torch.nan if values.is_floating_point() else -1)
        for name, values in columns.items()
    }
    for top, own in zip(TOPS[len(usable)], usable, strict=True):
        cleaned[top] = torch.where(own, cleaned[top], BROKEN)
    return cleaned | {"excluded": ~both}
