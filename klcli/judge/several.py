"""Several texts: what each gave by itself, corpora and groups of documents, and means of them."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from klcli.align.alignment import Alignment
from klcli.judge.clusters import Bools, Clusters
from klcli.judge.counts import corpus_of_windows, count, tells_text
from klcli.judge.intervals import UNBOUNDED, Metric, within
from klcli.judge.metrics import BOUNDS
from klcli.judge.statistics import exp, summarise
from klcli.judge.text_results import CorpusResult, Group, Groups, Interval, Macro
from klcli.measure.scores import TokenScores
from klcli.text.windows import WindowTable


def corpus_results(
    scores: TokenScores, alignment: Alignment, clusters: Clusters
) -> list[CorpusResult]:
    """What each corpus gave, in their order."""
    found = []
    for number, one in enumerate(alignment.table.corpora):
        own = tokens_of_corpus(alignment.table, number)
        counts, metrics = measure(scores, alignment, clusters, own)
        found.append(CorpusResult(name=one.name, sha256=one.sha256, counts=counts, metrics=metrics))
    return found


def group_results(scores: TokenScores, alignment: Alignment, clusters: Clusters) -> Groups | None:
    """What each group of documents gave, in the order in which they appear; None without any.

    A cluster never holds documents of two groups, and clusters follow on each other within a group
    only where its documents stand side by side.
    """
    names = group_names(alignment.table)
    if not names:
        return None
    found = []
    for name in names:
        own = tokens_of_group(alignment.table, name)
        counts, metrics = measure(scores, alignment, clusters, own)
        found.append(Group(name=name, counts=counts, metrics=metrics))
    return Groups(
        field=str(alignment.table.protocol.get("group_by") or "group"),
        groups=found,
        macro=macro_of(found),
        macro_intervals=intervals_of(found),
    )


def measure(
    scores: TokenScores, alignment: Alignment, clusters: Clusters, own: Bools
) -> tuple[dict[str, int | None], dict[str, Metric]]:
    """How much some of the tokens are, and their metrics."""
    counts = count(scores, alignment, own)
    return counts, summarise(scores, clusters, own, is_text=tells_text(counts))


def group_names(table: WindowTable) -> list[str]:
    """The groups that have a scored token, in the order in which they appear."""
    documents = table.documents
    groups = (documents[window.document].group for window in table.windows)
    return [group for group in dict.fromkeys(groups) if group is not None]


def tokens_of_corpus(table: WindowTable, number: int) -> Bools:
    """Which tokens are of a corpus."""
    own: Bools = np.repeat(corpus_of_windows(table) == number, table.window_tokens)
    return own


def tokens_of_group(table: WindowTable, name: str) -> Bools:
    """Which tokens are of the documents of a group."""
    own = [table.documents[window.document].group == name for window in table.windows]
    found: Bools = np.repeat(own, table.window_tokens)
    return found


def macro_of(texts: Sequence[CorpusResult | Group]) -> Macro:
    """Means of the texts' means, each text counting the same; perplexity is exp of such."""
    macro: dict[str, float | None] = {}
    for name in _means(texts):
        macro[name] = _over_known([one.metrics[name]["mean"] for one in texts], _mean)
    return macro | {
        perplexity: None if macro[nll] is None else exp(macro[nll] or 0.0)
        for nll, perplexity in _perplexities(macro)
    }


def intervals_of(texts: Sequence[CorpusResult | Group]) -> dict[str, Interval]:
    """The errors and intervals of the means of ``macro_of``: the texts are independent.

    se² = Σ se_i² / K², and half of an interval is the same of the texts' own halves (Zou and Donner
    2008). Where their errors have equal degrees of freedom, it is Student's t with these: a bit
    longer than with the larger number that Welch and Satterthwaite give all of them together.
    """
    found = {name: _interval(name, [one.metrics[name] for one in texts]) for name in _means(texts)}
    return found | {perplexity: _as_exp(found[nll]) for nll, perplexity in _perplexities(found)}


def _interval(name: str, metrics: Sequence[Metric]) -> Interval:
    """The interval of a mean of means, within what a mean can be."""
    middle = _over_known([metric["mean"] for metric in metrics], _mean)
    half = _over_known([_half(metric) for metric in metrics], _root)
    se = _over_known([metric["se"] for metric in metrics], _root)
    if middle is None or half is None:
        return {"se": se, "ci_low": None, "ci_high": None}
    ends: Metric = {"mean": middle, "ci_low": middle - half, "ci_high": middle + half}
    seen = [metric[end] or 0.0 for metric in metrics for end in ("min", "max")]
    ends = within(ends, BOUNDS.get(name, UNBOUNDED), (min(seen), max(seen)))
    return {"se": se, "ci_low": ends["ci_low"], "ci_high": ends["ci_high"]}


def _means(texts: Sequence[CorpusResult | Group]) -> list[str]:
    return [name for name, metric in texts[0].metrics.items() if "mean" in metric]


def _perplexities(names: Sequence[str] | Macro | dict[str, Interval]) -> Iterator[tuple[str, str]]:
    """Each NLL, with the perplexity that is exp of it."""
    for name in names:
        if name == "nll_difference":
            yield name, "perplexity_ratio"
        elif name.startswith("nll"):
            yield name, name.replace("nll", "perplexity")


def _over_known(
    values: Sequence[float | None], over: Callable[[Sequence[float]], float]
) -> float | None:
    """A number over others; None where one of them is not known."""
    known = [value for value in values if value is not None]
    return over(known) if len(known) == len(values) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _root(errors: Sequence[float]) -> float:
    """The error of a mean of independent numbers."""
    return math.hypot(*errors) / len(errors)


def _half(metric: Metric) -> float | None:
    """The longer half of an interval: the other may be cut off at a bound."""
    middle, low, high = metric["mean"], metric["ci_low"], metric["ci_high"]
    if middle is None or low is None or high is None:
        return None
    return max(middle - low, high - middle)


def _as_exp(interval: Interval) -> Interval:
    """The interval of a perplexity; as elsewhere it has no error of its own."""
    ends = {end: interval[end] for end in ("ci_low", "ci_high")}
    return {"se": None} | {end: None if x is None else exp(x) for end, x in ends.items()}
