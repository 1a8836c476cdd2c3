"""How the KL goes with the row of the window, which tells what kind of fault two models have.

At row 0 a model has read one token: no attention to others, and no position but the first. What
differs there already lies in the embeddings, the blocks by themselves, or the head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from klcli.judge.clusters import Floats
from klcli.measure.scores import TokenScores
from klcli.text.windows import Window, WindowTable

EQUAL = 1e-7
"""KL in nats below which a row is the same: models in float32 differ by less from themselves."""
BEHIND = 0.9
"""Share of the rows behind the first one that differs which must differ too."""
AGREEING = 0.9
"""Share of the windows that must begin to differ at the same row."""
FLAT = 0.1
"""Relative difference of the bins' means from the whole up to which KL is flat."""
LARGE = 0.1
"""KL in nats from which on flatness means something: small noise of any cause may be flat."""
RISING = 1.5
"""How many times the KL of the last rows must be that of the first that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Mean KL by bins of rows: rows ``starts[i]`` to ``starts[i + 1]``, ``tokens`` and ``kl``.

    ``first`` is the row at which the models begin to differ, the same in nearly all windows and
    with nearly all rows behind it; None where there is no such row.
    """

    starts: Sequence[int]
    tokens: Sequence[int]
    kl: Sequence[float]
    first: int | None

    @property
    def is_flat(self) -> bool:
        """Whether it is large, and the same in every row from the first on."""
        known = [kl for kl, tokens in zip(self.kl, self.tokens, strict=True) if tokens]
        mean = float(np.average(known))
        enough = len(known) > 2 and self.tokens[0] > 1
        return enough and mean > LARGE and all(abs(kl - mean) <= FLAT * mean for kl in known)

    @property
    def is_rising(self) -> bool:
        """Whether rows further on differ by more than the first that differ."""
        known = [kl for kl, n in zip(self.kl, self.tokens, strict=True) if n and kl > EQUAL]
        return len(known) > 1 and known[-1] > RISING * known[0]

    def to_dict(self) -> list[dict[str, float]]:
        """The bins as a report has them, without empty ones."""
        return [
            {"rows_from": start, "tokens": tokens, "kl": kl}
            for start, tokens, kl in zip(self.starts, self.tokens, self.kl, strict=True)
            if tokens
        ]


def profile(scores: TokenScores, table: WindowTable) -> Profile | None:
    """The profile of a comparison by causal models; None where KL is not known or not finite."""
    windows = table.windows
    if windows[0].masking is not None or not scores.paired:
        return None
    longest = max(int(w.rows[-1]) + 1 for w in windows)
    starts = _bins(longest)
    sums, counts = np.zeros(longest), np.zeros(longest, dtype=np.int64)
    firsts: list[int] = []
    differing, behind = 0, 0
    for window, kl in _by_window(scores, windows):
        rows = window.rows
        known = np.isfinite(kl)
        np.add.at(sums, rows[known], kl[known])
        counts[rows[known]] += 1
        differs = kl > EQUAL
        if window.score_from == 0 and differs.any():
            first = int(differs.argmax())
            firsts.append(first)
            differing += int(differs[first:].sum())
            behind += len(kl) - first
    if not counts.any():
        return None
    edges = [*starts, longest]
    tokens = [int(counts[a:b].sum()) for a, b in pairwise(edges)]
    total = [float(sums[a:b].sum()) for a, b in pairwise(edges)]
    return Profile(
        starts=starts,
        tokens=tokens,
        kl=[kl / n if n else 0.0 for kl, n in zip(total, tokens, strict=True)],
        first=_common(firsts) if differing >= BEHIND * behind else None,
    )


def _common(firsts: Sequence[int]) -> int | None:
    """The row at which windows begin to differ, where nearly all do so at the same one."""
    if len(firsts) < 2:
        return None
    first = min(firsts)
    agreeing = sum(one <= first + 1 for one in firsts)
    return first if agreeing >= AGREEING * len(firsts) else None


def _by_window(scores: TokenScores, windows: Sequence[Window]) -> Iterator[tuple[Window, Floats]]:
    """Each window with the KL of its rows."""
    start = 0
    for window in windows:
        stop = start + len(window.targets)
        yield window, np.asarray(scores.part("kl", start, stop))
        start = stop


def _bins(longest: int) -> list[int]:
    """The first row of each bin: 0, then 1 to 3, 4 to 15, and so on."""
    starts = [0, 1]
    while 4 * starts[-1] < longest:
        starts.append(4 * starts[-1])
    return starts
