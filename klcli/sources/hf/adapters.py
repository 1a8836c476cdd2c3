"""Adapters (LoRA, DoRA, IA³ …): small weights beside those of a base model, applied as they are."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from klcli.errors import Notice, SourceError, gist

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(spec: str) -> bool:
    """Whether a path is a folder with an adapter, and without a model of its own."""
    folder = Path(spec)
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: str) -> str:
    """The model that an adapter was trained on: a folder or a Hub id.

    Raises:
        SourceError: its config does not say.
    """
    path = Path(folder) / ADAPTER_CONFIG
    try:
        base = json.loads(path.read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} does not name a base model: {error}") from error
    if not isinstance(base, str) or not base:
        raise SourceError(f"{path} does not name a base model: give MODEL and --adapter {folder}")
    return base


def apply_adapter(spec: str, model: Any, folder: str) -> list[Notice]:
    """Put an adapter on a model, not merged: its layers add to those of the base.

    Raises:
        SourceError: peft is missing, or the adapter does not fit this model.
    """
    if find_spec("peft") is None:
        raise SourceError(f"{folder} is an adapter: pip install 'klcli[peft]' to run it")
    import peft

    if not (Path(folder) / ADAPTER_CONFIG).is_file():
        raise SourceError(f"{folder} is not an adapter: it has no {ADAPTER_CONFIG}")
    config = peft.PeftConfig.from_pretrained(folder)
    if config.is_prompt_learning:
        raise SourceError(
            f"{folder} is a learned prompt ({config.peft_type.value}), not an adapter"
        )
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is checked below
            wrapped = peft.get_peft_model(model, config)
            weights = peft.load_peft_weights(folder, device="cpu")
            found = peft.set_peft_model_state_dict(wrapped, weights)
    except (RuntimeError, ValueError) as error:
        raise SourceError(f"the adapter {folder} does not fit {spec}: {gist(error)}") from error
    missing = [key for key in found.missing_keys if wrapped.base_model.prefix in key]
    for keys, what in ((missing, "lacks"), (found.unexpected_keys, "has too many:")):
        if keys:
            raise SourceError(
                f"the adapter {folder} does not fit {spec}: of the weights it {what} {len(keys)}, "
                f"first {min(keys)}"
            )
    return [] if _has_effect(wrapped) else [_without_effect(folder)]


@torch.inference_mode()
def _has_effect(wrapped: Any) -> bool:
    ids = torch.arange(2, 10, device=wrapped.device)[None]
    wrapped.eval()
    changed = wrapped(input_ids=ids).logits
    with wrapped.disable_adapter():
        return not torch.equal(changed, wrapped(input_ids=ids).logits)


def _without_effect(folder: str) -> Notice:
    return Notice(
        code="adapter_without_effect",
        message=f"the adapter {folder} changes nothing on a probe: was it saved before training?",
    )
