"""What of a report people are shown: a choice for tables, which data formats do not need."""

from dataclasses import dataclass
from typing import get_args

from klcli.choices import SliceBy, TokenChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Which tokens a table lists, and by what it slices them.

    ``tokens`` lists ``all`` of them in a table, the ``outliers`` in their context, or ``none``.
    """

    tokens: TokenChoice = "outliers"
    slices: tuple[SliceBy, ...] = ()

    @property
    def ordered_slices(self) -> tuple[SliceBy, ...]:
        """The slices, each once, in the order in which they stand in a report."""
        return tuple(by for by in get_args(SliceBy) if by in self.slices)


DEFAULT_VIEW = View()
