"""The two main jobs as functions: ``compare`` and ``perplexity``."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any, TypedDict, Unpack

import torch

import klcli
from klcli.errors import UsageError
from klcli.judge.conclude import Conditions, conclude
from klcli.judge.gate import parse_gate
from klcli.judge.report import Report
from klcli.judge.statistics import COMPARE_METRICS, PERPLEXITY_METRICS
from klcli.measure.align import Scope, align
from klcli.measure.evaluate import Progress, evaluate
from klcli.measure.scores import SIDES
from klcli.sources import OpenSource, open_source
from klcli.sources.options import DtypeName, LoadOptions, Values
from klcli.text.corpus import DocumentSplit
from klcli.text.windows import Bos, ProtocolName, SpecialTokens

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}
"""How many ids a model reads at once, by kind of device, where ``batch_tokens`` is not given."""

DEFAULT_OUTLIERS = 10


class RunOptions(TypedDict, total=False):
    """Keyword arguments of ``perplexity``, and with those of ``CompareOptions`` of ``compare``.

    Which tokens are scored: ``protocol`` ("rolling" or "llama.cpp"), ``context``, ``stride``,
    ``score_from``, ``bos`` ("auto", "none", "document" or "window"), ``special_tokens`` ("text" or
    "parse"), ``documents`` ("file", "line" or "blank"), ``limit`` (windows of each corpus).

    How sources are opened: ``dtype`` ("auto", "float32", "bfloat16" or "float16"), ``device``,
    ``revision``, ``trust_remote_code``; for logit files ``values`` ("logits", "log_probs" or
    "probs"), ``token_ids`` (a .npy file) and ``tokenizer`` (a model).

    ``batch_tokens`` is how many ids a model reads at once. ``gates`` are texts such as
    "kl.mean<=0.01"; ``allow_excluded`` lets them pass although tokens were left out. ``progress``
    is called with the tokens scored so far and the tokens in all; ``status`` with what is being
    done before that.
    """

    protocol: ProtocolName | None
    context: int | None
    stride: int | None
    score_from: int | None
    bos: Bos
    special_tokens: SpecialTokens | None
    documents: DocumentSplit
    limit: int | None
    dtype: DtypeName
    device: str
    revision: str | None
    trust_remote_code: bool
    values: Values
    token_ids: str | None
    tokenizer: str | None
    batch_tokens: int | None
    gates: Sequence[str]
    allow_excluded: bool
    progress: Progress | None
    status: Callable[[str], None] | None


class CompareOptions(RunOptions, total=False):
    """Keyword arguments of ``compare`` beside those of ``RunOptions``.

    ``outliers`` is how many outlier tokens are reported. What stands for one side only goes before
    what stands for both.
    """

    outliers: int
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
    corpus: str | Sequence[str] = (),
    **options: Unpack[CompareOptions],
) -> Report:
    """Compare what two sources predict at every scored token of a text.

    Args:
        reference, candidate: a Hub id, a model folder, a ``.gguf`` file or a logit file each.
        corpus: path of a text or several, "-" for stdin. Not needed with a logit file, which brings
            its tokens.
        options: see ``CompareOptions`` and ``RunOptions``.

    Returns:
        The report: every divergence is KL(reference‖candidate), in nats.

    Raises:
        KlcliError: an input cannot be read or does not fit the other.
    """
    return _run((reference, candidate), corpus, options, CompareOptions, COMPARE_METRICS)


def perplexity(
    model: str, corpus: str | Sequence[str] = (), **options: Unpack[RunOptions]
) -> Report:
    """Score every token of a text with one source: NLL, perplexity, bits per byte.

    Args:
        model: a Hub id, a model folder, a ``.gguf`` file or a logit file.
        corpus: path of a text or several, "-" for stdin. Not needed with a logit file.
        options: see ``RunOptions``.

    Raises:
        KlcliError: an input cannot be read.
    """
    return _run((model,), corpus, options, RunOptions, PERPLEXITY_METRICS)


def _run(
    specs: Sequence[str],
    corpus: str | Sequence[str],
    options: Mapping[str, Any],
    known: type,
    metrics: Mapping[str, tuple[str, ...]],
) -> Report:
    if unknown := sorted(set(options) - set(known.__annotations__)):
        raise TypeError(f"unknown options: {', '.join(unknown)}")
    gates = [parse_gate(text, metrics) for text in options.get("gates", ())]
    corpora = [corpus] if isinstance(corpus, str) else list(corpus)
    _check_counts(options)
    tell = options.get("status") or (lambda _: None)
    sources = []
    for spec, load in zip(specs, _load_options(options, len(specs)), strict=True):
        tell(f"loading {spec}")
        sources.append(open_source(spec, load))
    tell("reading the text")
    alignment = align(sources, corpora, Scope(**_picked(options, Scope)))
    shown = options.get("outliers", DEFAULT_OUTLIERS)
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
    )


def _check_counts(options: Mapping[str, Any]) -> None:
    for name, least in (("context", 1), ("stride", 1), ("score_from", 0), ("limit", 1),
                        ("batch_tokens", 1), ("outliers", 0)):  # fmt: skip
        value = options.get(name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")


def _load_options(options: Mapping[str, Any], sides: int) -> list[LoadOptions]:
    """How each side is opened: what is given for one side goes before what is given for both."""
    shared = _picked(options, LoadOptions)
    if sides == 1:
        return [LoadOptions(**shared)]
    return [
        LoadOptions(
            **{
                field.name: options.get(f"{side}_{field.name}") or shared[field.name]
                for field in fields(LoadOptions)
                if field.name in shared or options.get(f"{side}_{field.name}")
            }
        )
        for side in SIDES
    ]


def _picked(options: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The options that a dataclass has a field for."""
    return {field.name: options[field.name] for field in fields(kind) if field.name in options}


def _batch_tokens(sources: Sequence[OpenSource]) -> int:
    return min(BATCH_TOKENS.get(source.device.type, 2048) for source in sources)


def _conditions(sources: Sequence[OpenSource]) -> Conditions:
    roles = SIDES if len(sources) == 2 else ("model",)
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    return Conditions(
        models={role: s.provenance for role, s in zip(roles, sources, strict=True)},
        environment={
            "klcli": klcli.__version__,
            "python": platform.python_version(),
            **versions,
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
        },
    )
