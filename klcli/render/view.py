"""What of a report people are shown: a choice for tables, which data formats do not need."""

from dataclasses import dataclass
from typing import get_args

from klcli.choices import FIRST_OUTLIERS, SliceBy, TokenChoice
from klcli.judge.report import Report

_WITHOUT_PARTS = "no text is a conversation or has a prompt"
_NO_TEXT = "the text of the tokens is not known; give --tokenizer"
_WHY_NOT = {
    **dict.fromkeys(("role", "turn", "generated"), _WITHOUT_PARTS),
    "regex": "give --slice-regex NAME=PATTERN, and for logit files --tokenizer",
}
"""Why a report has no slices of some kind, where it is not that the text is not known."""


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


def missing_slices(report: Report, view: View) -> list[str]:
    """That slices which are to be shown are not there, and why."""
    sliced = {one.by for one in report.slices}
    return [
        f"--slice {by} shows nothing: {_WHY_NOT.get(by, _NO_TEXT)}"
        for by in view.ordered_slices
        if by not in sliced
    ]
