"""How a model is quantised: what its config states, and what runs on this device."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Stated = dict[str, Any]
"""``bits`` of a weight, ``group_size`` (weights that share a scale, None for a whole row or
tensor), and ``activations``: the bits that they are rounded to, None where they are not."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def quantization_of(model: Any) -> dict[str, Any] | None:
    """What a report says of a quantised model; None of one that is not.

    To what the config states it adds what was found in the model: ``dequantised``, whether the
    weights were unpacked to a float format as they were loaded; ``activations_run``, whether
    activations are rounded here; and ``head``, whether the output head is quantised too.
    """
    given = getattr(model.config, "quantization_config", None)
    if given is None:
        return None
    settings = given if isinstance(given, Mapping) else given.to_dict()
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method")))
    layers = list(_quantised_layers(model))
    probed = layers or [m for m in model.modules() if type(m) is torch.nn.Linear]
    return {
        "method": method,
        **_READERS.get(method, _plainly_stated)(settings),
        "dequantised": not layers,
        "activations_run": _rounds_activations(probed[0], model) if probed else None,
        "head": is_quantised(model.get_output_embeddings()),
    }


def is_quantised(layer: Any) -> bool:
    """Whether a layer has its weight in another form than a matrix of floats."""
    weight = getattr(layer, "weight", None)
    if weight is None:
        return True
    return type(weight) not in (Tensor, torch.nn.Parameter) or weight.dtype not in FLOATS


def features(layer: Any) -> tuple[int, int] | None:
    """How many numbers a linear layer takes and gives, by whatever names; None of other layers."""
    for names in (("in_features", "out_features"), ("infeatures", "outfeatures")):
        found = tuple(getattr(layer, name, None) for name in names)
        if all(isinstance(n, int) for n in found):
            return found  # type: ignore[return-value]
    return None


def _quantised_layers(model: Any) -> Iterator[Any]:
    for layer in model.modules():
        if features(layer) is not None and is_quantised(layer):
            yield layer


@torch.inference_mode()
def _rounds_activations(layer: Any, model: Any) -> bool | None:
    """Whether a layer rounds what it is given, told by inputs that only rounding makes equal.

    Beside a large number an integer scale loses small ones; a fixed scale loses small ones
    alone; an 8-bit float has the same code for numbers that are 1 % apart. None where the layer
    cannot be run by itself.
    """
    found = features(layer)
    assert found is not None
    large = torch.zeros(1, found[0])
    large[0, 0] = 5.0
    small = 0.015 * torch.rand(1, found[0], generator=torch.Generator().manual_seed(0))
    small[0, 0] = 0.0
    ones = torch.ones(1, found[0]) + 4 * (large > 0)
    pairs = ((large, large + small), (0 * small, 0.02 * small), (ones, ones + 0.01 * (large == 0)))
    try:
        return any(torch.equal(*(_run(layer, x, model) for x in pair)) for pair in pairs)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return None


def _run(layer: Any, given: Tensor, model: Any) -> Tensor:
    made: Tensor = layer(given.to(model.device, model.dtype))
    return made


def _plainly_stated(settings: Mapping[str, Any]) -> Stated:
    return {
        "bits": settings.get("bits"),
        "group_size": _grouped(settings.get("group_size")),
        "activations": None,
    }


def _grouped(size: Any) -> Any:
    """A group size; -1 stands for a whole row."""
    return None if size == -1 else size


def _bitsandbytes(settings: Mapping[str, Any]) -> Stated:
    if settings.get("load_in_8bit"):
        return {"bits": 8, "group_size": None, "activations": 8}
    kind = settings.get("bnb_4bit_quant_type")
    return {"bits": 4, "group_size": 64, "activations": None, "type": kind}


def _torchao(settings: Mapping[str, Any]) -> Stated:
    """By the name of its class, such as Int8DynamicActivationInt4WeightConfig."""
    kinds = settings.get("quant_type")
    first = next(iter(kinds.values())) if isinstance(kinds, Mapping) and kinds else {}
    name = str(first.get("_type", "")) if isinstance(first, Mapping) else str(first)
    data = first.get("_data", {}) if isinstance(first, Mapping) else {}
    activations = re.search(r"(\d+)\w*?Activation", name)
    weights = re.search(r"(\d+)Weight", name)
    return {
        "bits": int(weights[1]) if weights else None,
        "group_size": data.get("group_size"),
        "activations": int(activations[1]) if activations else None,
        "type": name.removesuffix("Config") or None,
    }


def _compressed(settings: Mapping[str, Any]) -> Stated:
    groups = settings.get("config_groups") or {}
    first = next(iter(groups.values()), None) or {}
    weights, inputs = first.get("weights") or {}, first.get("input_activations") or {}
    return {
        "bits": weights.get("num_bits"),
        "group_size": _grouped(weights.get("group_size")),
        "activations": inputs.get("num_bits"),
        "type": settings.get("format"),
    }


def _fp8(settings: Mapping[str, Any]) -> Stated:
    return {"bits": 8, "group_size": settings.get("weight_block_size"), "activations": 8}


def _mxfp4(_settings: Mapping[str, Any]) -> Stated:
    return {"bits": 4, "group_size": 32, "activations": None}


def _hqq(settings: Mapping[str, Any]) -> Stated:
    own = (settings.get("quant_config") or {}).get("weight_quant_params") or {}
    return _plainly_stated({"bits": own.get("nbits"), "group_size": own.get("group_size")})


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Stated]] = {
    "bitsandbytes": _bitsandbytes,
    "torchao": _torchao,
    "compressed-tensors": _compressed,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "hqq": _hqq,
}
"""Who reads the settings of which method; the others state them plainly."""
