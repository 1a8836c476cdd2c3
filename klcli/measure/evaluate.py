"""The loop: windows → rows of P and Q → TokenScores. Memory is flat but for the columns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klcli.measure import divergence
from klcli.measure.scores import (
    CONFIDENCE_EDGES,
    SIDES,
    Alternatives,
    TokenScores,
    empty_scores,
)
from klcli.sources.rows import Rows
from klcli.text.windows import Window, WindowTable, plan_batches

TOP = 5
"""How many of the most probable tokens are compared (``overlap_5``) and shown."""

KEPT_SHARE = 0.01
CPU_SLICE = 2**17
"""How many logits the kernel takes at once on a CPU, so that its temporaries stay in the cache."""
DEVICE_SLICE = 2**25
"""The same on a GPU, which wants more work at once."""

Progress = Callable[[int, int], None]
"""Called with the tokens scored so far and the tokens in all."""


class Source(Protocol):
    """Whoever predicts: a live model, a file, a fake in a test."""

    name: str
    width: int

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        """One Rows for each batch: its windows' scored rows, one window after the other."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the loop found.

    ``padded_mass`` is, for each side, the largest probability that any row gave to ids without a
    token.
    """

    scores: TokenScores
    alternatives: Alternatives
    padded_mass: dict[str, float]


def evaluate(
    table: WindowTable,
    sources: Sequence[Source],
    *,
    batch_tokens: int,
    vocabulary_size: int,
    keep: int = 10,
    progress: Progress | None = None,
) -> Evaluation:
    """Score every token of a window table with one source, or compare two.

    Args:
        table: which tokens are scored, and with which context.
        sources: one, or the reference and the candidate. Where their widths differ the wider one's
            last ids are cut and the rest renormalised.
        batch_tokens: how many ids a model reads at once.
        vocabulary_size: ids from here on stand for no token.
        keep: the most probable tokens are kept of this many tokens with the largest KL (NLL for
            one source) among those of like confidence, or of 1 % of all where that is more.
        progress: told after every block.
    """
    paired = len(sources) == 2
    scores = empty_scores(table, paired=paired)
    kept = _Kept(max(keep, int(KEPT_SHARE * table.tokens)))
    padded_mass = dict.fromkeys(SIDES[: len(sources)], 0.0)
    width = min(source.width for source in sources)
    weight, confidence = ("kl", "confidence_reference") if paired else ("nll", "confidence")
    done = 0
    for index, blocks in _aligned_blocks(table, sources, batch_tokens, width):
        targets = torch.from_numpy(scores["token_id"][index].astype(np.int64))
        measured = _measure(blocks, targets, vocabulary_size)
        for name, values in measured.columns.items():
            scores[name][index] = values.numpy()
        for side, mass in measured.padded_mass.items():
            padded_mass[side] = max(padded_mass[side], mass)
        kept.add(index, scores[weight][index], scores[confidence][index], measured.tops)
        done += len(index)
        if progress is not None:
            progress(done, table.tokens)
    return Evaluation(scores=scores, alternatives=kept.finish(), padded_mass=padded_mass)


def _aligned_blocks(
    table: WindowTable, sources: Sequence[Source], batch_tokens: int, width: int
) -> Iterator[tuple[npt.NDArray[np.int64], list[Tensor]]]:
    """Logits of all sources for the same tokens, with the rows of TokenScores they fill."""
    plan = plan_batches(table.windows, batch_tokens)
    offsets = np.cumsum([0, *(len(window.targets) for window in table.windows)])
    batches = [[table.windows[number] for number in batch] for batch in plan]
    for batch, *sides in zip(plan, *(source.rows(batches) for source in sources), strict=True):
        index = np.concatenate([np.arange(offsets[n], offsets[n + 1]) for n in batch])
        size = min(rows.size for rows in sides)
        for start in range(0, len(index), size):
            stop = min(start + size, len(index))
            yield index[start:stop], [rows.block(start, stop)[:, :width] for rows in sides]


@dataclass(slots=True)
class _Measured:
    """One block, measured: columns (rows,), and ids and probabilities (rows, k) of each side."""

    columns: dict[str, Tensor]
    padded_mass: dict[str, float]
    tops: dict[str, tuple[Tensor, Tensor]]


@torch.inference_mode()
def _measure(blocks: Sequence[Tensor], targets: Tensor, vocabulary_size: int) -> _Measured:
    """Measure one block in slices that fit the cache."""
    device = blocks[0].device
    elements = CPU_SLICE if device.type == "cpu" else DEVICE_SLICE
    step = max(1, elements // blocks[0].shape[1])
    parts = [
        _measure_slice(
            [block[start : start + step].to(device) for block in blocks],
            targets[start : start + step].to(device),
            vocabulary_size,
        )
        for start in range(0, len(targets), step)
    ]
    return _Measured(
        columns={name: _join(part.columns[name] for part in parts) for name in parts[0].columns},
        padded_mass={
            side: max(part.padded_mass[side] for part in parts) for side in parts[0].padded_mass
        },
        tops={
            side: (
                _join(part.tops[side][0] for part in parts),
                _join(part.tops[side][1] for part in parts),
            )
            for side in parts[0].tops
        },
    )


def _join(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.cpu() for part in parts])


def _measure_slice(blocks: Sequence[Tensor], targets: Tensor, vocabulary_size: int) -> _Measured:
    sides = SIDES[: len(blocks)]
    logs = {
        side: divergence.log_probabilities(block) for side, block in zip(sides, blocks, strict=True)
    }
    targets = targets.to(logs["reference"].device)
    columns: dict[str, Tensor] = {}
    for side, log_p in logs.items():
        suffix = f"_{side}" if len(blocks) == 2 else ""
        for name, values in divergence.predictions(log_p, targets).items():
            columns[name + suffix] = values
    tops = {
        side: divergence.top_tokens(block, TOP).to(logs[side].device)
        for side, block in zip(sides, blocks, strict=True)
    }
    if len(blocks) == 2:
        columns |= divergence.divergences(logs["reference"], logs["candidate"], targets)
        columns["overlap_5"] = divergence.overlap(tops["reference"], tops["candidate"])
    usable = torch.stack([divergence.usable_rows(block) for block in blocks]).all(dim=0)
    return _Measured(
        columns=_without_excluded(columns, usable.to(targets.device)),
        padded_mass={
            side: float(divergence.mass_above(log_p, vocabulary_size).nan_to_num(0.0).max())
            for side, log_p in logs.items()
        },
        tops={side: (ids, logs[side].gather(-1, ids).exp()) for side, ids in tops.items()},
    )


def _without_excluded(columns: dict[str, Tensor], usable: Tensor) -> dict[str, Tensor]:
    """Columns with NaN where a row was no distribution, and the column that says so."""
    cleaned = {
        name: torch.where(usable, values, torch.nan) if values.is_floating_point() else values
        for name, values in columns.items()
    }
    return cleaned | {"excluded": ~usable}


class _Kept:
    """A running choice of the tokens whose alternatives are kept.

    The heaviest of each bin of confidence: whatever stands out later, over all or among its like,
    is one of them.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._index = np.empty(0, dtype=np.int64)
        self._weight = np.empty(0)
        self._bin = np.empty(0, dtype=np.int64)
        self._ids: dict[str, npt.NDArray[Any]] = {}
        self._probabilities: dict[str, npt.NDArray[Any]] = {}

    def add(
        self,
        index: npt.NDArray[np.int64],
        weight: npt.NDArray[np.float64],
        confidence: npt.NDArray[np.float64],
        tops: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        self._index = np.concatenate([self._index, index])
        self._weight = np.concatenate([self._weight, np.nan_to_num(weight, nan=-np.inf)])
        self._bin = np.concatenate([self._bin, np.digitize(confidence, CONFIDENCE_EDGES)])
        for side, (ids, probabilities) in tops.items():
            _append(self._ids, side, ids)
            _append(self._probabilities, side, probabilities)
        if len(self._index) > 2 * self._capacity * (len(CONFIDENCE_EDGES) + 1):
            self._select(self._heaviest())

    def finish(self) -> Alternatives:
        heaviest = self._heaviest()
        self._select(heaviest[np.argsort(self._index[heaviest])])
        return Alternatives(index=self._index, ids=self._ids, probabilities=self._probabilities)

    def _heaviest(self) -> npt.NDArray[np.int64]:
        """The ``capacity`` heaviest rows of each bin."""
        order = np.lexsort((-self._weight, self._bin))
        first = np.searchsorted(self._bin[order], self._bin[order])
        return order[np.arange(len(order)) - first < self._capacity]

    def _select(self, rows: npt.NDArray[np.int64]) -> None:
        self._index, self._weight = self._index[rows], self._weight[rows]
        self._bin = self._bin[rows]
        self._ids = {side: ids[rows] for side, ids in self._ids.items()}
        self._probabilities = {side: p[rows] for side, p in self._probabilities.items()}


def _append(arrays: dict[str, npt.NDArray[Any]], side: str, more: Tensor) -> None:
    arrays[side] = np.concatenate([arrays[side], more.numpy()]) if side in arrays else more.numpy()
