"""The loop: windows → rows of P and Q → TokenScores. Memory is flat but for the columns."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klcli.errors import UsageError
from klcli.measure import fused
from klcli.measure.divergence import log_probabilities, mass_above
from klcli.measure.scores import (
    CONFIDENCE_EDGES,
    SIDES,
    Alternatives,
    TokenScores,
    empty_columns,
)
from klcli.measure.sides import Side, Whole, divergences, read_side
from klcli.sources.rows import RowKind, Rows, TensorRows, TopBlock
from klcli.text.windows import Window, WindowTable, plan_batches

KEPT_ROWS = 4096
"""Tokens whose alternatives are kept, at the least, before the heaviest are chosen among them."""
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
    device: torch.device

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        """One Rows for each batch: its windows' scored rows, one window after the other."""
        ...


class Store(Protocol):
    """Where batches are kept as they are scored, so that a killed run can go on."""

    def finished(self) -> "Iterator[ScoredBatch]":
        """Every batch that is kept already."""
        ...

    def add(self, batch: "ScoredBatch") -> None:
        """Keep one more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """What was measured of some batches of the plan.

    ``batches`` are their numbers; ``index`` (rows,) says which rows of TokenScores ``columns`` are
    about, and ``kept`` has the rows whose alternatives may be wanted. ``padded_mass`` and ``kinds``
    are those of ``Evaluation``.
    """

    batches: Sequence[int]
    index: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[Any]]
    kept: Mapping[str, npt.NDArray[Any]]
    padded_mass: Mapping[str, float]
    kinds: Mapping[str, RowKind]


Watch = Callable[[Sequence[int], ScoredBatch], bool]
"""Called after each batch with the numbers of its windows; the loop ends where it says True."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the loop found.

    ``table`` has the windows that were scored: all, unless the loop ended early. ``padded_mass``
    is, for each side, the largest probability that any row gave to ids without a token; ``kinds``
    what the rows of each side were.
    """

    table: WindowTable
    scores: TokenScores
    alternatives: Alternatives
    padded_mass: dict[str, float]
    kinds: dict[str, RowKind]


def evaluate(
    table: WindowTable,
    sources: Sequence[Source],
    *,
    batch_tokens: int,
    vocabulary_size: int,
    keep: int = 10,
    progress: Progress | None = None,
    plan: Sequence[Sequence[int]] | None = None,
    shard: tuple[int, int] = (1, 1),
    store: Store | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Score every token of a window table with one source, or compare two.

    Args:
        table: which tokens are scored, and with which context.
        sources: one, or the reference and the candidate. Where their widths differ the wider one's
            last ids are cut and the rest renormalised.
        batch_tokens: how many ids a model reads at once.
        vocabulary_size: ids from here on stand for no token.
        keep: of two sources the most probable tokens are kept of this many tokens with the largest
            KL among those of like confidence.
        progress: told after every batch.
        plan: the numbers of the windows of each batch; made of the table where it is not given.
        shard: (i, n) scores every n-th batch from the i-th on, counted from 1, and no other.
        store: has batches that need not be scored again, and is given the others.
        watch: may end the loop early.
    """
    found = Gathered(table, paired=len(sources) == 2, keep=keep)
    plan = plan_batches(table.windows, batch_tokens) if plan is None else plan
    finished: set[int] = set()
    for batch in store.finished() if store is not None else ():
        finished.update(batch.batches)
        found.add(batch)
    own = range(shard[0] - 1, len(plan), shard[1])
    if not own:
        raise UsageError(
            f"there are {len(plan)} batches for {shard[1]} shards or ranks: have fewer of them, or "
            "give a smaller --batch-tokens"
        )
    open_batches = [number for number in own if number not in finished]
    done = sum(len(table.windows[w].targets) for number in finished for w in plan[number])
    total = sum(len(table.windows[w].targets) for number in own for w in plan[number])
    scored: list[int] = []
    for number, batch in zip(
        open_batches,
        _scored_batches(table, sources, [plan[n] for n in open_batches], vocabulary_size),
        strict=True,
    ):
        batch = replace(batch, batches=[number])
        found.add(batch)
        scored += plan[number]
        if store is not None:
            store.add(batch)
        done += len(batch.index)
        if progress is not None:
            progress(done, total)
        if watch is not None and watch(plan[number], batch):
            return found.finish(sorted(scored))
    if shard[1] > 1:
        return found.finish(sorted(window for number in own for window in plan[number]))
    return found.finish()


class Gathered:
    """The columns of a table, filled batch by batch.

    Args:
        table: whose tokens they are about.
        paired: whether two sources are compared.
        keep: as in ``evaluate``.
    """

    def __init__(self, table: WindowTable, *, paired: bool, keep: int) -> None:
        self._table = table
        self._columns = empty_columns(table, paired=paired)
        self._kept = _Kept(keep)
        self._padded_mass: dict[str, float] = {}
        self._kinds: dict[str, RowKind] = {}

    def add(self, batch: ScoredBatch) -> None:
        """Take what was measured of some batches."""
        for name, values in batch.columns.items():
            self._columns.write(name, batch.index, values)
        for side, mass in batch.padded_mass.items():
            self._padded_mass[side] = max(self._padded_mass.get(side, 0.0), mass)
        self._kinds |= batch.kinds
        if batch.kept:
            self._kept.add(batch.kept)

    def finish(self, windows: Sequence[int] | None = None) -> Evaluation:
        """The evaluation of all windows, or of those with the given numbers."""
        table, columns, alternatives = self._table, self._columns, self._kept.finish()
        if windows is not None:
            table = replace(table, windows=tuple(table.windows[number] for number in windows))
            rows = _rows_of(self._table, windows)
            columns = columns.only(table, rows)
            kept = np.searchsorted(rows, alternatives.index)
            alternatives = replace(alternatives, index=kept)
        return Evaluation(
            table=table,
            scores=TokenScores(columns),
            alternatives=alternatives,
            padded_mass=self._padded_mass,
            kinds=self._kinds,
        )


def _rows_of(table: WindowTable, windows: Sequence[int]) -> npt.NDArray[np.int64]:
    """The rows of TokenScores that belong to some windows."""
    ends = np.cumsum([0, *table.window_tokens])
    return np.concatenate([np.arange(ends[number], ends[number + 1]) for number in windows])


@dataclass(frozen=True, slots=True)
class _Block:
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
        if self.is_fusible:
            nowhere = torch.full((len(self.content),), -1)
            (side,) = fused.measure_rows(
                [self.content], nowhere, self.width, self.content.shape[-1]
            ).sides
            return _largest(side.padded_mass)
        rows = range(len(self.content))
        return max(
            _largest(mass_above(log_probabilities(self.content[i : i + 1]), self.width))
            for i in rows
        )

    @property
    def is_fusible(self) -> bool:
        """Whether the compiled kernels can read it."""
        whole = self.kind in ("logits", "log_probs") and isinstance(self.content, Tensor)
        return whole and fused.supports(cast("Tensor", self.content))

    @property
    def columns(self) -> int:
        """How many numbers there are to a row."""
        return self.content.ids.shape[-1] if isinstance(self.content, TopBlock) else self.width

    @property
    def device(self) -> torch.device:
        first = self.content.ids if isinstance(self.content, TopBlock) else self.content
        return first.device


def _scored_batches(
    table: WindowTable,
    sources: Sequence[Source],
    plan: Sequence[Sequence[int]],
    vocabulary_size: int,
) -> Iterator[ScoredBatch]:
    """Read every batch of a plan, and measure it block by block."""
    width = min(source.width for source in sources)
    offsets = np.cumsum([0, *table.window_tokens])
    batches = [[table.windows[number] for number in batch] for batch in plan]
    rows: Iterator[tuple[Rows, ...]]
    rows = zip(*(source.rows(batches) for source in sources), strict=True)
    if any(source.device.type != "cpu" for source in sources):
        rows = _begun_early(rows)
    for batch, sides in zip(plan, rows, strict=True):
        index = np.concatenate([np.arange(offsets[n], offsets[n + 1]) for n in batch])
        targets = torch.from_numpy(np.concatenate([table.windows[n].targets for n in batch]))
        size = min(rows.size for rows in sides)
        parts = [
            _measure(
                [_block(rows, start, min(start + size, len(index)), width) for rows in sides],
                targets[start : start + size].long(),
                vocabulary_size,
            )
            for start in range(0, len(index), size)
        ]
        kinds = {side: rows.kind for side, rows in zip(SIDES, sides, strict=False)}
        yield _scored(index, parts, kinds)


def _begun_early(batches: Iterator[tuple[Rows, ...]]) -> Iterator[tuple[Rows, ...]]:
    """Each batch, once the next one has been begun.

    A device has work left while the CPU waits for its columns, and two models on devices of their
    own compute at the same time. Of a model whose logits are held whole there is one batch at a
    time: they are large.
    """
    begun: deque[tuple[Rows, ...]] = deque()
    for batch in batches:
        begun.append(batch)
        most = 0 if any(isinstance(rows, TensorRows) for rows in batch) else 1
        del batch
        while len(begun) > most:
            yield begun.popleft()
    yield from begun


def _scored(
    index: npt.NDArray[np.int64], parts: Sequence["_Measured"], kinds: dict[str, RowKind]
) -> ScoredBatch:
    columns = {
        name: np.concatenate([part.columns[name].numpy() for part in parts])
        for name in parts[0].columns
    }
    kept: dict[str, npt.NDArray[Any]] = {}
    if parts[0].tops:
        kept = {
            "index": index,
            "weight": np.nan_to_num(columns["kl"], nan=-np.inf),
            "bin": np.digitize(columns["confidence_reference"], CONFIDENCE_EDGES),
        }
    for side in parts[0].tops:
        kept[f"ids {side}"], kept[f"p {side}"] = (
            np.concatenate([part.tops[side][i].numpy() for part in parts]) for i in (0, 1)
        )
    return ScoredBatch(
        batches=(),
        index=index,
        columns=columns,
        kept=kept,
        padded_mass={
            side: max(part.padded_mass[side] for part in parts) for side in parts[0].padded_mass
        },
        kinds=kinds,
    )


def _block(rows: Rows, start: int, stop: int, width: int) -> _Block:
    return _Block(rows.block(start, stop), rows.kind, width)


@dataclass(slots=True)
class _Measured:
    """One block, measured: columns (rows,), and ids and probabilities (rows, k) of each side."""

    columns: dict[str, Tensor]
    padded_mass: dict[str, float]
    tops: dict[str, tuple[Tensor, Tensor]]


@torch.inference_mode()
def _measure(blocks: Sequence[_Block], targets: Tensor, vocabulary_size: int) -> _Measured:
    """Measure one block: with the compiled kernels where they can read it, else in slices."""
    if all(block.is_fusible for block in blocks):
        return _measure_fused(blocks, targets, vocabulary_size)
    device = fused.scoring_device([block.device for block in blocks])
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
    return _Measured(
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


def _measure_fused(blocks: Sequence[_Block], targets: Tensor, vocabulary_size: int) -> _Measured:
    contents = [cast("Tensor", block.content) for block in blocks]
    width = blocks[0].width
    found = fused.measure_rows(contents, targets, vocabulary_size, width)
    tops = {
        side: (one.top_ids, one.top_probabilities)
        for side, one in zip(SIDES, found.sides, strict=False)
    }
    return _Measured(
        columns=_without_excluded(found.columns(), found.usable()),
        padded_mass={
            side: max(block.cut_mass(), _largest(one.padded_mass))
            for side, block, one in zip(SIDES, blocks, found.sides, strict=False)
        },
        tops=tops if len(blocks) == 2 else {},
    )


def _largest(mass: Tensor) -> float:
    return float(mass.nan_to_num(0.0).max())


def _join(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.cpu() for part in parts])


def _measure_slice(sides: Sequence[Side], targets: Tensor, vocabulary_size: int) -> _Measured:
    named = dict(zip(SIDES, sides, strict=False))
    usable = torch.stack([side.usable() for side in sides]).all(dim=0)
    targets = targets.to(usable.device)
    columns: dict[str, Tensor] = {}
    for name, side in named.items():
        suffix = f"_{name}" if len(sides) == 2 else ""
        columns |= {f"{c}{suffix}": values for c, values in side.predictions(targets).items()}
    if len(sides) == 2:
        columns |= divergences(sides[0], sides[1], targets)
    return _Measured(
        columns=_without_excluded(columns, usable),
        padded_mass={name: _padded_mass(side, vocabulary_size) for name, side in named.items()},
        tops={name: side.top() for name, side in named.items()} if len(sides) == 2 else {},
    )


def _padded_mass(side: Side, vocabulary_size: int) -> float:
    if not isinstance(side, Whole):
        return 0.0
    return _largest(mass_above(side.log_p, vocabulary_size))


def _without_excluded(columns: dict[str, Tensor], usable: Tensor) -> dict[str, Tensor]:
    """Columns with NaN or -1 where a row was no distribution, and the column that says so."""
    cleaned = {
        name: torch.where(usable, values, torch.nan if values.is_floating_point() else -1)
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
        self._parts: list[dict[str, npt.NDArray[Any]]] = []
        self._rows = 0

    def add(self, part: Mapping[str, npt.NDArray[Any]]) -> None:
        self._parts.append(dict(part))
        self._rows += len(part["index"])
        if self._rows > max(KEPT_ROWS, 2 * self._capacity * (len(CONFIDENCE_EDGES) + 1)):
            self._parts = [self._heaviest()]
            self._rows = len(self._parts[0]["index"])

    def finish(self) -> Alternatives:
        nothing: dict[str, npt.NDArray[Any]] = {"index": np.empty(0, dtype=np.int64)}
        kept = self._heaviest() if self._parts else nothing
        order = np.argsort(kept["index"])
        sides = [side for side in SIDES if f"ids {side}" in kept]
        return Alternatives(
            index=kept["index"][order],
            ids={side: kept[f"ids {side}"][order] for side in sides},
            probabilities={side: kept[f"p {side}"][order] for side in sides},
        )

    def _heaviest(self) -> dict[str, npt.NDArray[Any]]:
        """The ``capacity`` heaviest rows of each bin."""
        joined = {name: np.concatenate([p[name] for p in self._parts]) for name in self._parts[0]}
        order = np.lexsort((-joined["weight"], joined["bin"]))
        first = np.searchsorted(joined["bin"][order], joined["bin"][order])
        rows = order[np.arange(len(order)) - first < self._capacity]
        return {name: values[rows] for name, values in joined.items()}
