"""What klcli does, as functions: ``compare``, ``perplexity`` and ``record``."""

import gc
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, get_args

import torch

import klcli
from klcli.errors import Notice, UsageError
from klcli.judge.conclude import Conditions, conclude
from klcli.judge.gate import Gate, parse_gate
from klcli.judge.report import Report
from klcli.judge.slices import check_slices
from klcli.judge.statistics import COMPARE_METRICS, PERPLEXITY_METRICS
from klcli.measure.align import Scope, align
from klcli.measure.evaluate import Progress, evaluate
from klcli.measure.scores import SIDES
from klcli.sources import OpenSource, kind_of, open_source
from klcli.sources.loading import load_model
from klcli.sources.model import BATCH_TOKENS, ModelSource
from klcli.sources.options import DtypeName, LoadOptions, TaskChoice, Values
from klcli.sources.recorder import KindChoice, Recorded, check_place
from klcli.sources.recorder import record as write_recording
from klcli.text.corpus import STDIN, Corpus, DocumentSplit, read_corpus
from klcli.text.masking import Pll
from klcli.text.windows import Bos, ProtocolName, SpecialTokens, WindowTable

DEFAULT_OUTLIERS = 10

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
    "bfloat16" or "float16"), ``device``, ``revision``, ``trust_remote_code``; for logit files
    ``values`` ("logits", "log_probs" or "probs"), ``token_ids`` (a .npy file) and ``tokenizer`` (a
    model).

    ``batch_tokens`` is how many ids a model reads at once. ``gates`` are texts such as
    "kl.mean<=0.01"; ``allow_excluded`` lets them pass although tokens were left out. ``slices``
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
    documents: DocumentSplit
    limit: int | None
    pll: Pll | None
    mask_every: int | None
    task: TaskChoice
    dtype: DtypeName
    device: str
    revision: str | None
    trust_remote_code: bool
    values: Values
    token_ids: str | None
    tokenizer: str | None
    batch_tokens: int | None
    gates: Sequence[str]
    slices: Sequence[str]
    allow_excluded: bool
    progress: Progress | None
    status: Callable[[str], None] | None
    announce: Callable[[str], None] | None


class CompareOptions(RunOptions, total=False):
    """Keyword arguments of ``compare`` beside those of ``RunOptions``.

    ``outliers`` is how many outlier tokens are reported. ``one_at_a_time`` keeps one model in
    memory at a time: the reference goes through a temporary recording. What stands for one side
    only goes before what stands for both.
    """

    outliers: int
    one_at_a_time: bool
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
            return _report([first, second], [], scope, options, gates, notices)
    sources = []
    for spec, load in zip((reference, candidate), loads, strict=True):
        tell(f"loading {spec}")
        sources.append(open_source(spec, load))
    return _report(sources, corpora, _scope(options), options, gates)


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
    gates = _gates(options, PERPLEXITY_METRICS)
    corpora = _read(corpus, options)
    (load,) = _load_options(options, (model,))
    (options.get("status") or _silent)(f"loading {model}")
    source = open_source(model, load)
    return _report([source], corpora, _scope(options), options, gates)


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
    notices: tuple[Notice, ...] = (),
) -> Report:
    (options.get("status") or _silent)("reading the text")
    alignment = align(sources, corpora, scope)
    alignment = replace(alignment, notices=(*notices, *alignment.notices))
    shown: int = cast("CompareOptions", options).get("outliers", DEFAULT_OUTLIERS)
    if any(isinstance(source, ModelSource) for source in sources):
        _announce(alignment.table, options)
    evaluation = evaluate(
        alignment.table,
        sources,
        batch_tokens=options.get("batch_tokens") or _batch_tokens(sources),
        vocabulary_size=alignment.vocabulary_size,
        keep=2 * shown,
        progress=options.get("progress"),
    )
    return conclude(
        evaluation,
        alignment,
        _conditions(sources),
        gates=gates,
        allow_excluded=options.get("allow_excluded", False),
        shown_outliers=shown,
        shown_slices=check_slices(_several(options.get("slices", ()))),
    )


def _check_options(options: Mapping[str, Any], known: type) -> None:
    if unknown := sorted(set(options) - set(known.__annotations__)):
        raise TypeError(f"unknown options: {', '.join(unknown)}")
    check_slices(_several(options.get("slices", ())))
    _check_counts(options)
    _check_choices(options)


def _read(corpus: Paths, options: Mapping[str, Any]) -> list[Corpus]:
    """Read the corpora before anything large is loaded."""
    paths = [corpus] if isinstance(corpus, str | os.PathLike) else corpus
    names = [os.fspath(path) for path in paths]
    if names.count(STDIN) > 1:
        raise UsageError("stdin (-) can be read once: name it once")
    return [read_corpus(name, options.get("documents", "file")) for name in names]


def _gates(options: Mapping[str, Any], metrics: Mapping[str, tuple[str, ...]]) -> list[Gate]:
    return [parse_gate(text, metrics) for text in _several(options.get("gates", ()))]


def _several(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _scope(options: Mapping[str, Any]) -> Scope:
    return Scope(**_picked(options, Scope))


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


def _check_counts(options: Mapping[str, Any]) -> None:
    for name, least in (("context", 1), ("stride", 1), ("score_from", 0), ("limit", 1),
                        ("batch_tokens", 1), ("outliers", 0), ("mask_every", 1)):  # fmt: skip
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
