"""Loading a Hugging Face model and its tokenizer: a Hub id, a folder, or a GGUF file."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

from klcli.choices import Task
from klcli.errors import Notice, SourceError
from klcli.sources.devices import choose_device
from klcli.sources.hf.causal import CausalSource
from klcli.sources.hf.checkpoint import Checkpoint, loading, locate, quiet_transformers
from klcli.sources.hf.compiling import compile_blocks, compiling
from klcli.sources.hf.gguf_config import gguf_config
from klcli.sources.hf.gguf_file import GGUFFile, gguf_file, left_over
from klcli.sources.hf.masked import MaskedSource
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.placement import spread_over_devices
from klcli.sources.hf.tokenizer import read_tokenizer
from klcli.sources.hf.weights import check_counts, check_method, check_number_formats, check_weights
from klcli.sources.options import LoadOptions

LOADERS: Mapping[Task, Any] = {
    "causal": transformers.AutoModelForCausalLM,
    "masked": transformers.AutoModelForMaskedLM,
}
SOURCES: Mapping[Task, type[ModelSource]] = {"causal": CausalSource, "masked": MaskedSource}


def load_model(spec: str, options: LoadOptions) -> ModelSource:
    """Load a language model and its tokenizer.

    ``spec`` is a folder, a ``.gguf`` file, or a Hub id. Whether it is causal or masked the options
    say, or else its config.

    Raises:
        SourceError: there is no such model, it is not a language model, weights are missing, or it
            has no fast tokenizer.
    """
    device, checkpoint = choose_device(options.device), locate(spec, options)
    files = checkpoint.weight_files()
    with quiet_transformers(), loading(spec), gguf_file(spec, checkpoint) as gguf:
        if files:
            check_counts(spec, Path(checkpoint.place), files)
        task = _task(spec, checkpoint, options)
        model, is_spread, notices = _load_weights(spec, task, checkpoint, options, device, gguf)
        vocabulary = read_tokenizer(spec, checkpoint)
    with loading(spec), compiling(spec) if options.compile else contextlib.nullcontext():
        model.eval()
        if not is_spread:
            model.to(device)
        if options.compile:
            compile_blocks(model)
        source = SOURCES[task](spec, model, vocabulary, options.revision, options.batch_tokens)
    source.notices = (*checkpoint.not_read(), *notices)
    source.watch(files)
    if options.compile:
        source.provenance["compiled"] = True
    return source


def _load_weights(
    spec: str,
    task: Task,
    checkpoint: Checkpoint,
    options: LoadOptions,
    device: str,
    gguf: GGUFFile | None,
) -> tuple[Any, bool, list[Notice]]:
    """The model, whether it is spread over devices, and what to know of its weights.

    Raises:
        SourceError: it lacks weights or leaves some over, or does not fit and cannot be spread.
    """
    if gguf is None:
        check_method(spec, checkpoint.config())
    kind, dtype = LOADERS[task], _dtype(options.dtype, is_gguf=checkpoint.is_gguf)
    spread: dict[str, Any] = {}
    if options.device == "auto":
        spread = spread_over_devices(spec, kind, checkpoint, dtype, device)
    if spread and options.compile:
        raise SourceError(f"{spec} has to be split, and so cannot be compiled: leave out --compile")
    given = {} if gguf is None else {"config": gguf_config(gguf, checkpoint)}
    model, loaded = kind.from_pretrained(
        checkpoint.place,
        dtype=dtype,
        output_loading_info=True,
        adapter_kwargs={"subfolder": "no adapter"},  # with peft it would be applied in silence
        **given,
        **spread,
        **checkpoint.arguments,
    )
    check_number_formats(spec, model.config, checkpoint.weight_files())
    if gguf is not None:
        loaded["unexpected_keys"] = {*loaded["unexpected_keys"], *left_over(gguf, model)}
    notices = check_weights(spec, model, task, loaded, allow_unused=options.allow_unused_weights)
    return model, bool(spread), notices


def _task(spec: str, checkpoint: Checkpoint, options: LoadOptions) -> Task:
    """What a model does, by the options or else by its config."""
    if options.task != "auto":
        return options.task
    if checkpoint.is_gguf:
        return "causal"
    return _task_of(spec, checkpoint.config())


def _task_of(spec: str, config: Any) -> Task:
    """What a config says its model does: the class it was saved from, else what its family is for.

    Raises:
        SourceError: it is neither a causal nor a masked language model.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise SourceError(
            f"{spec} is an encoder-decoder model; klcli takes causal and masked language models"
        )
    architectures = set(getattr(config, "architectures", None) or [])
    if architectures & set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return "causal"
    is_encoder = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    fills_in = any("MaskedLM" in name for name in architectures)
    if fills_in or (is_encoder and not getattr(config, "is_decoder", False)):
        return "masked"
    return "causal"


def _dtype(name: str, *, is_gguf: bool) -> Any:
    if name == "auto":
        # A GGUF file is dequantised on loading: only float32 keeps what it held.
        return torch.float32 if is_gguf else "auto"
    return getattr(torch, name)
