"""A saved run, looked at again: under other gates, or joined from its shards. No model runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from klcli.align.alignment import Alignment
from klcli.errors import UsageError
from klcli.judge.baseline import open_baseline
from klcli.judge.clusters import LEVEL
from klcli.judge.conclude import Judging, conclude
from klcli.judge.gate import Rules, judge, overall
from klcli.judge.report import Report, read_report
from klcli.judge.statistics import COMPARE_METRICS, PERPLEXITY_METRICS
from klcli.request import Limits, Metrics, Review
from klcli.runs.folder import REPORT, RUN, SavedRun, check_shards, join_runs, joined, open_run


def review(request: Review) -> Report:
    """Show a saved run, or the report of one, under the limits of a request.

    Raises:
        KlcliError: it cannot be read, or what is asked for needs tokens that are not there.
    """
    if request.run.endswith(".json"):
        return _judged_again(read_report(request.run), request)
    saved = open_run(Path(request.run))
    limits = request.limits(_metrics(paired=saved.facts.paired))
    outliers = saved.facts.outliers if request.outliers is None else request.outliers
    before = read_report(str(saved.folder / REPORT))
    return replace(_concluded([saved], limits, outliers), noise_floor=before.noise_floor)


def merge(runs: Sequence[str], output: str) -> Report:
    """Join the shards of one run into one: the same report as of one run.

    Raises:
        KlcliError: a shard is missing, incomplete, twice there, or of another run.
    """
    saved = [open_run(Path(run)) for run in runs]
    check_shards(saved)
    RUN.check_place(Path(output))
    facts = saved[0].facts
    whole = _concluded(saved, Limits(metrics=_metrics(paired=facts.paired)), facts.outliers)
    join_runs(saved, Path(output), whole.to_dict())
    return whole


def _metrics(*, paired: bool) -> Metrics:
    return COMPARE_METRICS if paired else PERPLEXITY_METRICS


def _concluded(runs: Sequence[SavedRun], limits: Limits, outliers: int) -> Report:
    """The report of a saved run, or of all shards of one."""
    facts = runs[0].facts
    evaluation = joined(runs, replace(facts, outliers=outliers).per_bin)
    alignment = Alignment(
        table=evaluation.table,
        names=runs[0].names,
        vocabulary_size=facts.vocabulary_size,
        notices=facts.notices,
    )
    judging = Judging(
        gates=limits.parsed,
        allow_excluded=limits.allow_excluded,
        confidence=limits.gate_confidence,
        baseline=open_baseline(limits.baseline),
    )
    return conclude(evaluation, alignment, facts.conditions, judging, shown_outliers=outliers)


def _judged_again(given: Report, request: Review) -> Report:
    """A report that was read from a file, under other gates."""
    limits = request.limits(_metrics(paired=given.command == "compare"))
    if limits.gate_confidence not in (None, LEVEL):
        raise UsageError(f"a report has intervals of {LEVEL:.0%} only: give the run's folder")
    if limits.baseline is not None:
        raise UsageError("a report holds no tokens to pair with a baseline: give the run's folder")
    if not limits.parsed:
        return given
    rules = Rules(
        excluded=given.counts["excluded"] or 0,
        allow_excluded=limits.allow_excluded,
        lower_bounds=given.lower_bounds,
        confidence=limits.gate_confidence,
        tokens=given.counts["tokens"] or 0,
    )
    results = judge(limits.parsed, given.metrics, rules)
    return replace(given, gates=results, verdict=overall(results))
