"""A saved run, looked at again: under other gates, or joined from its shards. No model runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from klcli.errors import UsageError
from klcli.judge.clusters import LEVEL
from klcli.judge.conclude import Judging
from klcli.judge.gate import Rules, judge_one, overall
from klcli.judge.metrics import fields_of
from klcli.judge.one_text import text_of
from klcli.judge.report import Report
from klcli.judge.saved import conclude_runs, open_baseline, read_saved_report
from klcli.measure.shard import check_whole, parse_shard
from klcli.request import Limits, Review
from klcli.runs.folder import check_shards, join_runs, open_run
from klcli.runs.format import RUN
from klcli.storage.places import check_apart


def review(request: Review) -> Report:
    """Show a saved run, or the report of one, under the limits of a request.

    Raises:
        KlcliError: it cannot be read, or what is asked for needs tokens that are not there.
    """
    if request.run.endswith(".json"):
        return _judged_again(read_saved_report(request.run), request)
    saved = open_run(Path(request.run))
    limits = request.limits(fields_of(paired=saved.facts.paired))
    outliers = saved.facts.outliers if request.outliers is None else request.outliers
    return conclude_runs([saved], _judging(limits), outliers, request.keep_top, request.patterns)


def merge(runs: Sequence[str], output: str) -> Report:
    """Join the shards of one run into one: the same report as of one run.

    Raises:
        KlcliError: a shard is missing, incomplete, twice there, or of another run.
    """
    check_apart("--run", output, runs)
    saved = [open_run(Path(run)) for run in runs]
    check_shards(saved)
    RUN.check_place(Path(output))
    whole = conclude_runs(saved, Judging(), saved[0].facts.outliers)
    join_runs(saved, Path(output), whole.to_dict())
    return whole


def _judging(limits: Limits) -> Judging:
    return Judging(
        gates=limits.parsed,
        allow_excluded=limits.allow_excluded,
        confidence=limits.gate_confidence,
        baseline=open_baseline(limits.baseline),
    )


def _judged_again(given: Report, request: Review) -> Report:
    """A report that was read from a file, under other gates."""
    limits = request.limits(fields_of(paired=given.command == "compare"))
    if request.patterns:
        raise UsageError(
            "a report holds no tokens to slice by --slice-regex: give the run's folder"
        )
    if limits.parsed and given.shard is not None:
        check_whole(parse_shard(given.shard))
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
    results = []
    for gate in limits.parsed:
        text = text_of(given, gate)
        results.append(judge_one(gate, text.metrics, rules.about(text.counts)))
    return replace(given, gates=results, verdict=overall(results))
