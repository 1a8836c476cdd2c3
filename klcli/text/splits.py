"""Where two tokenizers split one text otherwise."""

from dataclasses import dataclass

import numpy as np

from klcli.text.vocabulary import Vocabulary, readable

Token = tuple[int, int, int]
"""The byte where a token begins, the byte where it ends, and its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """How two tokenizers differ on a text.

    Attributes:
        differing: how many tokens of the first the second does not make.
        tokens: how many tokens the first makes.
        first: the byte at which the first of them begins.
        pieces: what each makes of the text from there to where they meet again.
    """

    differing: int
    tokens: int
    first: int
    pieces: tuple[tuple[str, ...], tuple[str, ...]]


def find_splits(left: Vocabulary, right: Vocabulary, text: str) -> Splits | None:
    """Hold the tokens of two tokenizers against each other; None where they are the same."""
    own, other = _tokens(left, text), _tokens(right, text)
    foreign = sorted(set(own) - set(other))
    if not foreign and len(own) == len(other):
        return None
    begin = min(foreign or sorted(set(other) - set(own)))[0]
    meet = {end for _, end, _ in own} & {end for _, end, _ in other}
    end = min((place for place in meet if place > begin), default=len(text.encode()))
    pieces = [
        tuple(readable([side.bytes_of(i)]) for start, stop, i in found if begin <= start < end)
        for side, found in ((left, own), (right, other))
    ]
    return Splits(
        differing=len(foreign), tokens=len(own), first=begin, pieces=(pieces[0], pieces[1])
    )


def _tokens(vocabulary: Vocabulary, text: str) -> list[Token]:
    found = vocabulary.encode(text)
    starts = np.concatenate([[0], found.ends[:-1]]) if len(found.ends) else found.ends
    columns = (starts.tolist(), found.ends.tolist(), found.ids.tolist())
    return list(zip(*columns, strict=True))
