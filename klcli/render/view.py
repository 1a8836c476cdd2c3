"""What of a report people are shown: a choice for tables, which data formats do not need."""

from dataclasses import dataclass
from typing import get_args

from klcli.choices import FIRST_OUTLIERS, SliceBy, TokenChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How much a table says, which tokens it lists, and by what it slices them.

    With ``details`` it has every number. ``tokens`` lists ``all`` of them in a table, the
    ``outliers`` in their context, or ``none``; the first screen has so many ``outliers``.
    """

    details: bool = False
    tokens: TokenChoice = "outliers"
    outliers: int = FIRST_OUTLIERS
    slices: tuple[SliceBy, ...] = ()

    @property
    def ordered_slices(self) -> tuple[SliceBy, ...]:
        """The slices, each once, in the order in which they stand in a report."""
        return tuple(by for by in get_args(SliceBy) if by in self.slices)


DEFAULT_VIEW = View()
