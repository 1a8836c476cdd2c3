"""A fingerprint of weights: whether two models are the same one."""

import hashlib
import json
from typing import Any

import torch

from klcli.sources.head import numbers_of

SAMPLED = 1024
"""How many numbers of a weight go into its fingerprint."""


def weights_fingerprint(model: Any) -> str:
    """sha256 over the config and the weights: names, shapes and a sample of the numbers."""
    config = model.config.to_dict()
    settings = {k: v for k, v in config.items() if k not in ("_name_or_path", "_commit_hash")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in model.state_dict().items():
        if weight.is_meta:
            path, _, last = name.rpartition(".")
            weight = numbers_of(model.get_submodule(path), last)
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
