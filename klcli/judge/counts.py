"""How much was scored, and over which clusters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.align.alignment import Alignment
from klcli.judge.clusters import Bools, Clusters, cluster_windows, follow
from klcli.measure.scores import TokenScores
from klcli.text.windows import WindowTable


def count(scores: TokenScores, alignment: Alignment, chosen: Bools) -> dict[str, int | None]:
    """How much was scored.

    ``bytes`` are those of the source text that the scored tokens cover; ``unknown`` are tokens that
    stand for text that the tokenizer has no other for.
    """
    unknown_id = getattr(alignment.names, "unknown_id", None)
    windows = alignment.table.windows
    starts = np.cumsum([0, *alignment.table.window_tokens[:-1]])
    hit = np.flatnonzero(np.logical_or.reduceat(chosen, starts)).tolist()
    covered, excluded, infinite, unknown = 0, 0, 0, 0
    has_text = None
    for rows, part in scores.blocks():
        own, left_out = chosen[rows], part["excluded"]
        excluded += int(left_out[own].sum())
        unknown += 0 if unknown_id is None else int((part["token_id"][own] == unknown_id).sum())
        infinite += int((_infinite(part) & own).sum())
        known = own & ~left_out & (part["token_id"] >= 0)
        ends, begins = part["byte_end"][known], part["byte_start"][known]
        if known.any():
            has_text = has_text is not False and bool((ends >= 0).all())
        covered += int((ends - begins).sum())
    return {
        "tokens": int(np.count_nonzero(chosen)),
        "windows": len(hit),
        "documents": len({windows[number].document for number in hit}),
        "bytes": covered if has_text else None,
        "excluded": excluded,
        "infinite": infinite,
        "unknown": unknown,
    }


MOST_UNKNOWN = 0.01
"""The share of unknown tokens above which the tokens do not tell the text any more."""


def tells_text(counts: Mapping[str, int | None]) -> bool:
    """Whether the scored tokens determine the text that they cover."""
    return (counts["unknown"] or 0) <= MOST_UNKNOWN * (counts["tokens"] or 0)


def _infinite(scores: TokenScores) -> Bools:
    """Where a model gave probability 0 to what came, or to what the other one holds possible."""
    names = ("kl", "kl_reverse", "nll_reference", "nll_candidate") if scores.paired else ("nll",)
    found: Bools = np.logical_or.reduce([np.isposinf(scores[name]) for name in names])
    return found


def clusters_of(table: WindowTable) -> Clusters:
    """The clusters of the tokens, formed within each corpus by itself."""
    document = np.array([window.document for window in table.windows])
    corpus = corpus_of_windows(table)
    clusters = np.zeros(len(document), dtype=np.int64)
    formed = 0
    for windows in np.split(np.arange(len(corpus)), np.flatnonzero(np.diff(corpus)) + 1):
        within = cluster_windows(document[windows])
        clusters[windows] = within + formed
        formed += int(within[-1]) + 1
    sizes = np.bincount(clusters, weights=table.window_tokens).astype(np.int64)
    return Clusters(sizes, follow(clusters, corpus))


def describe_clusters(scores: TokenScores, clusters: Clusters) -> dict[str, Any]:
    """The clusters as the report has them: how many, and how they correlate with their neighbours.

    By the mean KL of each, or NLL, over the tokens where it is finite.
    """
    column = "kl" if scores.paired else "nll"
    finite = np.concatenate([np.isfinite(part[column]) for _, part in scores.blocks()])
    x = np.concatenate([part[column][finite[rows]] for rows, part in scores.blocks()])
    among = clusters.among(finite)
    return {
        "count": len(clusters),
        "neighbours": clusters.has_neighbours,
        "lag1_correlation": among.lag1_correlation(among.sums(x)),
    }


def corpus_of_windows(table: WindowTable) -> npt.NDArray[np.int64]:
    """The number of each window's corpus."""
    return np.array([table.documents[window.document].corpus for window in table.windows])
