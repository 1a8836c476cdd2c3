"""The rotary embedding of a GGUF file, in the words of transformers.

What is set in the config is taken out of ``rest``, the keys that nobody has heeded yet.
"""

import math
from typing import Any

from klcli.sources.hf.gguf_file import GGUFFile


def set_rope(config: Any, file: GGUFFile, rest: dict[str, Any]) -> None:
    """Set all that makes the rotary embedding, where a model has one."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    whole, windowed = rope.get("full_attention", rope), rope.get("sliding_attention")
    if (base := rest.pop("rope.freq_base", None)) is not None:
        whole["rope_theta"] = base
    if windowed is not None and (base := rest.pop("rope.freq_base_swa", None)) is not None:
        windowed["rope_theta"] = base
    if whole.get("rope_type") == "proportional":
        return  # its class knows which frequencies are left out
    _set_rotated(config, whole, rest)
    whole.update(_divided(config, file, rest) or _scaled(config, rest))
    config.validate_rope()


def _set_rotated(config: Any, rope: dict[str, Any], rest: dict[str, Any]) -> None:
    """Set how much of a head is rotated."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    stated = rest.get("rope.dimension_count", head)
    if "partial_rotary_factor" in rope and stated != int(head * rope["partial_rotary_factor"]):
        rope["partial_rotary_factor"] = stated / head
    if stated == int(head * rope.get("partial_rotary_factor", 1)):
        rest.pop("rope.dimension_count", None)


def _divided(config: Any, file: GGUFFile, rest: dict[str, Any]) -> dict[str, Any] | None:
    """The divisors of frequencies that a file has as tensors: Llama 3 has one set, Phi 3 two.

    Whatever formula they came from, transformers takes them as they are under the name longrope.
    """
    short = file.values("rope_freqs.weight") or file.values("rope_factors_short.weight")
    if not short:
        return None
    if rest.get("rope.scaling.type") == "longrope":
        del rest["rope.scaling.type"]
    original = _original(config, rest)
    if hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = original
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": file.values("rope_factors_long.weight") or short,
        "factor": max(1.0, config.max_position_embeddings / original),
        "attention_factor": rest.pop("rope.scaling.attn_factor", 0) or 1.0,
        "original_max_position_embeddings": original,
    }


def _scaled(config: Any, rest: dict[str, Any]) -> dict[str, Any]:
    """The formula that a file names, linear unless it says otherwise."""
    factor = rest.get("rope.scaling.factor") or rest.get("rope.scale_linear") or 1
    original = _original(config, rest)
    kind = rest.get("rope.scaling.type") or "linear"
    if kind not in ("linear", "yarn"):
        return {}
    for key in ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"):
        rest.pop(key, None)
    if kind == "linear":
        return {} if factor == 1 else {"rope_type": "linear", "factor": factor}
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        if stated := rest.pop(f"rope.scaling.yarn_{name}", None):
            scaling[name] = stated
    times = [rest.pop(f"rope.scaling.{name}attn_factor", 0) or 1.0 for name in ("", "yarn_")]
    if (product := math.prod(times)) != 1:
        scaling["attention_factor"] = product * (0.1 * math.log(factor) + 1)
    return scaling


def _original(config: Any, rest: dict[str, Any]) -> int:
    """How long the texts were before scaling."""
    stated = rest.pop("rope.scaling.original_context_length", 0)
    return int(stated or config.max_position_embeddings)
