"""The digest of a model: whether two are the same one, to the last bit of the last weight."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from klcli.sources.head import numbers_of

PIECE = 32 * 2**20
"""Bytes of a weight that one thread hashes at once, and that a weight on a device takes here."""
MOST_THREADS = 8
_NOT_SETTINGS = ("_name_or_path", "_commit_hash", "transformers_version")
"""Fields of a config that say where it comes from."""


def weights_digest(model: Any) -> str:
    """sha256 over the config and all weights: names, shapes, types and every byte.

    The bytes of a tensor are hashed in pieces, by several threads, and the hashes of the pieces are
    hashed. Where the processor has instructions for SHA that takes 0.7 s a GB with one thread and
    0.35 s with two (measured: 1.4 and 2.9 GB/s), so 16 GB take 6 s with two and 1.5 s with eight;
    weights that are left on a disk take as long as to load them.

    ``state_dict`` is never called: it changes the weights of some quantised models.
    """
    config = model.config.to_dict()
    settings = {k: v for k, v in config.items() if k not in _NOT_SETTINGS}
    if isinstance(quantised := settings.get("quantization_config"), dict):
        settings["quantization_config"] = {k: v for k, v in quantised.items() if k != "gguf_file"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        for name, weight in _weights(model):
            for part, plain in _plain(name, weight):
                digest.update(f"{part}{tuple(plain.shape)}{plain.dtype}".encode())
                for piece in pool.map(_hash, _pieces(plain)):
                    digest.update(piece)
    return digest.hexdigest()


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that are saved with them; those left on a disk are fetched."""
    for path, module in model.named_modules():
        unsaved = module._non_persistent_buffers_set
        named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, weight in named:
            if name not in unsaved:
                yield f"{path}.{name}", numbers_of(module, name) if weight.is_meta else weight


def _plain(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a weight is made of: a quantised one has scales beside its codes."""
    if weight.is_quantized:
        weight = weight.dequantize()
    if hasattr(weight, "__tensor_flatten__"):  # torchao
        for inner in weight.__tensor_flatten__()[0]:
            yield from _plain(f"{name}.{type(weight).__name__}.{inner}", getattr(weight, inner))
        return
    yield name, weight.detach()
    if (state := getattr(weight, "quant_state", None)) is not None:  # bitsandbytes, 4 bits
        yield from ((f"{name}.{key}", t) for key, t in state.as_dict(packed=True).items())
    if (scales := getattr(weight, "SCB", None)) is not None:  # bitsandbytes, 8 bits
        yield f"{name}.SCB", scales


def _pieces(plain: Tensor) -> Iterator[Tensor]:
    if plain.numel():
        content = plain.contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, len(content), PIECE):
            yield content[start : start + PIECE]


def _hash(piece: Tensor) -> bytes:
    return hashlib.sha256(piece.cpu().numpy().data).digest()
