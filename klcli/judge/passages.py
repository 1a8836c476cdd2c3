"""The worst passages: runs of neighbouring tokens with the largest mean KL, or NLL of one model."""

import numpy as np

from klcli.align.alignment import Alignment
from klcli.judge.clusters import Bools, Floats
from klcli.judge.report import Passage
from klcli.judge.shown_outliers import read
from klcli.measure.scores import TokenScores

LENGTH = 16
"""Tokens of a passage: about a line of text."""
MOST = 10
"""Passages that are found."""


def find_passages(scores: TokenScores, alignment: Alignment) -> list[Passage]:
    """The passages with the largest mean, largest first; no two of them share a token.

    A passage lies in one document and its tokens are neighbours there. A token of which nothing is
    known counts as 0. Passages without any divergence are left out.
    """
    means = _means(np.nan_to_num(scores["kl" if scores.paired else "nll"], nan=0.0, posinf=np.inf))
    means[~_unbroken(scores)] = 0.0
    found: list[int] = []
    for start in np.argsort(-means, kind="stable").tolist():
        if len(found) == MOST or means[start] <= 0:
            break
        if all(abs(start - other) >= LENGTH for other in found):
            found.append(start)
    return [_passage(scores, alignment, start, float(means[start])) for start in found]


def _means(x: Floats) -> Floats:
    """The mean of each ``LENGTH`` neighbours, by the first of them: infinite if one of them is."""
    finite, infinite = np.where(np.isinf(x), 0.0, x), np.isinf(x)
    sums, infinities = (np.cumsum(np.append(0.0, one)) for one in (finite, infinite))
    means: Floats = (sums[LENGTH:] - sums[:-LENGTH]) / LENGTH
    means[infinities[LENGTH:] > infinities[:-LENGTH]] = np.inf
    return means


def _unbroken(scores: TokenScores) -> Bools:
    """Where ``LENGTH`` scored tokens follow one another in one document."""
    last = LENGTH - 1
    document, position = scores["document"], scores["position"]
    unbroken: Bools = document[last:] == document[:-last]
    unbroken &= position[last:] - position[:-last] == last
    return unbroken


def _passage(scores: TokenScores, alignment: Alignment, start: int, mean: float) -> Passage:
    number = int(scores.part("document", start, start + 1)[0])
    return Passage(
        index=start,
        tokens=LENGTH,
        document=alignment.table.documents[number].name,
        position=int(scores.part("position", start, start + 1)[0]),
        text=read(alignment, scores.part("token_id", start, start + LENGTH)),
        mean=mean,
    )
