"""Adapters (LoRA, DoRA, IA³ …): small weights beside those of a base model, applied as they are."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch

from klcli.errors import Notice, SourceError, gist
from klcli.sources.hf.adapter_files import ADAPTER_CONFIG, adapter_settings, weights_of
from klcli.sources.hf.intact import check_weight_file


def apply_adapter(spec: str, model: Any, folder: str) -> list[Notice]:
    """Put an adapter on a model, not merged: its layers add to those of the base.

    Raises:
        SourceError: the adapter does not fit this model.
    """
    import peft

    config, weights = _config_of(folder), _weights_of(folder)
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is checked below
            wrapped = peft.get_peft_model(model, config)
            found = peft.set_peft_model_state_dict(wrapped, weights)
    except (RuntimeError, ValueError) as error:
        reason = _shapes_that_differ(str(error)) or gist(error)
        raise SourceError(f"the adapter {folder} does not fit {spec}: {reason}") from error
    missing = [key for key in found.missing_keys if wrapped.base_model.prefix in key]
    for keys, what in ((missing, "lacks"), (found.unexpected_keys, "has too many:")):
        if keys:
            raise SourceError(
                f"the adapter {folder} does not fit {spec}: of the weights it {what} {len(keys)}, "
                f"first {min(keys)}"
            )
    return [] if _has_effect(wrapped) else [_without_effect(folder)]


def _config_of(folder: str) -> Any:
    """The config of an adapter, as peft reads it."""
    import peft

    path = Path(folder) / ADAPTER_CONFIG
    kind = adapter_settings(folder).get("peft_type")
    if kind not in list(peft.PeftType):
        raise SourceError(f"{path} names no kind of adapter that peft knows (peft_type is {kind})")
    config = peft.PeftConfig.from_pretrained(folder)
    if config.is_prompt_learning:
        raise SourceError(
            f"{folder} is a learned prompt ({config.peft_type.value}), not an adapter"
        )
    return config


def _weights_of(folder: str) -> Any:
    """The weights of an adapter, by their names."""
    import peft

    found = weights_of(folder)
    check_weight_file(found)
    weights = peft.load_peft_weights(folder, device="cpu")
    if not weights:
        raise SourceError(f"{found} holds no weights: save the adapter again")
    return weights


_DIFFERS = re.compile(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)")


def _shapes_that_differ(message: str) -> str:
    """What torch says of weights of other shapes, short: the first of them, with both shapes."""
    found = _DIFFERS.findall(message)
    if not found:
        return ""
    name, its, wanted = found[0]
    return (
        f"{len(found)} of its weights have other shapes, first {name}: {its} in the adapter, "
        f"{wanted} in the model"
    )


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
