"""The loop: windows → rows of P and Q → TokenScores. Memory is flat but for the columns."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from klcli.choices import RowKind
from klcli.hooks import Progress
from klcli.measure.blocks import MeasuredBlock, block_of, measure
from klcli.measure.gathered import Evaluation, Gathered, ScoredBatch
from klcli.measure.scores import CONFIDENCE_EDGES, SIDES
from klcli.measure.shard import WHOLE, Shard
from klcli.sources import Source
from klcli.sources.rows import Rows, TensorRows
from klcli.text.windows import WindowTable, plan_batches


class Store(Protocol):
    """Where batches are kept as they are scored, so that a killed run can go on."""

    def finished(self) -> "Iterator[ScoredBatch]":
        """Every batch that is kept already."""
        ...

    def add(self, batch: "ScoredBatch") -> None:
        """Keep one more."""
        ...


Watch = Callable[[Sequence[int], ScoredBatch], bool]
"""Called after each batch with the numbers of its windows; the loop ends where it says True."""


def evaluate(
    table: WindowTable,
    sources: Sequence[Source],
    *,
    batch_tokens: int,
    vocabulary_size: int,
    per_bin: int | None = 10,
    progress: Progress | None = None,
    plan: Sequence[Sequence[int]] | None = None,
    shard: Shard = WHOLE,
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
        per_bin: of two sources the alternatives are kept of this many tokens with the largest KL
            among those of like confidence; None for all.
        progress: told before the first batch, and after every one.
        plan: the numbers of the windows of each batch; made of the table where it is not given.
        shard: which batches are scored.
        store: has batches that need not be scored again, and is given the others.
        watch: may end the loop early.
    """
    found = Gathered(table, paired=len(sources) == 2, per_bin=per_bin)
    plan = plan_batches(table.windows, batch_tokens) if plan is None else plan
    finished: set[int] = set()
    for batch in store.finished() if store is not None else ():
        finished.update(batch.batches)
        found.add(batch)
    own = shard.batches(len(plan))
    open_batches = [number for number in own if number not in finished]
    tokens = table.window_tokens
    done = sum(tokens[window] for number in finished for window in plan[number])
    total = sum(tokens[window] for number in own for window in plan[number])
    if progress is not None and open_batches:
        progress(done, total)
    for number, batch in zip(
        open_batches,
        _scored_batches(table, sources, [plan[n] for n in open_batches], vocabulary_size),
        strict=True,
    ):
        batch = replace(batch, batches=[number])
        found.add(batch)
        if store is not None:
            store.add(batch)
        done += len(batch.index)
        if progress is not None:
            progress(done, total)
        if watch is not None and watch(plan[number], batch):
            break
    return found.finish()


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
            measure(
                [block_of(rows, start, min(start + size, len(index)), width) for rows in sides],
                targets[start : start + size].long(),
                vocabulary_size,
            )
            for start in range(0, len(index), size)
        ]
        for source in sources:  # what was read of a file that changed is neither kept nor shown
            source.check_unchanged()
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
    index: npt.NDArray[np.int64], parts: Sequence[MeasuredBlock], kinds: dict[str, RowKind]
) -> ScoredBatch:
    columns = {
        name: np.concatenate([part.columns[name].numpy() for part in parts])
        for name in parts[0].columns
    }
    alternatives: dict[str, npt.NDArray[Any]] = {}
    if parts[0].tops:
        alternatives = {
            "index": index,
            "weight": np.nan_to_num(columns["kl"], nan=-np.inf),
            "bin": np.digitize(columns["confidence_reference"], CONFIDENCE_EDGES),
        }
    for side in parts[0].tops:
        ids, p = (np.concatenate([part.tops[side][i].numpy() for part in parts]) for i in (0, 1))
        alternatives[f"ids {side}"] = ids.astype(np.int32)
        alternatives[f"p {side}"] = p.astype(np.float32)
    return ScoredBatch(
        batches=(),
        index=index,
        columns=columns,
        alternatives=alternatives,
        padded_mass={
            side: max(part.padded_mass[side] for part in parts) for side in parts[0].padded_mass
        },
        kinds=kinds,
    )
