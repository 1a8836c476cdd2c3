"""Answers that a model gave, and how far the other one would have said the same.

Both read the answer token by token, as it was given. The first token at which the candidate's most
probable one is another is where its own greedy answer would part from it: up to there it has read
and said the same.
"""

import math
from typing import NamedTuple

import numpy as np

from klcli.align.alignment import Alignment
from klcli.judge.clusters import Clusters, Floats, Ints
from klcli.judge.intervals import proportion
from klcli.judge.plain import known
from klcli.judge.report import AnswerResult, Answers, Survival
from klcli.measure.scores import TokenScores
from klcli.text.windows import WindowTable

NEVER = np.iinfo(np.int64).max
"""Where an answer parts that agrees to its end."""


class _Counted(NamedTuple):
    """Of each answer the document, the scored tokens, where it parts, and the sum of its KL."""

    document: Ints
    tokens: Ints
    first: Ints
    kl: Floats | None


def find_answers(scores: TokenScores, alignment: Alignment) -> Answers | None:
    """How far the candidate, or the only model, agrees with each answer; None without answers."""
    found = _count(scores, _starts(alignment.table))
    if not len(found.document):
        return None
    parting = np.sort(found.first)
    middle = int(parting[(len(parting) - 1) // 2])
    parted = parting[parting != NEVER]
    each = Clusters(np.ones(len(parting), dtype=np.int64), np.zeros(len(parting), dtype=np.bool_))
    return Answers(
        greedy=alignment.table.protocol.get("answers") == "greedy",
        count=len(parting),
        agreeing=proportion(found.first == NEVER, each),
        median_first=None if middle == NEVER else middle,
        mean_first=float(parted.mean()) if len(parted) else None,
        survival=[_survival(found.first, n, each) for n in _lengths(int(found.tokens.max()))],
        answers=[
            AnswerResult(
                document=alignment.table.documents[document].name,
                tokens=int(found.tokens[place]),
                first=None if found.first[place] == NEVER else int(found.first[place]),
                kl=None if found.kl is None else known(found.kl[place] / found.tokens[place]),
            )
            for place, document in enumerate(found.document.tolist())
        ],
    )


def _starts(table: WindowTable) -> Ints:
    """The token at which the answer in each document begins, -1 where there is none."""
    return np.array(
        [
            next((part.start for part in document.parts if part.is_answer), -1)
            for document in table.documents
        ]
    )


def _count(scores: TokenScores, starts: Ints) -> _Counted:
    """Go through the tokens of all answers, some at a time."""
    first = np.full(len(starts), NEVER, dtype=np.int64)
    tokens, kl = np.zeros(len(starts), dtype=np.int64), np.zeros(len(starts))
    says = "top1_candidate" if scores.paired else "top1"
    for _, part in scores.blocks():
        document, place = part["document"], part["position"] - starts[part["document"]]
        own = (starts[document] >= 0) & (place >= 0)
        np.add.at(tokens, document[own], 1)
        differs = own & (part[says] != part["token_id"])
        np.minimum.at(first, document[differs], place[differs])
        if scores.paired:
            np.add.at(kl, document[own], part["kl"][own])
    answered = np.flatnonzero(tokens)
    return _Counted(
        document=answered,
        tokens=tokens[answered],
        first=first[answered],
        kl=kl[answered] if scores.paired else None,
    )


def _survival(first: Ints, tokens: int, each: Clusters) -> Survival:
    """The share of answers that agree for so many tokens, or to an earlier end."""
    share = proportion(first >= tokens, each)
    value = share["value"]
    assert value is not None
    return Survival(tokens=tokens, share=value, ci_low=share["ci_low"], ci_high=share["ci_high"])


def _lengths(longest: int) -> list[int]:
    """1, 2, 4, 8 and so on, up to the longest answer, which is the last."""
    powers = [2**n for n in range(math.ceil(math.log2(longest)) if longest > 1 else 0)]
    return [*powers, longest]
