"""What klcli does, as functions: ``compare``, ``perplexity`` and ``record``."""

import contextlib
import gc
import math
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, get_args

import torch

import klcli
from klcli.errors import Notice, UsageError
from klcli.judge.baseline import BaselineRun
from klcli.judge.clusters import LEVEL
from klcli.judge.conclude import BOUNDED, Conditions, Judging, conclude
from klcli.judge.gate import Gate, Rules, interval_fields, judge, overall, parse_gate
from klcli.judge.report import Report, read_report
from klcli.judge.sequential import draw_order
from klcli.judge.slices import check_slices
from klcli.judge.statistics import COMPARE_METRICS, PERPLEXITY_METRICS
from klcli.judge.until import Until, parse_until
from klcli.measure.align import Alignment, Scope, align
from klcli.measure.evaluate import Progress, evaluate
from klcli.measure.ranks import Ranks, Share, together, world_size
from klcli.measure.run import (
    REPORT,
    WHOLE,
    RunFolder,
    SavedRun,
    check_run_place,
    check_shards,
    gather,
    join_runs,
    open_run,
    parse_shard,
    writing,
)
from klcli.measure.scores import SIDES
from klcli.sources import OpenSource, kind_of, open_source
from klcli.sources.loading import NoiseFloor, load_model, read_differently
from klcli.sources.model import BATCH_TOKENS, ModelSource
from klcli.sources.options import DtypeName, LoadOptions, TaskChoice, Values
from klcli.sources.recorder import KindChoice, Recorded, check_place
from klcli.sources.recorder import record as write_recording
from klcli.sources.recording import RecordingSource, masking_of
from klcli.sources.toplogprobs import TopLogprobsSource
from klcli.text.corpus import STDIN, Corpus, DocumentSplit, read_corpus
from klcli.text.masking import Pll
from klcli.text.windows import Bos, ProtocolName, SpecialTokens, WindowTable, plan_batches

DEFAULT_OUTLIERS = 10
NOISE_WINDOWS = 8
"""Windows on which the noise floor is measured."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "protocol": get_args(ProtocolName),
    "bos": get_args(Bos),
    "special_tokens": get_args(SpecialTokens),
    "documents": get_args(DocumentSplit),
    "dtype": get_args(DtypeName),
    "values": get_args(Values),
    "task": get_args(TaskChoice),
    "pll": get_args(Pll),
    "noise_floor": get_args(NoiseFloor),
}
DEFAULT_TOP_K = 1024


class RunOptions(TypedDict, total=False):
    """Keyword arguments of ``perplexity``, and with those of ``CompareOptions`` of ``compare``.

    Which tokens are scored: ``protocol`` ("rolling" or "llama.cpp"), ``context``, ``stride``,
    ``score_from``, ``bos`` ("auto", "none", "document" or "window"), ``special_tokens`` ("text" or
    "parse"), ``documents`` ("file", "line" or "blank"), ``limit`` (windows of each corpus); for
    masked models ``pll`` ("original" or "word") and ``mask_every`` (hide every so manyth token at
    once, an approximation).

    How sources are opened: ``task`` ("auto", "causal" or "masked"), ``dtype`` ("auto", "float32",
    "bfloat16" or "float16"), ``device``, ``revision``, ``trust_remote_code``, ``compile`` (the
    blocks of models, with torch.compile); for logit files ``values`` ("logits", "log_probs" or
    "probs"), ``token_ids`` (a .npy file) and ``tokenizer`` (a model).

    ``batch_tokens`` is how many ids a model reads at once. ``gates`` are texts such as
    "kl.mean<=0.01"; ``allow_excluded`` lets them pass although tokens were left out. With
    ``gate_confidence`` (0.95, say) intervals decide, and a gate may be inconclusive. ``baseline``
    is an earlier run that gates such as "kl.mean<=1.1*baseline" speak of: its folder, or its report
    (.json). ``until`` ends the run early: "decided", when every gate is, or "kl.mean±0.001", when
    that is known so well, with ``gate_confidence`` (0.95 if not given), windows being drawn at
    random with ``seed``; ``kl_bound`` is the most a token's KL can be, if you know it. ``run`` is a
    folder to keep the run in, which goes on there if it was killed; ``shard`` "3/16" scores that
    part of it only, and ``merge`` joins them. ``slices``
    ("confidence", "position", "kind") are those that tables show. ``progress`` is called with the
    tokens scored so far and the tokens in all; ``status`` with what is being done before that;
    ``announce`` with what a user should know before a long run.
    """

    protocol: ProtocolName | None
    context: int | None
    stride: int | None
    score_from: int | None
    bos: Bos
    special_tokens: SpecialTokens | None
    documents: DocumentSplit | None
    limit: int | None
    pll: Pll | None
    mask_every: int | None
    task: TaskChoice
    dtype: DtypeName
    device: str
    revision: str | None
    trust_remote_code: bool
    compile: bool
    values: Values
    token_ids: str | None
    tokenizer: str | None
    batch_tokens: int | None
    gates: Sequence[str]
    slices: Sequence[str]
    allow_excluded: bool
    gate_confidence: float | None
    baseline: str | None
    until: str | None
    kl_bound: float | None
    seed: int
    run: str | None
    shard: str | None
    progress: Progress | None
    status: Callable[[str], None] | None
    announce: Callable[[str], None] | None


class CompareOptions(RunOptions, total=False):
    """Keyword arguments of ``compare`` beside those of ``RunOptions``.

    ``outliers`` is how many outlier tokens are reported. ``one_at_a_time`` keeps one model in
    memory at a time: the reference goes through a temporary recording. ``noise_floor`` ("batch",
    "dtype" or "attention") scores the reference against itself too, read in that other way. What
    stands for one side only goes before what stands for both.
    """

    outliers: int
    one_at_a_time: bool
    noise_floor: NoiseFloor | None
    reference_dtype: DtypeName | None
    candidate_dtype: DtypeName | None
    reference_device: str | None
    candidate_device: str | None
    reference_revision: str | None
    candidate_revision: str | None
    reference_values: Values | None
    candidate_values: Values | None
    reference_token_ids: str | None
    candidate_token_ids: str | None


def compare(
    reference: str,
    candidate: str,
    corpus: Paths = (),
    **options: Unpack[CompareOptions],
) -> Report:
    """Compare what two sources predict at every scored token of a text.

    Args:
        reference, candidate: a Hub id, a model folder, a ``.gguf`` file, a recording or a logit
            file each.
        corpus: path of a text or several, "-" for stdin. Not needed with a recording or a logit
            file, which bring their tokens.
        options: see ``CompareOptions`` and ``RunOptions``.

    Returns:
        The report: every divergence is KL(reference‖candidate), in nats.

    Raises:
        KlcliError: an input cannot be read or does not fit the other.
    """
    _check_options(options, CompareOptions)
    with together(options.get("run")) as ranks:
        return _compare(reference, candidate, corpus, options, ranks)


def perplexity(model: str, corpus: Paths = (), **options: Unpack[RunOptions]) -> Report:
    """Score every token of a text with one source: NLL, perplexity, bits per byte.

    Args:
        model: a Hub id, a model folder, a ``.gguf`` file, a recording or a logit file.
        corpus: path of a text or several, "-" for stdin. Not needed with a recording or logit file.
        options: see ``RunOptions``.

    Raises:
        KlcliError: an input cannot be read.
    """
    _check_options(options, RunOptions)
    with together(options.get("run")) as ranks:
        gates = _gates(options, PERPLEXITY_METRICS)
        corpora = _read(corpus, options)
        (load,) = _load_options(options, (model,))
        (options.get("status") or _silent)(f"loading {model}")
        source = open_source(model, load)
        return _report([source], corpora, _scope(options), options, gates, ranks)


def report(
    run: str,
    *,
    gates: Sequence[str] = (),
    gate_confidence: float | None = None,
    baseline: str | None = None,
    allow_excluded: bool = False,
    outliers: int | None = None,
    slices: Sequence[str] = (),
) -> Report:
    """Show a saved run again, under these gates.

    Args:
        run: a folder kept with ``run``, or a report (.json), which holds no single tokens.
        gates, gate_confidence, baseline, allow_excluded, outliers, slices: as for ``compare``.

    Raises:
        KlcliError: it cannot be read, or what is asked for needs tokens that are not there.
    """
    options = {
        "gates": gates,
        "gate_confidence": gate_confidence,
        "baseline": baseline,
        "allow_excluded": allow_excluded,
        "slices": slices,
    }
    _check_confidence(options)
    if run.endswith(".json"):
        return _judged_again(read_report(run), options)
    saved = open_run(Path(run))
    shown = saved.manifest["keep"] // 2 if outliers is None else outliers
    again = _concluded([saved], options, shown)
    before = read_report(str(saved.folder / REPORT))
    return replace(again, noise_floor=before.noise_floor)


def merge(runs: Sequence[str], output: str) -> Report:
    """Join the shards of one run, as ``shard`` split it, into one: the same report as of one run.

    Args:
        runs: the folders of all shards.
        output: the folder to keep the whole run in.

    Raises:
        KlcliError: a shard is missing, incomplete, twice there, or of another run.
    """
    saved = [open_run(Path(run)) for run in runs]
    check_shards(saved)
    check_run_place(Path(output))
    whole = _concluded(saved, {}, saved[0].manifest["keep"] // 2)
    join_runs(saved, Path(output), whole.to_dict())
    return whole


def _judged_again(given: Report, options: Mapping[str, Any]) -> Report:
    """A report that was read from a file, under other gates."""
    known = COMPARE_METRICS if given.command == "compare" else PERPLEXITY_METRICS
    gates = _gates(options, known)
    if options.get("gate_confidence") not in (None, LEVEL):
        raise UsageError(f"a report has intervals of {LEVEL:.0%} only: give the run's folder")
    if options.get("baseline") is not None:
        raise UsageError("a report holds no tokens to pair with a baseline: give the run's folder")
    if relative := [gate.text for gate in gates if gate.relative]:
        raise UsageError(f"--gate {relative[0]!r} speaks of a baseline: give the run's folder")
    shown_slices = check_slices(_several(options.get("slices", ())))
    given = replace(given, shown_slices=shown_slices)
    if not gates:
        return given
    rules = Rules(
        excluded=given.counts["excluded"] or 0,
        allow_excluded=options["allow_excluded"],
        lower_bounds=given.lower_bounds,
        confidence=options.get("gate_confidence"),
        tokens=given.counts["tokens"] or 0,
    )
    results = judge(gates, given.metrics, rules)
    return replace(given, gates=results, verdict=overall(results))


def _concluded(runs: Sequence[SavedRun], options: Mapping[str, Any], outliers: int) -> Report:
    """The report of a saved run, or of all shards of one."""
    manifest = runs[0].manifest
    gates = _gates(options, COMPARE_METRICS if runs[0].paired else PERPLEXITY_METRICS)
    evaluation = gather(list(runs), keep=2 * outliers)
    alignment = Alignment(
        table=evaluation.table,
        names=runs[0].names,
        vocabulary_size=manifest["vocabulary_size"],
        notices=tuple(Notice(**notice) for notice in manifest["notices"]),
    )
    return conclude(
        evaluation,
        alignment,
        Conditions(models=manifest["models"], environment=manifest["environment"]),
        _judging(gates, options, evaluation.table, paired=runs[0].paired),
        shown_outliers=outliers,
        shown_slices=check_slices(_several(options.get("slices", ()))),
    )


def record(
    model: str,
    corpus: Paths,
    output: str,
    *,
    kind: KindChoice = "auto",
    top_k: int = DEFAULT_TOP_K,
    **options: Unpack[RunOptions],
) -> Recorded:
    """Save what a model predicts on a text, to compare it later without the model.

    ``output`` is a folder, klcli's own recording, or a file that ends in ``.kld``, for llama.cpp. A
    recording that was killed goes on where it stopped; a complete one is left as it is.

    Args:
        model: a Hub id, a model folder or a ``.gguf`` file.
        corpus: path of a text or several, "-" for stdin.
        output: where to.
        kind: "hidden" keeps the final hidden states and the output head once, small and exact;
            "logits" the logits; "topk" the ``top_k`` most probable tokens, which give lower bounds.
            "auto" is hidden where a probe proves the head, else logits.
        top_k: how many tokens "topk" keeps.
        options: see ``RunOptions``; gates do not apply.

    Raises:
        KlcliError: an input cannot be read, or the output cannot be written.
    """
    _check_options(options, RunOptions)
    if world_size() > 1:
        raise UsageError("a recording is made by one process: run klcli record without torchrun")
    _check_kind(kind, top_k)
    tell = options.get("status") or _silent
    if output.endswith(".kld"):
        _refuse_for_base_file(options, kind)
        options = {**options, "protocol": "llama.cpp"}
    else:
        check_place(Path(output))
    corpora = _read(corpus, options)
    (load,) = _load_options(options, (model,))
    tell(f"loading {model}")
    source = load_model(model, load)
    if output.endswith(".kld") and source.task == "masked":
        raise UsageError(f"a .kld file holds what causal models predict, and {model} is masked")
    tell("reading the text")
    table = align([source], corpora, _scope(options)).table
    _announce(table, options)
    if output.endswith(".kld"):
        return _record_base_file(source, table, Path(output), options)
    return write_recording(
        source,
        table,
        Path(output),
        kind=kind,
        top_k=top_k,
        batch_tokens=options.get("batch_tokens") or _batch_tokens([source]),
        software=_environment(),
        progress=options.get("progress"),
    )


def _check_kind(kind: str, top_k: int) -> None:
    if kind not in get_args(KindChoice):
        raise UsageError(f"--kind {kind}: one of {', '.join(get_args(KindChoice))} is wanted")
    if top_k < 1:
        raise UsageError(f"--top-k must be at least 1, not {top_k}")


def _refuse_for_base_file(options: RunOptions, kind: KindChoice) -> None:
    if (protocol := options.get("protocol")) not in (None, "llama.cpp"):
        raise UsageError(f"a .kld file has the protocol llama.cpp: leave out --protocol {protocol}")
    if options.get("score_from") is not None or options.get("stride") is not None:
        raise UsageError("a .kld file scores the second half of disjoint chunks: leave out "
                         "--score-from and --stride")  # fmt: skip
    if kind != "auto":
        raise UsageError(f"a .kld file holds 16-bit codes: leave out --kind {kind}")


def _record_base_file(
    source: ModelSource, table: WindowTable, path: Path, options: RunOptions
) -> Recorded:
    from klcli.sources.llamacpp import write_base_file

    write_base_file(
        path,
        source,
        table,
        batch_tokens=options.get("batch_tokens") or _batch_tokens([source]),
        progress=options.get("progress"),
    )
    return Recorded(
        kind="llama.cpp base file",
        reason=None,
        rows=table.tokens,
        rows_before=0,
        bytes=path.stat().st_size,
    )


def _compare(
    reference: str, candidate: str, corpus: Paths, options: CompareOptions, ranks: Ranks
) -> Report:
    gates = _gates(options, COMPARE_METRICS)
    corpora = _read(corpus, options)
    loads = _load_options(options, (reference, candidate))
    tell = options.get("status") or _silent
    if options.get("one_at_a_time") and kind_of(reference) == kind_of(candidate) == "model":
        with tempfile.TemporaryDirectory(prefix="klcli-") as folder:
            first, notices = _recorded_source(reference, loads[0], corpora, options, Path(folder))
            tell(f"loading {candidate}")
            second = open_source(candidate, loads[1])
            scope = Scope(limit=options.get("limit"))
            return _report([first, second], [], scope, options, gates, ranks, notices)
    sources = []
    for spec, load in zip((reference, candidate), loads, strict=True):
        tell(f"loading {spec}")
        sources.append(open_source(spec, load))
    return _report(sources, corpora, _scope(options), options, gates, ranks)


def _recorded_source(
    spec: str,
    load: LoadOptions,
    corpora: Sequence[Corpus],
    options: CompareOptions,
    folder: Path,
) -> tuple[OpenSource, tuple[Notice, ...]]:
    """A reference whose model has left the memory again: what it predicts is in ``folder``."""
    (options.get("status") or _silent)(f"loading {spec}")
    live = load_model(spec, load)
    alignment = align([live], corpora, _scope(options))
    write_recording(
        live,
        alignment.table,
        folder,
        kind="auto",
        top_k=DEFAULT_TOP_K,
        batch_tokens=options.get("batch_tokens") or _batch_tokens([live]),
        software=_environment(),
        progress=options.get("progress"),
    )
    source = open_source(str(folder), load)
    source.name, source.provenance = live.name, live.provenance
    del live
    gc.collect()
    return source, alignment.notices


def _report(
    sources: Sequence[OpenSource],
    corpora: Sequence[Corpus],
    scope: Scope,
    options: CompareOptions | RunOptions,
    gates: Sequence[Gate],
    ranks: Ranks,
    notices: tuple[Notice, ...] = (),
) -> Report:
    (options.get("status") or _silent)("reading the text")
    alignment = align(sources, corpora, scope)
    alignment = replace(alignment, notices=(*notices, *alignment.notices))
    shown: int = cast("CompareOptions", options).get("outliers", DEFAULT_OUTLIERS)
    keep = 2 * shown
    _check_noise_floor(sources, options)
    judging = _judging(
        gates,
        options,
        alignment.table,
        paired=len(sources) == 2,
        lower_bounds=BOUNDED if any(map(_is_list, sources)) else (),
    )
    if any(isinstance(source, ModelSource) for source in sources):
        _announce(alignment.table, options)
    run = options.get("run")
    shard = ranks.part or parse_shard(options.get("shard"), run)
    kept_in = partial(_kept_run, sources, alignment, options, keep=keep)
    with kept_in(ranks.folder(run), shard) if run else contextlib.nullcontext() as kept:
        share = Share(ranks, kept)
        own = evaluate(
            alignment.table,
            sources,
            batch_tokens=_budget(sources, options),
            vocabulary_size=alignment.vocabulary_size,
            keep=keep,
            progress=options.get("progress"),
            plan=_plan(alignment.table, sources, options, at_random=judging.until is not None),
            shard=shard,
            store=share,
            watch=judging.until,
        )
        evaluation = share.gather(own, alignment.table, keep=keep)
        report = conclude(
            evaluation,
            replace(alignment, table=evaluation.table),
            _conditions(sources),
            judging,
            shown_outliers=shown,
            shown_slices=check_slices(_several(options.get("slices", ()))),
            noise_floor=_noise_floor(sources, alignment, options),
        )
        if kept is not None:
            kept.complete(report.to_dict())
    if run and ranks.joins:
        with kept_in(Path(run), WHOLE) as whole:
            whole.fill(share.batches, report.to_dict())
    return report


def _judging(
    gates: Sequence[Gate],
    options: Mapping[str, Any],
    table: WindowTable,
    *,
    paired: bool,
    lower_bounds: Sequence[str] = (),
) -> Judging:
    until, confidence = options.get("until"), options.get("gate_confidence")
    watch = None
    if until is not None:
        known = COMPARE_METRICS if paired else PERPLEXITY_METRICS
        watch = Until(
            goal=parse_until(until, gates, known=known),
            gates=gates,
            alpha=1 - (confidence or LEVEL),
            kl_bound=options.get("kl_bound"),
            table=table,
            lower_bounds=lower_bounds,
        )
    return Judging(
        gates=gates,
        allow_excluded=options.get("allow_excluded", False),
        confidence=confidence,
        baseline=_open_baseline(options.get("baseline")),
        until=watch,
    )


def _open_baseline(path: str | None) -> BaselineRun | None:
    if path is None:
        return None
    if path.endswith(".json"):
        return BaselineRun(name=path, report=read_report(path), run=None)
    run = open_run(Path(path))
    return BaselineRun(name=path, report=read_report(str(run.folder / REPORT)), run=run)


def _plan(
    table: WindowTable,
    sources: Sequence[OpenSource],
    options: Mapping[str, Any],
    *,
    at_random: bool,
) -> list[list[int]]:
    """Which windows are read together, at random in the order in which they are drawn."""
    budget = _budget(sources, options)
    if not at_random:
        return plan_batches(table.windows, budget)
    order = draw_order(len(table.windows), options.get("seed", 0))
    drawn = plan_batches([table.windows[n] for n in order], budget, by_length=False)
    return [[order[place] for place in batch] for batch in drawn]


def _kept_run(
    sources: Sequence[OpenSource],
    alignment: Alignment,
    options: Mapping[str, Any],
    folder: Path,
    shard: tuple[int, int],
    *,
    keep: int,
) -> contextlib.AbstractContextManager[RunFolder]:
    """A folder to keep a shard of a run in."""
    conditions = _conditions(sources)
    request = {
        "models": [_identity(source) for source in sources],
        "batch_tokens": _budget(sources, options),
        "keep": keep,
        "shard": None if shard == WHOLE else f"{shard[0]}/{shard[1]}",
        "limit": alignment.table.protocol.get("limit"),
        "masking": masking_of(alignment.table),
    }
    about = {
        "paired": len(sources) == 2,
        "keep": keep,
        "vocabulary_size": alignment.vocabulary_size,
        "models": conditions.models,
        "environment": conditions.environment,
        "notices": [asdict(notice) for notice in alignment.notices],
    }
    return writing(folder, request, alignment.table, alignment.names, about)


def _identity(source: OpenSource) -> dict[str, Any]:
    """What makes a source the same one when a run goes on."""
    about = {key: value for key, value in source.provenance.items() if key != "device"}
    if isinstance(source, ModelSource):
        about["weights"] = source.weights_fingerprint()
    return about


def _is_list(source: OpenSource) -> bool:
    """Whether a source knows its most probable tokens only."""
    kind = source.kind if isinstance(source, RecordingSource) else None
    return kind == "topk" or isinstance(source, TopLogprobsSource)


def _check_noise_floor(sources: Sequence[OpenSource], options: Mapping[str, Any]) -> None:
    if options.get("noise_floor") is not None and not isinstance(sources[0], ModelSource):
        raise UsageError(f"--noise-floor reads the REFERENCE again: {sources[0].name} is no model")


def _noise_floor(
    sources: Sequence[OpenSource], alignment: Alignment, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The KL of the reference from itself, read in another way, on the first windows."""
    by: NoiseFloor | None = options.get("noise_floor")
    if by is None:
        return None
    reference = sources[0]
    assert isinstance(reference, ModelSource)
    (options.get("status") or _silent)("measuring the noise floor")
    table = replace(alignment.table, windows=alignment.table.windows[:NOISE_WINDOWS])
    (load, _) = _load_options(options, (reference.name, reference.name))
    again = read_differently(reference, by, load)
    found = evaluate(
        table,
        [reference, again],
        batch_tokens=_budget(sources, options),
        vocabulary_size=alignment.vocabulary_size,
    )
    return {"by": by, "kl": float(found.scores["kl"].mean()), "tokens": len(found.scores)}


def _budget(sources: Sequence[OpenSource | ModelSource], options: Mapping[str, Any]) -> int:
    given: int | None = options.get("batch_tokens")
    return given or _batch_tokens(sources)


def _check_options(options: Mapping[str, Any], known: type) -> None:
    if unknown := sorted(set(options) - set(known.__annotations__)):
        raise TypeError(f"unknown options: {', '.join(unknown)}")
    check_slices(_several(options.get("slices", ())))
    _check_counts(options)
    _check_choices(options)
    _check_confidence(options)


def _read(corpus: Paths, options: Mapping[str, Any]) -> list[Corpus]:
    """Read the corpora before anything large is loaded."""
    paths = [corpus] if isinstance(corpus, str | os.PathLike) else corpus
    names = [os.fspath(path) for path in paths]
    if names.count(STDIN) > 1:
        raise UsageError("stdin (-) can be read once: name it once")
    return [read_corpus(name, _documents(options)) for name in names]


def _documents(options: Mapping[str, Any]) -> DocumentSplit:
    given: DocumentSplit | None = options.get("documents")
    return given or ("line" if options.get("protocol") == "evaluate" else "file")


def _gates(options: Mapping[str, Any], metrics: Mapping[str, tuple[str, ...]]) -> list[Gate]:
    gates = [parse_gate(text, metrics) for text in _several(options.get("gates", ()))]
    if options.get("gate_confidence") is not None:
        for gate in gates:
            interval_fields(gate, metrics)
    relative = [gate.text for gate in gates if gate.relative]
    if relative and options.get("baseline") is None:
        raise UsageError(f"--gate {relative[0]!r} speaks of a baseline: give --baseline RUN")
    if (until := options.get("until")) is not None:
        parse_until(until, gates, known=metrics)
        if options.get("run") is not None:
            raise UsageError("--until ends a run early, and --run keeps whole ones: leave one out")
        if options.get("allow_excluded"):
            raise UsageError("--until needs every token: leave out --allow-excluded")
    parse_shard(options.get("shard"), options.get("run"))
    if world_size() > 1:
        for name in ("until", "shard"):
            if options.get(name) is not None:
                raise UsageError(f"--{name} does not go with torchrun: leave one out")
    if options.get("run") is not None:
        check_run_place(Path(options["run"]))
    return gates


def _several(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _scope(options: Mapping[str, Any]) -> Scope:
    return Scope(**_picked(options, Scope) | {"documents": _documents(options)})


def _announce(table: WindowTable, options: Mapping[str, Any]) -> None:
    """Say how much a masked model has to read: a text of n tokens is n texts to it."""
    if table.windows[0].masking is None:
        return
    rows = sum(window.forward_rows for window in table.windows)
    longest = max(len(window.inputs) for window in table.windows)
    (options.get("announce") or _silent)(
        f"{table.tokens:,} tokens, hidden in {rows:,} forward rows of up to {longest:,} tokens"
    )


def _silent(_: str) -> None:
    """Tell nobody."""


def _check_confidence(options: Mapping[str, Any]) -> None:
    confidence, bound = options.get("gate_confidence"), options.get("kl_bound")
    if confidence is not None and not 0.5 <= confidence < 1:
        raise UsageError(f"--gate-confidence {confidence:g}: from 0.5 to below 1 is wanted")
    if bound is not None and not 0 < bound < math.inf:
        raise UsageError(f"--kl-bound {bound:g}: a number of nats above 0 is wanted")


def _check_counts(options: Mapping[str, Any]) -> None:
    for name, least in (("context", 1), ("stride", 1), ("score_from", 0), ("limit", 1),
                        ("batch_tokens", 1), ("outliers", 0), ("mask_every", 1),
                        ("seed", 0)):  # fmt: skip
        value = options.get(name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")


def _check_choices(options: Mapping[str, Any]) -> None:
    """A word that is none of the choices would otherwise act as one of them."""
    for name, value in options.items():
        choices = CHOICES.get(name.removeprefix("reference_").removeprefix("candidate_"))
        if choices is not None and value is not None and value not in choices:
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: one of {', '.join(choices)} is wanted"
            )


def _load_options(options: Mapping[str, Any], specs: Sequence[str]) -> list[LoadOptions]:
    """How each side is opened: what is given for one side goes before what is given for both.

    The tokens of a file of top log-probabilities are those of the model that it is compared with.
    """
    shared = _picked(options, LoadOptions)
    models = [spec for spec in specs if kind_of(spec) in ("model", "recording")]
    loads = []
    for side, spec in zip(SIDES, specs, strict=False):
        own = {f.name: options.get(f"{side}_{f.name}") for f in fields(LoadOptions)}
        chosen = shared | {name: value for name, value in own.items() if value is not None}
        if kind_of(spec) == "top log-probabilities" and models:
            chosen = {"tokenizer": models[0]} | chosen
        loads.append(LoadOptions(**chosen))
    return loads


def _picked(options: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The options that a dataclass has a field for."""
    return {field.name: options[field.name] for field in fields(kind) if field.name in options}


def _batch_tokens(sources: Sequence[OpenSource | ModelSource]) -> int:
    return min(BATCH_TOKENS.get(source.device.type, 2048) for source in sources)


def _conditions(sources: Sequence[OpenSource]) -> Conditions:
    roles = SIDES if len(sources) == 2 else ("model",)
    return Conditions(
        models={role: s.provenance for role, s in zip(roles, sources, strict=True)},
        environment=_environment() | {"device": str(sources[0].device)},
    )


def _environment() -> dict[str, Any]:
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    return {
        "klcli": klcli.__version__,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
