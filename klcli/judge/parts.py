"""Whose each scored token is: the part of a conversation or an answer that it lies in."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from klcli.text.corpus import Part
from klcli.text.windows import TokenizedDocument, WindowTable

Numbers = npt.NDArray[np.signedinteger]
"""The slice of each token; -1 for a token that is in none."""

_TURNS = ("1", "2", "3–4", "5–8", "9+")
_FIRST_TURNS = (1, 2, 3, 5, 9)
"""Slices of turns, and the first turn of each."""

_GENERATED = ("assistant", "completion", "reasoning")
"""Roles whose parts a model says, or might have said."""


def by_role(table: WindowTable) -> tuple[Sequence[str], Numbers]:
    """By whose part it is, in the order in which the roles appear."""
    parts = [part for document in table.documents for part in document.parts]
    roles = {role: n for n, role in enumerate(dict.fromkeys(part.role for part in parts))}
    return list(roles), _numbers(table, lambda part, _: roles[part.role])


def by_turn(table: WindowTable) -> tuple[Sequence[str], Numbers]:
    """By the turn of its conversation."""
    return _TURNS, _numbers(
        table, lambda part, _: np.searchsorted(_FIRST_TURNS, part.turn, side="right") - 1
    )


def by_generated(table: WindowTable) -> tuple[Sequence[str], Numbers]:
    """By its place within its part, so within one answer: 0, 1 to 3, 4 to 15, and so on.

    What nobody generated, as a prompt, is in none.
    """
    parts = [part for document in table.documents for part in document.parts]
    labels, starts = powers_of_four(max(part.stop - part.start for part in parts))

    def number(part: Part, place: Numbers) -> npt.ArrayLike:
        return np.searchsorted(starts, place, side="right") - 1 if _is_generated(part) else -1

    return labels, _numbers(table, number)


def _is_generated(part: Part) -> bool:
    return part.is_answer or part.role in _GENERATED


def powers_of_four(length: int) -> tuple[Sequence[str], Sequence[int]]:
    """Slices 0, 1 to 3, 4 to 15, … of so many places: what they are called, and where they begin.

    Where they begin has one more, behind the last.
    """
    starts = [0, 1]
    while starts[-1] < length:
        starts.append(4 * starts[-1])
    return ["0", *(f"{a}–{b - 1}" for a, b in pairwise(starts[1:]))], starts


def _numbers(table: WindowTable, number: Callable[[Part, Numbers], npt.ArrayLike]) -> Numbers:
    """What each scored token has by its part, and its place in that; -1 outside of any part."""
    found = np.full(table.tokens, -1, dtype=np.int32)
    first, current, own = 0, -1, found
    for window in table.windows:
        if window.document != current:
            current = window.document
            own = _of_document(table.documents[current], number)
        stop = first + len(window.targets)
        found[first:stop] = own[window.positions]
        first = stop
    return found


def _of_document(
    document: TokenizedDocument, number: Callable[[Part, Numbers], npt.ArrayLike]
) -> Numbers:
    own = np.full(len(document.ids), -1, dtype=np.int32)
    for part in _scored_last(document.parts):
        own[part.start : part.stop] = number(part, np.arange(part.stop - part.start))
    return own


def _scored_last(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts, so that a token that is in two is in the scored one."""
    yield from (part for part in parts if not part.is_scored)
    yield from (part for part in parts if part.is_scored)
