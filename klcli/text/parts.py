"""Parts of a text as runs of its tokens: what is somebody's, and what of it is scored."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from klcli.text.corpus import Part
from klcli.text.vocabulary import IntArray

REASONING = "reasoning"


def parts_in_tokens(parts: Sequence[Part], ends: IntArray) -> tuple[tuple[Part, ...], list[Part]]:
    """The parts of a text, in bytes, as parts of its tokens.

    A token belongs to the part in which it begins. What is scored must begin with a token of its
    own: a model that is given the text before it does not continue in the middle of a token. Where
    one runs across the border, nothing of that answer can be scored. At its end a token that runs
    on is only left out.

    Args:
        parts: in order, in bytes; neighbours touch.
        ends: the byte at which each token ends.

    Returns:
        The parts in tokens, and those of the given ones that cannot be scored.
    """
    starts = np.append(0, ends[:-1])
    found: list[Part] = []
    lost: list[Part] = []
    before: Part | None = None
    for part, reach in zip(parts, _reaches(parts), strict=True):
        first, behind = (int(np.searchsorted(starts, at)) for at in (part.start, part.stop))
        own = replace(part, start=first, stop=behind)
        if part.is_scored and _begins_inside(part, before, lost, starts, ends):
            lost.append(part)
            own = replace(own, is_scored=False)
        elif part.is_scored and behind > first and ends[behind - 1] > reach:
            found.append(replace(own, stop=behind - 1))
            own = replace(own, start=behind - 1, is_scored=False)
        found.append(own)
        before = part
    return tuple(one for one in found if one.stop > one.start), lost


def _reaches(parts: Sequence[Part]) -> list[int]:
    """Where what is scored from each part on without a gap ends."""
    reaches: list[int] = []
    is_scored_behind = False
    for part in reversed(parts):
        reaches.append(reaches[-1] if is_scored_behind else part.stop)
        is_scored_behind = part.is_scored
    return reaches[::-1]


def _begins_inside(
    part: Part, before: Part | None, lost: Sequence[Part], starts: IntArray, ends: IntArray
) -> bool:
    """Whether a token runs into a scored part from a text that was given to the model."""
    if _goes_on(part, before):
        return before in lost
    at = int(np.searchsorted(starts, part.start))
    return part.start > 0 and (at == 0 or int(ends[at - 1]) != part.start)


def _goes_on(part: Part, before: Part | None) -> bool:
    """Whether the model itself wrote what stands before a part: its answer, or its reasoning."""
    if before is None or before.stop != part.start or before.turn != part.turn:
        return False
    return before.is_scored or before.role == REASONING
