"""What ran: how large a model is, in which number formats, and what its config says of it."""

from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from klcli.sources.hf.checkpoint import Checkpoint
from klcli.sources.hf.gguf_file import GGUFFile
from klcli.sources.hf.intact import weight_files
from klcli.sources.hf.quantization import features, quantization_of
from klcli.sources.hf.settings import settings_of


def describe(model: Any, size: int | None, gguf: GGUFFile | None) -> dict[str, Any]:
    """What a report says of a model beside its name.

    ``parameters`` counts numbers as they were before quantising packed them, shared ones once.
    ``bytes`` are those of the files of weights (``size``), None where they are not known.
    """
    parameters = count_parameters(model)
    if gguf is not None:
        size = sum(int(tensor.n_bytes) for tensor in gguf.tensors.values())
    return {
        "parameters": parameters,
        "bytes": size,
        "bits_per_weight": round(8 * size / parameters, 3) if size and parameters else None,
        "quantization": quantization_of(model) if gguf is None else _of_gguf(gguf),
        "attention": getattr(model.config, "_attn_implementation", None),
        "settings": settings_of(model.config),
    }


def count_parameters(model: Any) -> int:
    """The numbers that a model has, shared ones once.

    A linear layer counts by its matrix and bias: quantising packs these, and adds scales.
    """
    seen: set[int] = set()
    total = 0
    for layer in model.modules():
        shape, weights = features(layer), dict(layer.named_parameters(recurse=False))
        new = {name for name, weight in weights.items() if id(weight) not in seen}
        if shape is None:
            total += sum(weights[name].numel() for name in new)
        else:
            is_shared = "weight" in weights and "weight" not in new
            total += 0 if is_shared else shape[0] * shape[1]
            total += weights["bias"].numel() if "bias" in new else 0
        seen.update(map(id, weights.values()))
    return total


def bytes_of(checkpoint: Checkpoint) -> int | None:
    """The size of the files of weights that are read, all parts of them."""
    folder = _folder_of(checkpoint)
    if folder is None:
        return None
    return sum(path.stat().st_size for path in weight_files(folder)) or None


def _folder_of(checkpoint: Checkpoint) -> Path | None:
    """Where a checkpoint lies; one of the Hub in the folder of its cache."""
    place = Path(checkpoint.place)
    if place.is_dir():
        return place
    config = try_to_load_from_cache(
        checkpoint.place, "config.json", revision=checkpoint.arguments.get("revision")
    )
    return Path(config).parent if isinstance(config, str) else None


def _of_gguf(gguf: GGUFFile) -> dict[str, Any]:
    """Which types the tensors of a GGUF file have, and which the head."""
    types: dict[str, int] = {}
    for tensor in gguf.tensors.values():
        name = tensor.tensor_type.name
        types[name] = types.get(name, 0) + 1
    head = gguf.tensors.get("output.weight", gguf.tensors.get("token_embd.weight"))
    return {
        "method": "gguf",
        "types": types,
        "head_type": None if head is None else head.tensor_type.name,
        "dequantised": True,
        "activations_run": False,
    }
