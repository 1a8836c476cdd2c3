"""Loading a Hugging Face model and its tokenizer: a Hub id, a folder, or a GGUF file."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from klcli.choices import Task
from klcli.errors import SourceError
from klcli.sources.devices import choose_device
from klcli.sources.hf.adapters import apply_adapter
from klcli.sources.hf.causal import CausalSource
from klcli.sources.hf.checkpoint import Checkpoint, loading, locate, quiet_transformers
from klcli.sources.hf.classes import check_architecture, class_of, task_of
from klcli.sources.hf.compiling import compile_blocks, compiling
from klcli.sources.hf.gguf_config import gguf_config
from klcli.sources.hf.gguf_file import gguf_file, left_over
from klcli.sources.hf.masked import MaskedSource
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.placement import spread_over_devices
from klcli.sources.hf.tokenizer import read_tokenizer
from klcli.sources.hf.weights import check_counts, check_method, check_number_formats, check_weights
from klcli.sources.options import LoadOptions

SOURCES: Mapping[Task, type[ModelSource]] = {"causal": CausalSource, "masked": MaskedSource}


def load_model(spec: str, options: LoadOptions) -> ModelSource:
    """Load a language model and its tokenizer.

    ``spec`` is a folder, a ``.gguf`` file, or a Hub id. Whether it is causal or masked the options
    say, or else its config.

    Raises:
        SourceError: there is no such model, it is not a language model, weights are missing, or it
            has no tokenizer.
    """
    device, checkpoint = choose_device(options.device), locate(spec, options)
    files = checkpoint.weight_files()
    with quiet_transformers(), loading(spec), gguf_file(spec, checkpoint) as gguf:
        if files:
            check_counts(spec, Path(checkpoint.place), files)
        config = checkpoint.config() if gguf is None else gguf_config(gguf, checkpoint)
        if gguf is None:
            check_method(spec, config)
            check_architecture(spec, config, allow_other=options.allow_other_architecture)
        task = options.task if options.task != "auto" else task_of(spec, config)
        kind = class_of(task, config)
        model, is_spread, loaded = _load_weights(spec, kind, config, checkpoint, options, device)
        check_number_formats(spec, model.config, files)
        if gguf is not None:
            loaded["unexpected_keys"] = {*loaded["unexpected_keys"], *left_over(gguf, model)}
        notices = check_weights(
            spec, model, task, loaded, allow_unused=options.allow_unused_weights
        )
        if checkpoint.adapter is not None:
            notices += apply_adapter(checkpoint.place, model, checkpoint.adapter)
        vocabulary = read_tokenizer(spec, checkpoint)
    with loading(spec), compiling(spec) if options.compile else contextlib.nullcontext():
        model.eval()
        if not is_spread:
            model.to(device)
        if options.compile:
            compile_blocks(model)
        source = SOURCES[task](spec, model, vocabulary, options.revision, options.batch_tokens)
    source.notices = (*checkpoint.not_read(), *notices, *source.notices)
    source.watch(files)
    if checkpoint.adapter is not None:
        source.provenance |= {"adapter": checkpoint.adapter, "base": checkpoint.place}
    if options.compile:
        source.provenance["compiled"] = True
    return source


def _load_weights(
    spec: str, kind: Any, config: Any, checkpoint: Checkpoint, options: LoadOptions, device: str
) -> tuple[Any, bool, dict[str, Any]]:
    """A model of a class, whether it is spread over devices, and what transformers says of it.

    Raises:
        SourceError: it does not fit and cannot be spread.
    """
    dtype = _dtype(options.dtype, is_gguf=checkpoint.is_gguf)
    spread: dict[str, Any] = {}
    if options.device == "auto":
        spread = spread_over_devices(spec, kind, checkpoint, dtype, device)
    if spread and options.compile:
        raise SourceError(f"{spec} has to be split, and so cannot be compiled: leave out --compile")
    given = {"config": config} if checkpoint.is_gguf else {}
    model, loaded = kind.from_pretrained(
        checkpoint.place,
        dtype=dtype,
        output_loading_info=True,
        adapter_kwargs={"subfolder": "no adapter"},  # with peft it would be applied in silence
        **given,
        **spread,
        **checkpoint.arguments,
    )
    return model, bool(spread), loaded


def _dtype(name: str, *, is_gguf: bool) -> Any:
    if name == "auto":
        # A GGUF file is dequantised on loading: only float32 keeps what it held.
        return torch.float32 if is_gguf else "auto"
    return getattr(torch, name)
