"""From what the loop found to the finished report."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.errors import Notice
from klcli.judge import gate, outliers, statistics
from klcli.judge.baseline import BaselineRun
from klcli.judge.clusters import Clusters, cluster_windows, follow
from klcli.judge.gate import Gate
from klcli.judge.intervals import Metric
from klcli.judge.notices import find_notices
from klcli.judge.report import Command, CorpusResult, Outlier, Report, Slice, SliceBy, Tokens
from klcli.judge.slices import slice_tokens
from klcli.judge.until import Until
from klcli.measure.align import Alignment
from klcli.measure.evaluate import Evaluation
from klcli.measure.scores import SIDES, TokenScores
from klcli.text.vocabulary import readable
from klcli.text.windows import WindowTable

Bools = npt.NDArray[np.bool_]

CONTEXT_TOKENS = 8
"""How many tokens before and after an outlier are shown."""
BOUNDED = ("kl", "kl_reverse", "jsd", "tv")
"""Metrics of which a list of top tokens gives a lower bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under which conditions a run took place, as the report states them."""

    models: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """What is held against the numbers, and how.

    With a ``confidence`` intervals of that level decide. ``baseline`` is the earlier run of
    relative gates. ``until`` watched a run that ended early, and knows what was decided.
    """

    gates: Sequence[Gate] = ()
    allow_excluded: bool = False
    confidence: float | None = None
    baseline: BaselineRun | None = None
    until: Until | None = None


def conclude(
    evaluation: Evaluation,
    alignment: Alignment,
    conditions: Conditions,
    judging: Judging,
    *,
    shown_outliers: int,
    shown_slices: Sequence[SliceBy] = (),
    noise_floor: Mapping[str, Any] | None = None,
) -> Report:
    """Estimate, find the outliers, judge the gates, and put it all into one report."""
    scores = evaluation.scores
    clusters = _clusters(alignment.table)
    everything = np.ones(len(scores), dtype=np.bool_)
    metrics = statistics.summarise(scores, clusters, everything)
    corpora = _corpus_results(scores, alignment, clusters)
    pieces = _pieces(scores, clusters)
    counts = _counts(scores, alignment, everything)
    shown, flagged = _outliers(evaluation, alignment, shown_outliers)
    lower_bounds = BOUNDED if "topk" in evaluation.kinds.values() and scores.paired else ()
    slices = slice_tokens(scores, alignment.table, alignment.names)
    results, notices = _judge(judging, metrics, counts, lower_bounds, scores, alignment, clusters)
    command: Command = "compare" if scores.paired else "perplexity"
    return Report(
        command=command,
        signature=_signature(alignment, conditions, len(scores)),
        models=conditions.models,
        protocol=alignment.table.protocol,
        environment=conditions.environment,
        counts={**counts, "outliers": flagged} if scores.paired else counts,
        clusters=pieces,
        metrics=metrics,
        macro=_macro(corpora) if len(corpora) > 1 else None,
        corpora=corpora,
        lower_bounds=lower_bounds,
        outliers=shown,
        slices=slices,
        shown_slices=shown_slices,
        gates=results,
        verdict=gate.overall(results),
        warnings=[
            *alignment.notices,
            *find_notices(evaluation, counts, pieces, alignment.table.protocol),
            *_missing_slices(shown_slices, slices),
            *notices,
        ],
        until=judging.until.summary() if judging.until is not None else None,
        noise_floor=noise_floor,
        tokens=_tokens(scores, alignment),
    )


def _judge(
    judging: Judging,
    metrics: Mapping[str, Metric],
    counts: Mapping[str, int | None],
    lower_bounds: Sequence[str],
    scores: TokenScores,
    alignment: Alignment,
    clusters: Clusters,
) -> tuple[list[gate.GateResult], list[Notice]]:
    """The verdicts, and what a reader should know of how they were come to."""
    if judging.until is not None and judging.until.goal == "decided":
        return judging.until.results(), []
    baseline = None
    if judging.baseline is not None:
        baseline = judging.baseline.against(scores, alignment.table, clusters)
    rules = gate.Rules(
        excluded=counts["excluded"] or 0,
        allow_excluded=judging.allow_excluded,
        lower_bounds=lower_bounds,
        confidence=judging.confidence,
        baseline=baseline,
        tokens=len(scores),
    )
    if judging.confidence is not None and judging.confidence != clusters.level:
        everything = np.ones(len(scores), dtype=np.bool_)
        sure = replace(clusters, level=judging.confidence)
        metrics = statistics.summarise(scores, sure, everything)
    notices = baseline.notices() if baseline is not None and judging.confidence else []
    return gate.judge(judging.gates, metrics, rules), notices


def _missing_slices(shown: Sequence[SliceBy], slices: Sequence[Slice]) -> list[Notice]:
    return [
        Notice(
            code="missing_slices",
            message=f"--slice {by} shows nothing: what the tokens read like is not known; "
            "--tokenizer says it",
        )
        for by in shown
        if by not in {one.by for one in slices}
    ]


def _counts(scores: TokenScores, alignment: Alignment, chosen: Bools) -> dict[str, int | None]:
    """How much was scored. ``bytes`` are those of the source text that the scored tokens cover."""
    windows = alignment.table.windows
    starts = np.cumsum([0, *alignment.table.window_tokens[:-1]])
    hit = np.flatnonzero(np.logical_or.reduceat(chosen, starts)).tolist()
    covered, excluded, infinite = 0, 0, 0
    has_text = None
    for rows, part in scores.blocks():
        own, left_out = chosen[rows], part["excluded"]
        excluded += int(left_out[own].sum())
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
    }


def _infinite(scores: TokenScores) -> Bools:
    """Where a model gave probability 0 to what came, or to what the other one holds possible."""
    names = ("kl", "kl_reverse", "nll_reference", "nll_candidate") if scores.paired else ("nll",)
    found: Bools = np.logical_or.reduce([np.isposinf(scores[name]) for name in names])
    return found


def _corpus_results(
    scores: TokenScores, alignment: Alignment, clusters: Clusters
) -> list[CorpusResult]:
    corpus = _corpus_of_windows(alignment.table)
    tokens = alignment.table.window_tokens
    results = []
    for number, one in enumerate(alignment.table.corpora):
        own = np.repeat(corpus == number, tokens)
        counts = _counts(scores, alignment, own)
        metrics = statistics.summarise(scores, clusters, own)
        results.append(
            CorpusResult(name=one.name, sha256=one.sha256, counts=counts, metrics=metrics)
        )
    return results


def _clusters(table: WindowTable) -> Clusters:
    """The clusters of the tokens, formed within each corpus by itself."""
    document = np.array([window.document for window in table.windows])
    corpus = _corpus_of_windows(table)
    clusters = np.zeros(len(document), dtype=np.int64)
    formed = 0
    for windows in np.split(np.arange(len(corpus)), np.flatnonzero(np.diff(corpus)) + 1):
        within = cluster_windows(document[windows])
        clusters[windows] = within + formed
        formed += int(within[-1]) + 1
    sizes = np.bincount(clusters, weights=table.window_tokens).astype(np.int64)
    return Clusters(sizes, follow(clusters, corpus))


def _pieces(scores: TokenScores, clusters: Clusters) -> dict[str, Any]:
    """The clusters as the report has them: how many, and how they correlate with their neighbours.

    By the mean KL of each, or NLL, over the tokens where it is finite.
    """
    column = "kl" if scores.paired else "nll"
    finite = np.concatenate([np.isfinite(part[column]) for _, part in scores.blocks()])
    x = np.concatenate([part[column][finite[rows]] for rows, part in scores.blocks()])
    return {
        "count": len(clusters),
        "lag1_correlation": clusters.among(finite).lag1_correlation(x),
    }


def _corpus_of_windows(table: WindowTable) -> npt.NDArray[np.int64]:
    return np.array([table.documents[window.document].corpus for window in table.windows])


def _macro(corpora: Sequence[CorpusResult]) -> dict[str, float | None]:
    """Means of the corpora's means, each corpus counting the same; perplexity is exp of such."""
    macro: dict[str, float | None] = {}
    for name, metric in corpora[0].metrics.items():
        if "mean" in metric:
            means = [corpus.metrics[name]["mean"] for corpus in corpora]
            macro[name] = _mean_of_known(means)
    for name in [name for name in macro if name.startswith("nll")]:
        mean = macro[name]
        perplexity = {"nll_difference": "perplexity_ratio"}.get(
            name, name.replace("nll", "perplexity")
        )
        macro[perplexity] = None if mean is None else statistics.exp(mean)
    return macro


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _outliers(
    evaluation: Evaluation, alignment: Alignment, count: int
) -> tuple[list[Outlier], int]:
    """The outliers to show, and how many tokens are flagged in all."""
    scores = evaluation.scores
    if not scores.paired:
        return [], 0
    found, flagged = outliers.find(scores, outliers.learn(scores), count)
    return [_outlier(rated, evaluation, alignment) for rated in found], flagged


def _outlier(rated: outliers.Rated, evaluation: Evaluation, alignment: Alignment) -> Outlier:
    index = rated.row
    scores = {
        name: evaluation.scores.part(name, index, index + 1)[0]
        for name in evaluation.scores.columns
    }
    document = alignment.table.documents[scores["document"]]
    position, token_id = int(scores["position"]), int(scores["token_id"])
    tops = {side: _top(evaluation, alignment, side, index) for side in SIDES}
    return Outlier(
        index=index,
        document=document.name,
        position=position,
        token=_text(alignment, [token_id]),
        token_id=token_id,
        before=_text(alignment, document.ids[max(0, position - CONTEXT_TOKENS) : position]),
        after=_text(alignment, document.ids[position + 1 : position + 1 + CONTEXT_TOKENS]),
        kl=float(scores["kl"]),
        score=_known(rated.score),
        flagged=rated.flagged,
        nll_reference=_known(scores["nll_reference"]),
        nll_candidate=_known(scores["nll_candidate"]),
        top_reference=tops["reference"],
        top_candidate=tops["candidate"],
    )


def _text(alignment: Alignment, ids: Sequence[int] | npt.NDArray[np.int64]) -> str:
    return readable(alignment.names.piece(int(token_id)) for token_id in ids if token_id >= 0)


def _top(
    evaluation: Evaluation, alignment: Alignment, side: str, index: int
) -> list[tuple[str, float]]:
    kept = evaluation.alternatives
    row = kept.row_of(index)
    if row is None:
        return []
    pairs = zip(kept.ids[side][row].tolist(), kept.probabilities[side][row].tolist(), strict=True)
    return [(_text(alignment, [token_id]), p) for token_id, p in pairs if p > 0]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _signature(alignment: Alignment, conditions: Conditions, tokens: int) -> str:
    """One line that names what was measured: equal signatures, comparable numbers."""
    short = {"reference": "ref", "candidate": "cand", "model": "model"}
    sides = [f"{short[role]}:{_model(model)}" for role, model in conditions.models.items()]
    corpora = "+".join(corpus.sha256[:16] for corpus in alignment.table.corpora) or _hash_of(
        alignment
    )
    protocol = alignment.table.protocol
    named = {
        "protocol": protocol["name"],
        "context": protocol["context"],
        "stride": protocol["stride"],
        "score_from": protocol["score_from"],
        "bos": protocol["bos"],
        "special": protocol["special_tokens"],
        "documents": protocol["documents"],
        **{name: protocol[name] for name in ("pll", "mask_every") if name in protocol},
    }
    parts = [f"{name}:{'-' if value is None else value}" for name, value in named.items()]
    begin = [f"klcli:{conditions.environment['klcli']}", *sides, f"corpus:{corpora}"]
    return "|".join([*begin, *parts, f"tokens:{tokens}"])


def _model(provenance: Mapping[str, Any]) -> str:
    revision, dtype = provenance.get("revision"), provenance.get("dtype")
    at = f"@{revision}" if revision else ""
    return f"{provenance['source']}{at}{f':{dtype}' if dtype else ''}"


def _hash_of(alignment: Alignment) -> str:
    """Where a file brought the tokens: a hash of them in the place of the text's."""
    digest = hashlib.sha256()
    for window in alignment.table.windows:
        digest.update(window.inputs.astype(np.int64).tobytes())
        digest.update(window.targets.astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


def _tokens(scores: TokenScores, alignment: Alignment) -> Tokens:
    columns = [name for name in scores.columns if name.startswith("top1") or name == "token_id"]
    ids = set[int]()
    for _, part in scores.blocks():
        for name in columns:
            ids.update(np.unique(part[name]).tolist())
    return Tokens(
        scores=scores,
        texts={token_id: _text(alignment, [token_id]) for token_id in sorted(ids)},
        documents=[document.name for document in alignment.table.documents],
    )
