"""TokenScores: what was measured, one row a scored token."""

from collections.abc import Iterator, KeysView, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from klcli.measure.columns import Column, Columns
from klcli.text.windows import WindowTable

PLACE_COLUMNS: dict[str, type] = {
    "document": np.int32,
    "window": np.int32,
    "position": np.int64,
    "token_id": np.int32,
    "byte_start": np.int64,
    "byte_end": np.int64,
    "words": np.int32,
}
"""Where a token stands. ``token_id`` is -1 where it is not known; bytes of the text, and ``words``
that begin in the token, are -1 where the text is not known."""

EXCLUDED: dict[str, type] = {"excluded": np.bool_}
"""Whether a row held NaN or +inf, so that nothing about this token counts."""

PREDICTION_COLUMNS: dict[str, type] = {
    "nll": np.float64,
    "rank": np.int32,
    "entropy": np.float64,
    "top1": np.int32,
    "confidence": np.float64,
}
"""What one model says of a token; in a comparison once for each side, as ``nll_reference`` …"""

DIVERGENCE_COLUMNS: dict[str, type] = {
    "kl": np.float64,
    "kl_reverse": np.float64,
    "jsd": np.float64,
    "tv": np.float64,
    "nll_difference": np.float64,
    "delta_p": np.float64,
    "overlap_5": np.float64,
}
"""How the two sides of a comparison differ at a token."""

CONFIDENCE_EDGES = (0.25, 0.5, 0.75, 0.95)
"""Where bins of ``confidence`` end: tokens of one bin are held against each other."""

SIDES = ("reference", "candidate")
TOPS = {1: ("top1",), 2: ("top1_reference", "top1_candidate")}
"""The columns of the most probable ids, by how many sides there are."""
BROKEN = -2
"""Stands in them where a row of that side held NaN or +inf."""


def score_columns(*, paired: bool) -> dict[str, type]:
    """Every column of a comparison (``paired``) or of one model, with its type."""
    if not paired:
        return PLACE_COLUMNS | EXCLUDED | PREDICTION_COLUMNS
    sides = {f"{name}_{side}": t for side in SIDES for name, t in PREDICTION_COLUMNS.items()}
    return PLACE_COLUMNS | EXCLUDED | DIVERGENCE_COLUMNS | sides


BLOCK = 2**16
"""Tokens that are worked on at once, so that what is made of long columns stays small."""


def blocks(tokens: int) -> Iterator[tuple[int, int]]:
    """Every ``BLOCK`` tokens of so many: the first, and the one behind the last."""
    for start in range(0, tokens, BLOCK):
        yield start, min(start + BLOCK, tokens)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Equal-length columns, one row a scored token, in reading order.

    Whole columns of a long text are large: ``blocks`` gives some rows of all at a time.
    """

    columns: Mapping[str, Column]

    def __repr__(self) -> str:
        return f"<TokenScores of {len(self):,} tokens: {', '.join(self.columns)}>"

    def __len__(self) -> int:
        return self.columns.tokens if isinstance(self.columns, Columns) else len(self["token_id"])

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def keys(self) -> KeysView[str]:
        """The names of the columns, so that ``dict(scores)`` has them; ``len`` is that of each."""
        return self.columns.keys()

    def part(self, name: str, start: int, stop: int) -> Column:
        """Rows ``start`` to ``stop`` of a column; cheap where columns are kept in a file."""
        if isinstance(self.columns, Columns):
            return self.columns.part(name, start, stop)
        return self.columns[name][start:stop]

    def blocks(self) -> Iterator[tuple[slice, "TokenScores"]]:
        """Some rows after the other: where they stand, and their scores."""
        for start, stop in blocks(len(self)):
            yield slice(start, stop), TokenScores(_Part(self, start, stop))

    @property
    def paired(self) -> bool:
        """Whether two models were compared."""
        return "kl" in self.columns


@dataclass(frozen=True, slots=True)
class _Part(Mapping[str, Column]):
    """Some rows of scores, read when they are asked for."""

    scores: TokenScores
    start: int
    stop: int

    def __getitem__(self, name: str) -> Column:
        return self.scores.part(name, self.start, self.stop)

    def __len__(self) -> int:
        return len(self.scores.columns)

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores.columns)


@dataclass(frozen=True, slots=True)
class Alternatives:
    """The most probable tokens of some scored tokens, best first.

    ``index`` (kept,) says which rows of TokenScores they belong to, ascending; for each side there
    are ``ids`` and ``probabilities`` (kept, k).
    """

    index: npt.NDArray[np.int64]
    ids: Mapping[str, npt.NDArray[np.int32]]
    probabilities: Mapping[str, npt.NDArray[np.float32]]

    def row_of(self, token: int) -> int | None:
        """The row that belongs to a scored token, None if it was not kept."""
        row = int(np.searchsorted(self.index, token))
        return row if row < len(self.index) and self.index[row] == token else None


def empty_columns(table: WindowTable, *, paired: bool) -> Columns:
    """Columns that know where every token of a table stands, with nothing measured yet."""
    columns = score_columns(paired=paired)
    places = {name: t for name, t in columns.items() if name in PLACE_COLUMNS}
    measured = {name: t for name, t in columns.items() if name not in PLACE_COLUMNS}
    return Columns(table, places, measured)
