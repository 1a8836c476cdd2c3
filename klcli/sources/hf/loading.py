"""Loading a Hugging Face model and its tokenizer: a Hub id, a folder, or a GGUF file."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from klcli.choices import Task
from klcli.errors import Notice, SourceError
from klcli.sources import Source
from klcli.sources.devices import choose_device
from klcli.sources.given import GivenModel
from klcli.sources.hf.adapters import apply_adapter
from klcli.sources.hf.checkpoint import Checkpoint, loading, locate
from klcli.sources.hf.classes import check_architecture, class_of, task_of
from klcli.sources.hf.compiling import compile_blocks, compiling
from klcli.sources.hf.gguf_config import gguf_config
from klcli.sources.hf.gguf_file import GGUFFile, gguf_file, left_over
from klcli.sources.hf.given import open_given
from klcli.sources.hf.methods import check_codes, check_method
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.placement import spread_over_devices
from klcli.sources.hf.provenance import bytes_of, describe
from klcli.sources.hf.quiet import quiet_transformers
from klcli.sources.hf.sharing import Base, key_of, twin
from klcli.sources.hf.tasks import SOURCES
from klcli.sources.hf.tokenizer import read_tokenizer
from klcli.sources.hf.weights import check_counts, check_number_formats, check_shapes, check_weights
from klcli.sources.options import LoadOptions
from klcli.storage.files import FileState


def open_model(
    spec: str | GivenModel, options: LoadOptions, beside: Source | None = None
) -> ModelSource:
    """Load a model, or take the one that a caller has loaded.

    Raises:
        SourceError: as ``load_model``.
    """
    if isinstance(spec, GivenModel):
        return open_given(spec, options)
    return load_model(spec, options, beside)


def load_model(spec: str, options: LoadOptions, beside: Source | None = None) -> ModelSource:
    """Load a language model and its tokenizer.

    ``spec`` is a folder, a ``.gguf`` file, or a Hub id. Whether it is causal or masked the options
    say, or else its config. Where one of it and the source ``beside`` it is an adapter of the
    other's model, their weights are loaded once.

    Raises:
        SourceError: there is no such model, it is not a language model, weights are missing, or it
            has no tokenizer.
    """
    device, checkpoint = choose_device(options.device), locate(spec, options)
    files = checkpoint.weight_files()
    with quiet_transformers(), loading(spec), gguf_file(spec, checkpoint) as gguf:
        if files:
            check_counts(spec, Path(checkpoint.place), files)
        config = _config_of(spec, checkpoint, options, gguf, files)
        task = options.task if options.task != "auto" else task_of(spec, config)
        key = key_of(checkpoint, options, task, device, files)
        base = _shared(beside, key) or Base(
            key, *_load_weights(spec, class_of(task, config), config, checkpoint, options, device)
        )
        model, notices = base.model, _check_loaded(spec, base, task, files, gguf, options)
        if checkpoint.adapter is not None or _shared(beside, key) is base:
            model = twin(model)
        if checkpoint.adapter is not None:
            notices += apply_adapter(checkpoint.place, model, checkpoint.adapter)
        vocabulary = read_tokenizer(spec, checkpoint)
    with (
        quiet_transformers(),
        loading(spec),
        compiling(spec) if options.compile else contextlib.nullcontext(),
    ):
        model.eval()
        if not base.is_spread:
            model.to(device)
        if options.compile:
            compile_blocks(model)
        source = SOURCES[task](spec, model, vocabulary, options.revision, options.batch_tokens)
    source.notices = (*checkpoint.not_read(), *notices, *source.notices)
    source.base = None if base.is_spread or options.compile else base
    source.watch(files)
    # Only now, for some are unpacked as they first run.
    source.provenance |= describe(model, bytes_of(checkpoint), gguf)
    if checkpoint.adapter is not None:
        source.provenance |= {"adapter": checkpoint.adapter, "base": checkpoint.place}
    if options.compile:
        source.provenance["compiled"] = True
    return source


def _config_of(
    spec: str,
    checkpoint: Checkpoint,
    options: LoadOptions,
    gguf: GGUFFile | None,
    files: Mapping[Path, FileState],
) -> Any:
    """The config of a checkpoint.

    Raises:
        SourceError: what it states cannot run here.
    """
    if gguf is not None:
        return gguf_config(gguf, checkpoint)
    config = checkpoint.config()
    check_method(spec, config, choose_device(options.device))
    check_codes(spec, config, files)
    check_architecture(spec, config, allow_other=options.allow_other_architecture)
    return config


def _check_loaded(
    spec: str,
    base: Base,
    task: Task,
    files: Mapping[Path, FileState],
    gguf: GGUFFile | None,
    options: LoadOptions,
) -> list[Notice]:
    """What a reader should know of weights that were left over.

    Raises:
        SourceError: weights are missing, or of other shapes, or may not be left over.
    """
    loaded = dict(base.loaded)
    check_shapes(spec, loaded)
    check_number_formats(spec, base.model.config, files)
    if gguf is not None:
        loaded["unexpected_keys"] = {*loaded["unexpected_keys"], *left_over(gguf, base.model)}
    return check_weights(spec, base.model, task, loaded, allow_unused=options.allow_unused_weights)


def _shared(beside: Source | None, key: tuple[Any, ...]) -> Base | None:
    """The base of the source beside it, if it is the same one."""
    base = beside.base if isinstance(beside, ModelSource) else None
    return base if base is not None and base.key == key else None


def _load_weights(
    spec: str, kind: Any, config: Any, checkpoint: Checkpoint, options: LoadOptions, device: str
) -> tuple[Any, dict[str, Any], bool]:
    """A model of a class, what transformers says of it, and whether it is spread over devices.

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
        ignore_mismatched_sizes=True,  # what differs is refused, with its shapes
        adapter_kwargs={"subfolder": "no adapter"},  # with peft it would be applied in silence
        **given,
        **spread,
        **checkpoint.arguments,
    )
    return model, loaded, bool(spread)


def _dtype(name: str, *, is_gguf: bool) -> Any:
    if name == "auto":
        # A GGUF file is dequantised on loading: only float32 keeps what it held.
        return torch.float32 if is_gguf else "auto"
    return getattr(torch, name)
