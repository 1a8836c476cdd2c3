"""The keyword arguments of the public functions, named like the options of the command line."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from klcli.choices import (
    Bos,
    DocumentSplit,
    DtypeName,
    Engine,
    FlashAttention,
    KeepTop,
    KvCacheType,
    NoiseFloor,
    Pll,
    Score,
    SpecialTokens,
    TaskChoice,
    ValueChoice,
)
from klcli.hooks import Progress
from klcli.sources.given import SupportsShape
from klcli.text.protocols import ProtocolName

AnyPath = str | os.PathLike[str]
Corpora = AnyPath | Sequence[AnyPath]
"""Paths of texts, or the texts themselves."""
Model = AnyPath | tuple[Any, Any] | SupportsShape
"""A path or a name of the Hub, ``(model, tokenizer)``, ``(function, tokenizer)``, ``logits``, or
``(logits, token_ids)``."""


class OpenOptions(TypedDict, total=False):
    """How a model and a data set are opened."""

    group_by: str | None
    seed: int
    limit: int | None
    chat_template: AnyPath | None
    text_field: str | None
    prompt_field: str | None
    completion_field: str | None
    dtype: DtypeName
    device: str
    revision: str | None
    trust_remote_code: bool
    adapter: AnyPath | None
    allow_unused_weights: bool
    allow_other_architecture: bool
    batch_tokens: int | None
    progress: Progress | None
    status: Callable[[str], None] | None
    announce: Callable[[str], None] | None


class ReadOptions(OpenOptions, total=False):
    """How a model is opened, and how it reads a text.

    docs/python.md says what each does.
    """

    protocol: ProtocolName | None
    context: int | None
    stride: int | None
    score_from: int | None
    bos: Bos
    special_tokens: SpecialTokens | None
    documents: DocumentSplit | None
    score: Score
    score_reasoning: bool
    max_tokens: int | None
    pll: Pll | None
    mask_every: int | None
    task: TaskChoice


class EngineOptions(TypedDict, total=False):
    """What runs a GGUF file, and how."""

    engine: Engine
    kv_cache_type: KvCacheType
    flash_attention: FlashAttention
    threads: int | None
    gpu_layers: int | None


class RunOptions(ReadOptions, EngineOptions, total=False):
    """Keyword arguments of ``perplexity``, and with those of ``CompareOptions`` of ``compare``."""

    calibration: AnyPath | None
    compile: bool
    values: ValueChoice
    token_ids: AnyPath | None
    tokenizer: AnyPath | None
    gates: Sequence[str]
    allow_excluded: bool
    gate_confidence: float | None
    baseline: AnyPath | None
    until: str | None
    kl_bound: float | None
    run: AnyPath | None
    shard: str | None
    keep_top: KeepTop
    slice_regex: Sequence[str]
    command_line: str | None


class SidedOptions(TypedDict, total=False):
    """How one of two models is opened; it goes before what stands for both."""

    reference_dtype: DtypeName | None
    candidate_dtype: DtypeName | None
    reference_device: str | None
    candidate_device: str | None
    reference_revision: str | None
    candidate_revision: str | None
    reference_adapter: AnyPath | None
    candidate_adapter: AnyPath | None


class SidedEngineOptions(TypedDict, total=False):
    """What runs one of two GGUF files; it goes before what stands for both."""

    reference_engine: Engine | None
    candidate_engine: Engine | None
    reference_kv_cache_type: KvCacheType | None
    candidate_kv_cache_type: KvCacheType | None
    reference_flash_attention: FlashAttention | None
    candidate_flash_attention: FlashAttention | None
    reference_threads: int | None
    candidate_threads: int | None
    reference_gpu_layers: int | None
    candidate_gpu_layers: int | None


class CompareOptions(RunOptions, SidedOptions, SidedEngineOptions, total=False):
    """Keyword arguments of ``compare`` beside those of ``RunOptions``."""

    outliers: int
    one_at_a_time: bool
    noise_floor: NoiseFloor | None
    reference_values: ValueChoice | None
    candidate_values: ValueChoice | None
    reference_token_ids: AnyPath | None
    candidate_token_ids: AnyPath | None


class RankOptions(ReadOptions, SidedOptions, EngineOptions, SidedEngineOptions, total=False):
    """Keyword arguments of ``rank``."""

    calibration: AnyPath | None
    gates: Sequence[str]
    allow_excluded: bool
    gate_confidence: float | None
    baseline: AnyPath | None
    command_line: str | None


class LayersOptions(ReadOptions, SidedOptions, total=False):
    """Keyword arguments of ``layers``."""


class AnswerOptions(OpenOptions, total=False):
    """Keyword arguments of ``answer``."""

    max_new_tokens: int
    temperature: float
