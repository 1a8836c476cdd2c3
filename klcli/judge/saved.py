"""Saved runs and reports, read again. A number is believed if a checksum vouches for it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from klcli.align.alignment import Alignment
from klcli.choices import KeepTop
from klcli.judge.baseline import BaselineRun
from klcli.judge.conclude import Judging, conclude
from klcli.judge.patterns import NamedPattern, parse_patterns
from klcli.judge.report import Report, read_report
from klcli.measure.shard import WHOLE, check_whole, parse_shard
from klcli.runs.folder import REPORT, SavedRun, facts_of, joined, open_run
from klcli.runs.format import RUN
from klcli.storage.files import check_file


def conclude_runs(
    runs: Sequence[SavedRun],
    judging: Judging,
    outliers: int,
    keep_top: KeepTop = "outliers",
    patterns: Sequence[NamedPattern] = (),
) -> Report:
    """The report of a saved run, or of all shards of one, worked out of their parts.

    Without ``patterns`` those of the run are sliced off. What only reading the models again would
    show is taken from the report of a single run.

    Raises:
        SourceError: a part is missing, truncated or altered.
        UsageError: gates are to be judged by a shard.
    """
    facts = facts_of(runs)
    per_bin = replace(facts, outliers=outliers).per_bin
    evaluation = joined(runs, None if keep_top == "all" else per_bin)
    alignment = Alignment(
        table=evaluation.table,
        names=runs[0].names,
        vocabulary_size=facts.vocabulary_size,
        notices=facts.notices,
    )
    printed = _printed(runs[0]) if len(runs) == 1 else None
    report = conclude(
        evaluation,
        alignment,
        facts.conditions,
        judging,
        shown_outliers=outliers,
        noise_floor=printed.noise_floor if printed else None,
        findings=[one for one in printed.findings if one.cause == "shift"] if printed else (),
        patterns=patterns or parse_patterns(facts.slice_regex),
        shard=runs[0].shard if len(runs) == 1 else WHOLE,
    )
    return replace(report, seconds=printed.seconds) if printed else report


def open_baseline(path: str | None) -> BaselineRun | None:
    """The earlier run that a user named: its folder, or its report (.json); None without one.

    Raises:
        KlcliError: it cannot be read, is not complete, or is a shard.
    """
    if path is None:
        return None
    if path.endswith(".json"):
        report, run = read_saved_report(path), None
        check_whole(WHOLE if report.shard is None else parse_shard(report.shard))
    else:
        run = open_run(Path(path))
        check_whole(run.shard)
        report = _report_of(run)
    return BaselineRun(name=path, report=report, run=run)


def read_saved_report(path: str) -> Report:
    """A report (.json); one in the folder of a run is held against what the run says of it.

    Those of klcli 0.1.0 say neither their checksum nor that they are of a shard; their run does.

    Raises:
        KlcliError: it cannot be read, is not a report, or was altered in its folder.
    """
    file = Path(path)
    report = read_report(path)
    if file.name != REPORT or not RUN.is_at(file.parent):
        return report
    manifest = RUN.read(file.parent)
    if REPORT in manifest["files"]:
        check_file(file, manifest["files"][REPORT])
        return report
    return replace(report, shard=manifest["request"]["shard"])


def _printed(run: SavedRun) -> Report | None:
    """The report of a run as it was printed; None where nothing vouches for it."""
    return read_report(str(run.folder / REPORT)) if run.has_sealed_report else None


def _report_of(run: SavedRun) -> Report:
    """The report of a run: as it was printed, or worked out again where nothing vouches for it."""
    return _printed(run) or conclude_runs([run], Judging(), 0)
