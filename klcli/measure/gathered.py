"""What the loop finds, gathered: batches in any order, to the columns of a whole table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from klcli.measure.scores import (
    CONFIDENCE_EDGES,
    SIDES,
    Alternatives,
    TokenScores,
    empty_columns,
)
from klcli.text.windows import WindowTable

if TYPE_CHECKING:
    from klcli.choices import RowKind


KEPT_ROWS = 4096
"""Tokens whose alternatives are kept, at the least, before the heaviest are chosen among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """What was measured of some batches of the plan.

    ``batches`` are their numbers; ``index`` (rows,) says which rows of TokenScores ``columns`` are
    about, and ``alternatives`` has columns about the tokens whose alternatives may be wanted.
    ``padded_mass`` and ``kinds`` are those of ``Evaluation``.
    """

    batches: Sequence[int]
    index: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[Any]]
    alternatives: Mapping[str, npt.NDArray[Any]]
    padded_mass: Mapping[str, float]
    kinds: "Mapping[str, RowKind]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the loop found.

    ``table`` has the windows that were scored: all, unless it is a shard or the loop ended early.
    ``padded_mass`` is, for each side, the largest probability that any row gave to ids without a
    token; ``kinds`` what the rows of each side were.
    """

    table: WindowTable
    scores: TokenScores
    alternatives: Alternatives
    padded_mass: dict[str, float]
    kinds: "dict[str, RowKind]"


class Gathered:
    """The columns of a table, filled batch by batch.

    Args:
        table: whose tokens they are about.
        paired: whether two sources are compared.
        per_bin: how many tokens of each bin of confidence have their alternatives kept: those with
            the largest KL; None for all.
    """

    def __init__(self, table: WindowTable, *, paired: bool, per_bin: int | None) -> None:
        self._table = table
        self._ends = np.cumsum(table.window_tokens)
        self._scored = np.zeros(len(table.windows), dtype=np.bool_)
        self._columns = empty_columns(table, paired=paired)
        self._heaviest = _Heaviest(per_bin)
        self._padded_mass: dict[str, float] = {}
        self._kinds: dict[str, RowKind] = {}

    def add(self, batch: ScoredBatch) -> None:
        """Take what was measured of some batches."""
        self._scored[np.searchsorted(self._ends, batch.index, side="right")] = True
        for name, values in batch.columns.items():
            self._columns.write(name, batch.index, values)
        for side, mass in batch.padded_mass.items():
            self._padded_mass[side] = max(self._padded_mass.get(side, 0.0), mass)
        self._kinds |= batch.kinds
        if batch.alternatives:
            self._heaviest.add(batch.alternatives)

    def finish(self) -> Evaluation:
        """The evaluation of the windows that were scored; the others have no rows in it."""
        table, columns, alternatives = self._table, self._columns, self._heaviest.finish()
        if not self._scored.all():
            windows = np.flatnonzero(self._scored).tolist()
            table = replace(table, windows=tuple(table.windows[number] for number in windows))
            rows = _rows_of(self._table, windows)
            columns = columns.only(table, windows, rows)
            index = np.searchsorted(rows, alternatives.index)
            alternatives = replace(alternatives, index=index)
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


class _Heaviest:
    """A running choice of the tokens whose alternatives are kept.

    The heaviest of each bin of confidence: whatever stands out later, over all or among its like,
    is one of them. Without a ``capacity`` all are kept.
    """

    def __init__(self, capacity: int | None) -> None:
        self._capacity = capacity
        self._parts: list[dict[str, npt.NDArray[Any]]] = []
        self._rows = 0

    def add(self, part: Mapping[str, npt.NDArray[Any]]) -> None:
        self._parts.append(dict(part))
        self._rows += len(part["index"])
        if self._capacity is None:
            return
        if self._rows > max(KEPT_ROWS, 2 * self._capacity * (len(CONFIDENCE_EDGES) + 1)):
            self._parts = [self._chosen()]
            self._rows = len(self._parts[0]["index"])

    def finish(self) -> Alternatives:
        nothing: dict[str, npt.NDArray[Any]] = {"index": np.empty(0, dtype=np.int64)}
        heaviest = self._chosen() if self._parts else nothing
        order = np.argsort(heaviest["index"])
        sides = [side for side in SIDES if f"ids {side}" in heaviest]
        return Alternatives(
            index=heaviest["index"][order],
            ids={side: heaviest[f"ids {side}"][order] for side in sides},
            probabilities={side: heaviest[f"p {side}"][order] for side in sides},
        )

    def _chosen(self) -> dict[str, npt.NDArray[Any]]:
        """The ``capacity`` heaviest rows of each bin."""
        joined = {name: np.concatenate([p[name] for p in self._parts]) for name in self._parts[0]}
        if self._capacity is None:
            return joined
        order = np.lexsort((-joined["weight"], joined["bin"]))
        first = np.searchsorted(joined["bin"][order], joined["bin"][order])
        rows = order[np.arange(len(order)) - first < self._capacity]
        return {name: values[rows] for name, values in joined.items()}


def gather(
    batches: Iterable[ScoredBatch], table: WindowTable, *, paired: bool, per_bin: int | None
) -> Evaluation:
    """The evaluation of what was scored of a table before, or elsewhere."""
    found = Gathered(table, paired=paired, per_bin=per_bin)
    for batch in batches:
        found.add(batch)
    return found.finish()
