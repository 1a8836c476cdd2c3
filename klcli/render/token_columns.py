"""The table of every scored token: its columns, and what a score stands for in it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from klcli.judge.report import Tokens

_TEXT_OF = {
    "token_id": "token",
    "top1": "top1_token",
    "top1_reference": "top1_reference_token",
    "top1_candidate": "top1_candidate_token",
}
"""Scores that are token ids, each with the column behind it in which the token is read."""


class TokenColumn(NamedTuple):
    """A column: its name, the score it shows, and whether that is read as a text of a token."""

    name: str
    score: str
    is_text: bool = False


def token_columns(tokens: Tokens, lower_bounds: Sequence[str]) -> Iterator[TokenColumn]:
    """The columns in order; a score that is only a lower bound says so in its name.

    ``document`` holds the numbers of documents, which a table shows by their names.
    """
    for score in tokens.scores.columns:
        yield TokenColumn(f"{score}_lower_bound" if score in lower_bounds else score, score)
        if score in _TEXT_OF:
            yield TokenColumn(_TEXT_OF[score], score, is_text=True)
