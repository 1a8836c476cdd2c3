"""The flow: open → align → measure → conclude → keep."""

import contextlib
import gc
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from klcli.align import Alignment, align
from klcli.checks import Inputs
from klcli.errors import Notice, UsageError
from klcli.hooks import Hooks
from klcli.judge.baseline import BaselineRun
from klcli.judge.clusters import LEVEL
from klcli.judge.conclude import BOUNDED, Judging, conclude
from klcli.judge.findings import about_shift
from klcli.judge.one_text import check_table
from klcli.judge.report import Finding, Report
from klcli.judge.sequential import draw_order
from klcli.judge.until import Until
from klcli.measure.evaluate import evaluate
from klcli.measure.gathered import Evaluation
from klcli.measure.kernels.compilation import telling_of_compilation
from klcli.measure.shard import WHOLE, Shard
from klcli.measure.shift import find_shift
from klcli.request import Measurement, Recording
from klcli.runs.folder import RunFacts, RunFolder, writing
from klcli.runs.ranks import Ranks, RankStore
from klcli.sources import Source, identity_of
from klcli.sources.conditions import conditions_of, software
from klcli.sources.devices import batch_tokens_for
from klcli.sources.files.llamacpp_writer import write_base_file
from klcli.sources.given import GivenFunction, GivenLogits, GivenModel, paths_of
from klcli.sources.hf.given import as_found
from klcli.sources.hf.variants import read_differently
from klcli.sources.kinds import kind_of
from klcli.sources.opening import open_live, open_source, told_of_loading
from klcli.sources.options import LoadOptions, RecordingFormat
from klcli.sources.recording.reader import open_recording
from klcli.sources.recording.writer import Recorded, record
from klcli.text.examples import Dataset
from klcli.text.scope import Scope
from klcli.text.windows import WindowTable, plan_batches

DISAGREE = 0.05
"""Share of equal first choices below which ids may be moved."""
NOISE_WINDOWS = 8
"""Windows on which the noise floor is measured."""


def run(request: Measurement, inputs: Inputs, ranks: Ranks) -> Report:
    """Score a text with one source or two, and judge what comes of it.

    Raises:
        KlcliError: an input cannot be read or does not fit another.
    """
    began = monotonic()
    with as_found(request.specs), _opened(request, inputs) as opened:
        return _measured(_prepare(request, opened, inputs, began), ranks)


@dataclass(frozen=True, slots=True)
class ReadOnce:
    """A reference whose model has left the memory, by its predictions, and what to know of it."""

    source: Source
    notices: tuple[Notice, ...]


def read_once(request: Measurement, corpora: Sequence[Dataset], folder: Path) -> ReadOnce:
    """Record what the reference of a request predicts, to compare it with several candidates.

    Raises:
        KlcliError: the reference or the text cannot be read.
    """
    spec = request.specs[0]
    assert not isinstance(spec, GivenLogits)
    with as_found([spec]):
        return _recorded(spec, request.loads[0], corpora, request, folder)


def run_beside(reference: ReadOnce, request: Measurement, inputs: Inputs, ranks: Ranks) -> Report:
    """Compare the candidate of a request with a reference that was read before.

    Raises:
        KlcliError: the candidate cannot be read or does not fit the reference.
    """
    began = monotonic()
    with as_found(request.specs[1:]):
        return _measured(_prepare(request, _beside(reference, request), inputs, began), ranks)


def keep_predictions(request: Recording, inputs: Inputs) -> Recorded:
    """Record what a model predicts on a text.

    Raises:
        KlcliError: an input cannot be read, or the output cannot be written.
    """
    with as_found([request.model]):
        return _recorded_to(request, inputs.corpora)


def _recorded_to(request: Recording, corpora: Sequence[Dataset]) -> Recorded:
    """Record with a model, which is loaded or given."""
    output, hooks = Path(request.output), request.hooks
    with told_of_loading(request.model, hooks):
        source = open_live(request.model, request.load)
    if request.is_base_file and source.task == "masked":
        raise UsageError(
            f"a .kld file holds what causal models predict, and {request.model} is masked"
        )
    hooks.begin("reading the text")
    found = align([source], corpora, request.scope)
    table = found.table
    _announce(table, hooks)
    batch_tokens = request.batch_tokens or batch_tokens_for([source.device])
    progress = hooks.progress
    if not request.is_base_file:
        done = record(
            source,
            table,
            output,
            request.format,
            batch_tokens=batch_tokens,
            software=software(),
            progress=progress,
        )
        return replace(done, notices=found.notices)
    write_base_file(output, source, table, batch_tokens=batch_tokens, progress=progress)
    return Recorded(
        kind="llama.cpp base file",
        reason=None,
        rows=table.tokens,
        rows_before=0,
        bytes=output.stat().st_size,
        notices=found.notices,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """Sources, the text they are asked about, and what a reader should know of how they are read.

    ``scope`` says what of the text is scored.
    """

    sources: Sequence[Source]
    corpora: Sequence[Dataset]
    scope: Scope
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """All that is settled before the first token is scored.

    ``identities`` are those of the sources where the run is kept: to hash weights takes its time.
    ``began`` is when the run did, by the monotonic clock.
    """

    request: Measurement
    sources: Sequence[Source]
    alignment: Alignment
    facts: RunFacts
    judging: Judging
    batch_tokens: int
    identities: Sequence[Mapping[str, Any]]
    began: float

    @property
    def per_bin(self) -> int | None:
        """Of how many tokens of each bin of confidence alternatives are in the report; or of all.

        A run that is kept in a folder has those of all tokens there anyway.
        """
        return None if self.request.keep_top == "all" else self.facts.per_bin


@contextlib.contextmanager
def _opened(request: Measurement, inputs: Inputs) -> Iterator[_Opened]:
    """The sources of a request; one model at a time in memory where that is asked for."""
    models = [spec for spec in request.specs if kind_of(spec) == "model"]
    if request.one_at_a_time and len(models) == 2:
        with tempfile.TemporaryDirectory(prefix="klcli-") as folder:
            yield _opened_apart(request, inputs.corpora, Path(folder))
        return
    sources: list[Source] = []
    for spec, load in zip(request.specs, request.loads, strict=True):
        with told_of_loading(spec, request.hooks):
            sources.append(open_source(spec, load, sources[0] if sources else None))
    yield _Opened(sources=sources, corpora=inputs.corpora, scope=request.scope)


def _opened_apart(request: Measurement, corpora: Sequence[Dataset], folder: Path) -> _Opened:
    """A reference whose model has left the memory, its predictions in ``folder``; a candidate."""
    reference = paths_of(request.specs)[0]
    return _beside(_recorded(reference, request.loads[0], corpora, request, folder), request)


def _beside(reference: ReadOnce, request: Measurement) -> _Opened:
    candidate = request.specs[1]
    with told_of_loading(candidate, request.hooks):
        second = open_source(candidate, request.loads[1])
    scope = Scope(limit=request.scope.limit)  # the rest is settled by the recording
    sources = [reference.source, second]
    return _Opened(sources=sources, corpora=[], scope=scope, notices=reference.notices)


def _recorded(
    spec: str | GivenModel | GivenFunction,
    load: LoadOptions,
    corpora: Sequence[Dataset],
    request: Measurement,
    folder: Path,
) -> ReadOnce:
    """A recording in ``folder`` under the name of its model, which has left the memory again."""
    with told_of_loading(spec, request.hooks):
        live = open_live(spec, load)
    alignment = align([live], corpora, request.scope)
    record(
        live,
        alignment.table,
        folder,
        RecordingFormat(),
        batch_tokens=request.batch_tokens or batch_tokens_for([live.device]),
        software=software(),
        progress=request.hooks.progress,
    )
    source = open_recording(str(folder), load)
    source.stand_for(live)
    del live
    gc.collect()
    return ReadOnce(source, alignment.notices)


def _prepare(request: Measurement, opened: _Opened, inputs: Inputs, began: float) -> _Job:
    """Align the sources, and settle how they are read and judged."""
    request.hooks.begin("reading the text")
    sources = opened.sources
    found = align(sources, opened.corpora, opened.scope)
    alignment = replace(found, notices=(*opened.notices, *inputs.notices, *found.notices))
    check_table(request.limits.parsed, alignment.table)
    if any(source.is_live for source in sources):
        _announce(alignment.table, request.hooks)
    return _Job(
        request=request,
        sources=sources,
        alignment=alignment,
        facts=RunFacts(
            paired=len(sources) == 2,
            outliers=request.outliers,
            vocabulary_size=alignment.vocabulary_size,
            conditions=conditions_of(sources, request.command_line),
            notices=alignment.notices,
            slice_regex=tuple(request.slice_regex),
        ),
        judging=_judging(request, alignment.table, sources, inputs.baseline),
        batch_tokens=request.batch_tokens or batch_tokens_for(s.device for s in sources),
        identities=_identities(request, sources),
        began=began,
    )


def _identities(request: Measurement, sources: Sequence[Source]) -> list[dict[str, Any]]:
    if request.keeping.run is None:
        return []
    request.hooks.begin("hashing what predicts")
    return [identity_of(source) for source in sources]


def _judging(
    request: Measurement,
    table: WindowTable,
    sources: Sequence[Source],
    baseline: BaselineRun | None,
) -> Judging:
    limits, goal = request.limits, request.goal
    watch = None
    if goal is not None:
        watch = Until(
            goal=goal,
            gates=limits.parsed,
            alpha=1 - (limits.gate_confidence or LEVEL),
            kl_bound=request.stopping.kl_bound,
            table=table,
            lower_bounds=BOUNDED if any(source.lists_only for source in sources) else (),
        )
    return Judging(
        gates=limits.parsed,
        allow_excluded=limits.allow_excluded,
        confidence=limits.gate_confidence,
        baseline=baseline,
        until=watch,
    )


def _measured(job: _Job, ranks: Ranks) -> Report:
    """Measure this process's share of a run, gather that of all, conclude, and keep it."""
    run = job.request.keeping.run
    shard = ranks.shard or job.request.keeping.part
    folder = contextlib.nullcontext() if run is None else _folder(job, ranks.folder(run), shard)
    with folder as kept:
        store = RankStore(ranks, kept)
        with telling_of_compilation(job.request.hooks.begin):
            own = _evaluate(job, shard, store)
        evaluation = store.gather(own, job.alignment.table, per_bin=job.per_bin)
        noise_floor = _noise_floor(job)
        concluded = _concluded(job, evaluation, noise_floor)
        report = replace(concluded, seconds=round(monotonic() - job.began, 2))
        if kept is not None:
            kept.complete(report.to_dict())
    if run is not None and ranks.joins:
        with _folder(job, Path(run), WHOLE) as whole:
            whole.fill(store.batches, report.to_dict())
    return report


def _evaluate(job: _Job, shard: Shard, store: RankStore) -> Evaluation:
    return evaluate(
        job.alignment.table,
        job.sources,
        batch_tokens=job.batch_tokens,
        vocabulary_size=job.alignment.vocabulary_size,
        per_bin=job.per_bin,
        progress=job.request.hooks.progress,
        plan=_plan(job),
        shard=shard,
        store=store,
        watch=job.judging.until,
    )


def _plan(job: _Job) -> list[list[int]]:
    """Which windows are read together; those of a run that may end early are drawn at random."""
    windows = job.alignment.table.windows
    if job.judging.until is None:
        return plan_batches(windows, job.batch_tokens)
    order = draw_order(len(windows), job.request.stopping.seed)
    drawn = plan_batches([windows[n] for n in order], job.batch_tokens, by_length=False)
    return [[order[place] for place in batch] for batch in drawn]


def _concluded(job: _Job, evaluation: Evaluation, noise_floor: dict[str, Any] | None) -> Report:
    notices = (*job.alignment.notices, *_same_model(job.sources, evaluation))
    return conclude(
        evaluation,
        replace(job.alignment, table=evaluation.table, notices=notices),
        job.facts.conditions,
        job.judging,
        shown_outliers=job.facts.outliers,
        noise_floor=noise_floor,
        findings=_shifted(job, evaluation),
        patterns=job.request.patterns,
        shard=job.request.keeping.part,
    )


def _same_model(sources: Sequence[Source], evaluation: Evaluation) -> Iterator[Notice]:
    """That the candidate is the reference, where nothing differs: perhaps it is a wrong path."""
    is_live = len(sources) == 2 and all(source.is_live for source in sources)
    if not is_live or evaluation.scores["kl"].any():
        return
    reference, candidate = sources
    if reference.digest() == candidate.digest():
        yield Notice(
            code="same_model",
            message=f"{reference.name} and {candidate.name} have the same weights, to the last bit",
        )


def _shifted(job: _Job, evaluation: Evaluation) -> list[Finding]:
    """That the ids of one model are moved by one, where the models agree on nearly nothing."""
    scores = evaluation.scores
    if not scores.paired:
        return []
    agreement = float((scores["top1_reference"] == scores["top1_candidate"]).mean())
    if agreement >= DISAGREE:
        return []
    found = find_shift(job.sources, evaluation.table)
    return [] if found is None else [about_shift(found)]


def _noise_floor(job: _Job) -> dict[str, Any] | None:
    """The KL of the reference from itself, read in another way, on the first windows."""
    by = job.request.noise_floor
    if by is None:
        return None
    job.request.hooks.begin("measuring the noise floor")
    reference, table = job.sources[0], job.alignment.table
    spec = job.request.specs[0]
    assert isinstance(spec, str | GivenModel)  # others cannot be read differently
    again = read_differently(reference, spec, by, job.request.loads[0])
    found = evaluate(
        replace(table, windows=table.windows[:NOISE_WINDOWS]),
        [reference, again],
        batch_tokens=job.batch_tokens,
        vocabulary_size=job.alignment.vocabulary_size,
    )
    kl = found.scores["kl"][~found.scores["excluded"]]
    return {"by": by, "kl": float(kl.mean()) if len(kl) else math.nan, "tokens": len(kl)}


def _folder(job: _Job, folder: Path, shard: Shard) -> contextlib.AbstractContextManager[RunFolder]:
    """A folder to keep a shard of the run in."""
    table = job.alignment.table
    request = {
        "models": job.identities,
        "batch_tokens": job.batch_tokens,
        "keep": job.facts.per_bin,
        "shard": None if shard == WHOLE else str(shard),
        "limit": table.protocol.get("limit"),
        "masking": table.masking,
    }
    return writing(folder, request, table, job.alignment.names, job.facts)


def _announce(table: WindowTable, hooks: Hooks) -> None:
    """Say how much a masked model has to read: a text of n tokens is n texts to it."""
    if table.windows[0].masking is None:
        return
    rows = sum(window.forward_rows for window in table.windows)
    longest = max(len(window.inputs) for window in table.windows)
    hooks.tell(
        f"{table.tokens:,} tokens, hidden in {rows:,} forward rows of up to {longest:,} tokens"
    )
