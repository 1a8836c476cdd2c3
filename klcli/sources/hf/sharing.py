"""A base model that two sources share: loaded once, with and without an adapter."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klcli.sources.hf.checkpoint import Checkpoint
from klcli.sources.options import LoadOptions
from klcli.storage.files import FileState


@dataclass(frozen=True, slots=True)
class Base:
    """A model as it was loaded, without any adapter, and what transformers said of loading it.

    ``is_spread`` says whether it lies on several devices. Bases with equal keys are the same:
    place, options and state of the files.
    """

    key: tuple[Any, ...]
    model: Any
    loaded: Mapping[str, Any]
    is_spread: bool


def key_of(
    checkpoint: Checkpoint,
    options: LoadOptions,
    task: str,
    device: str,
    files: Mapping[Path, FileState],
) -> tuple[Any, ...]:
    """What must be equal for two sources to have the same base."""
    return (checkpoint.place, checkpoint.arguments, options.dtype, task, device, files)


def twin(model: Any) -> Any:
    """A model of its own modules and settings, whose weights are those of another, not copies."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
