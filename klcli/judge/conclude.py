"""From what the loop found to the finished report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from klcli.align.alignment import Alignment
from klcli.errors import Notice
from klcli.judge import gate, one_text, several, statistics
from klcli.judge.answers import find_answers
from klcli.judge.baseline import BaselineRun
from klcli.judge.clusters import Bools, Clusters
from klcli.judge.counts import (
    clusters_of,
    count,
    describe_clusters,
    tells_text,
)
from klcli.judge.findings import find_causes
from klcli.judge.gate import Gate
from klcli.judge.intervals import Metric
from klcli.judge.notices import find_notices, shard_notices
from klcli.judge.passages import find_passages
from klcli.judge.patterns import NamedPattern
from klcli.judge.report import Command, Finding, Report, Tokens
from klcli.judge.shape import along_of, distribution_of
from klcli.judge.shown_outliers import find_outliers, read
from klcli.judge.signature import signature
from klcli.judge.slices import slice_tokens
from klcli.judge.until import Until
from klcli.measure.gathered import Evaluation
from klcli.measure.scores import TokenScores
from klcli.measure.shard import WHOLE, Shard, check_whole
from klcli.sources.conditions import Conditions

BOUNDED = ("kl", "kl_reverse", "jsd", "tv")
"""Metrics of which a list of top tokens gives a lower bound."""


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
    noise_floor: Mapping[str, Any] | None = None,
    findings: Sequence[Finding] = (),
    patterns: Sequence[NamedPattern] = (),
    shard: Shard = WHOLE,
) -> Report:
    """Estimate, find the outliers, judge the gates, and put it all into one report.

    ``noise_floor`` and ``findings`` are what was seen by reading the sources again. What
    ``patterns`` match in the text is sliced off.

    Raises:
        UsageError: gates are to be judged by a ``shard`` of a run, or on a text that is not there.
    """
    if judging.gates:
        check_whole(shard)
    scores = evaluation.scores
    clusters = clusters_of(alignment.table)
    everything = np.ones(len(scores), dtype=np.bool_)
    counts = count(scores, alignment, everything)
    metrics = statistics.summarise(scores, clusters, everything, is_text=tells_text(counts))
    corpora = several.corpus_results(scores, alignment, clusters)
    about_clusters = describe_clusters(scores, clusters)
    shown, flagged = find_outliers(evaluation, alignment, shown_outliers)
    lower_bounds = BOUNDED if "topk" in evaluation.kinds.values() and scores.paired else ()
    slices = slice_tokens(scores, alignment.table, alignment.names, patterns)
    results, notices = _judge(judging, metrics, counts, lower_bounds, scores, alignment, clusters)
    causes = find_causes(scores, alignment, conditions.models, slices, noise_floor)
    command: Command = "compare" if scores.paired else "perplexity"
    return Report(
        command=command,
        signature=signature(alignment, conditions, len(scores), shard),
        models=conditions.models,
        protocol=alignment.table.protocol,
        environment=conditions.environment,
        counts={**counts, "outliers": int(flagged.sum())} if scores.paired else counts,
        clusters=about_clusters,
        metrics=metrics,
        macro=several.macro_of(corpora) if len(corpora) > 1 else None,
        macro_intervals=several.intervals_of(corpora) if len(corpora) > 1 else None,
        groups=several.group_results(scores, alignment, clusters),
        corpora=corpora,
        lower_bounds=lower_bounds,
        outliers=shown,
        slices=slices,
        distribution=distribution_of(scores),
        along=along_of(scores),
        answers=find_answers(scores, alignment),
        findings=[*findings, *causes],
        gates=results,
        verdict=gate.overall(results),
        warnings=[
            *alignment.notices,
            *shard_notices(shard, len(scores)),
            *find_notices(
                evaluation,
                counts,
                about_clusters,
                metrics,
                alignment.table.protocol,
                conditions.models,
            ),
            *notices,
        ],
        until=judging.until.summary() if judging.until is not None else None,
        noise_floor=noise_floor,
        shard=None if shard == WHOLE else str(shard),
        passages=find_passages(scores, alignment),
        tokens=_tokens(evaluation, alignment, flagged, clusters),
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
    """The verdicts, and what a reader should know about them."""
    if judging.until is not None and judging.until.goal == "decided":
        return judging.until.results(), []
    baseline = None
    if judging.baseline is not None:
        baseline = judging.baseline.against(scores, alignment.table, clusters)
    rules = gate.Rules(
        excluded=counts["excluded"] or 0,
        allow_excluded=judging.allow_excluded,
        lower_bounds=lower_bounds,
        baseline_bounds=judging.baseline.report.lower_bounds if judging.baseline else (),
        confidence=judging.confidence,
        baseline=baseline,
        tokens=len(scores),
    )
    if judging.confidence is not None and judging.confidence != clusters.level:
        everything = np.ones(len(scores), dtype=np.bool_)
        clusters = replace(clusters, level=judging.confidence)
        metrics = statistics.summarise(scores, clusters, everything, is_text=tells_text(counts))
    notices = baseline.notices() if baseline is not None and judging.confidence else []
    results = [
        gate.judge_one(one, metrics, rules)
        if one.of is None
        else _judge_text(one, rules, scores, alignment, clusters)
        for one in judging.gates
    ]
    return results, notices


def _judge_text(
    one: Gate, rules: gate.Rules, scores: TokenScores, alignment: Alignment, clusters: Clusters
) -> gate.GateResult:
    """The verdict of a gate on one of several texts: by its tokens alone."""
    own = one_text.tokens_of(alignment.table, one)
    counts, metrics = several.measure(scores, alignment, clusters, own)
    return gate.judge_one(one, metrics, rules.about(counts))


def _tokens(
    evaluation: Evaluation, alignment: Alignment, flagged: Bools, clusters: Clusters
) -> Tokens:
    scores, alternatives = evaluation.scores, evaluation.alternatives
    columns = [name for name in scores.columns if name.startswith("top1") or name == "token_id"]
    documents = alignment.table.documents
    ids = set[int]()
    for _, part in scores.blocks():
        for name in columns:
            ids.update(np.unique(part[name]).tolist())
    for some in (*(one.ids for one in documents), *alternatives.ids.values()):
        ids.update(np.unique(some).tolist())
    return Tokens(
        scores=scores,
        texts={token_id: read(alignment, [token_id]) for token_id in sorted(ids)},
        documents=[document.name for document in documents],
        ids=[document.ids for document in documents],
        flagged=flagged,
        alternatives=alternatives,
        clusters=clusters,
    )
