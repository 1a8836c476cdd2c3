"""The shape of a run, for pictures: how the KL is distributed, and how it goes along the text."""

from itertools import pairwise

import numpy as np

from klcli.judge.clusters import Floats
from klcli.judge.report import Along, Distribution, TokenMetric
from klcli.measure.scores import TokenScores

A_DECADE = 10
"""Bins from 0.001 to 0.01 nats, and so in each decade."""
EDGES: Floats = 10.0 ** (np.arange(-8 * A_DECADE, 2 * A_DECADE + 1) / A_DECADE)
"""Edges of the bins, from 1e-8 to 100 nats: each bin holds its lower one."""
PARTS = 64
"""Parts of the text, if it has as many tokens."""


def distribution_of(scores: TokenScores) -> Distribution:
    """How many tokens have which KL, or of one model which NLL; unknown ones are left out."""
    counts = np.zeros(len(EDGES) + 1, dtype=np.int64)
    zero = infinite = 0
    for _, part in scores.blocks():
        x = part[_metric(scores)]
        finite = x[np.isfinite(x)]
        above = finite[finite > 0]
        zero += len(finite) - len(above)
        infinite += int(np.isposinf(x).sum())
        counts += np.bincount(np.searchsorted(EDGES, above, side="right"), minlength=len(counts))
    return Distribution(
        metric=_metric(scores),
        edges=EDGES.tolist(),
        counts=counts[1:-1].tolist(),
        zero=zero,
        below=int(counts[0]),
        above=int(counts[-1]),
        infinite=infinite,
    )


def along_of(scores: TokenScores) -> Along:
    """The mean KL, or of one model NLL, of equal parts of the scored tokens, in reading order."""
    tokens, metric = len(scores), _metric(scores)
    parts = min(PARTS, tokens)
    starts = [tokens * part // parts for part in range(parts)]
    means = [_mean(scores.part(metric, a, b)) for a, b in pairwise([*starts, tokens])]
    return Along(metric=metric, starts=starts, means=means)


def _metric(scores: TokenScores) -> TokenMetric:
    return "kl" if scores.paired else "nll"


def _mean(x: Floats) -> float | None:
    known = x[~np.isnan(x)]
    return float(known.mean()) if len(known) else None
