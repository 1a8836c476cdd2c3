"""The config of a GGUF file: all that the file states, also what transformers leaves out.

transformers reads a fixed list of keys for each architecture, and takes the defaults of a class for
the rest. What it leaves out is set here in the config. What can be set nowhere is refused.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from transformers import modeling_gguf_pytorch_utils as unpacking

from klcli.errors import SourceError
from klcli.sources.hf.checkpoint import Checkpoint
from klcli.sources.hf.gguf_file import GGUFFile
from klcli.sources.hf.gguf_rope import set_rope

FIELDS: Mapping[str, Sequence[str]] = {
    "attention.key_length": ["head_dim"],
    "attention.layer_norm_epsilon": [
        "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "rms_norm_eps",
    ],
    "attention.layer_norm_rms_epsilon": [
        "rms_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon", "layer_norm_eps",
    ],
    "attention.sliding_window": ["sliding_window"],
    "attn_logit_softcapping": ["attn_logit_softcapping"],
    "expert_feed_forward_length": ["moe_intermediate_size"],
    "expert_shared_feed_forward_length": ["shared_expert_intermediate_size"],
    "expert_used_count": ["num_experts_per_tok"],
    "expert_weights_norm": ["norm_topk_prob"],
    "final_logit_softcapping": ["final_logit_softcapping"],
    "use_parallel_residual": ["use_parallel_residual"],
}  # fmt: skip
"""Fields of a config, by the key of a file: the first that a config has is the one."""

SHAPES = {
    "attention.head_count", "attention.head_count_kv", "attention.value_length",
    "block_count", "context_length", "embedding_length",
    "expert_shared_count", "feed_forward_length", "vocab_size",
}  # fmt: skip
"""What the shapes of the weights tell too: where the config differs, loading fails."""

WITHOUT_EFFECT = {"pooling_type", "rope.scaling.finetuned", "tensor_data_layout"}

NEUTRAL: Mapping[str, set[Any]] = {
    "attention.causal": {True},
    "embedding_scale": {0, 1},
    "expert_gating_func": {0, 1},
    "expert_weights_scale": {0, 1},
    "logit_scale": {0, 1},
    "residual_scale": {0, 1},
    "rope.scale_linear": {0, 1},
    "rope.scaling.attn_factor": {0, 1},
    "rope.scaling.factor": {0, 1},
    "rope.scaling.type": {"", "none"},
    "rope.scaling.yarn_attn_factor": {0, 1},
    "rope.scaling.yarn_beta_fast": {0, 32},
    "rope.scaling.yarn_beta_slow": {0, 1},
    "rope.scaling.yarn_ext_factor": {-1, 0, 1},
}
"""Values that change nothing; of other keys it is zero."""


def gguf_config(file: GGUFFile, checkpoint: Checkpoint) -> Any:
    """The config of a GGUF file.

    Raises:
        SourceError: transformers does not know its architecture, or it states what cannot be set.
    """
    try:
        config = checkpoint.config()
    except ValueError as error:
        if "not supported" not in str(error):
            raise
        raise SourceError(_unsupported(file)) from error
    if config.is_encoder_decoder:
        raise SourceError(_unsupported(file))
    rest = {key: value for key, value in file.stated.items() if key not in WITHOUT_EFFECT}
    set_rope(config, file, rest)
    rest = {key: value for key, value in rest.items() if not _is_read(config, file, key)}
    _set_attention(config, file, rest)
    _set_fields(config, rest)
    if lost := {key: value for key, value in rest.items() if not _is_neutral(key, value)}:
        raise SourceError(_cannot_be_set(file, config, lost))
    return config


def _unsupported(file: GGUFFile) -> str:
    known = {*unpacking.GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer", "t5", "umt5"}
    return (
        f"{file.spec} has a model of architecture {file.architecture!r}, and transformers "
        f"{transformers.__version__} reads GGUF files of {', '.join(sorted(known))}: give the "
        "model's original weights, a folder or a Hub id, or the logits that llama-perplexity saves"
    )


def _cannot_be_set(file: GGUFFile, config: Any, lost: Mapping[str, Any]) -> str:
    stated = ", ".join(f"{file.architecture}.{key} = {value}" for key, value in lost.items())
    return (
        f"{file.spec} states {stated[:300]}, which a {type(config).__name__} of transformers "
        f"{transformers.__version__} has no place for, so predictions would be wrong: give the "
        "model's original weights, a folder or a Hub id"
    )


def _is_read_whole(architecture: str) -> bool:
    """Whether transformers has code of its own for the keys of an architecture."""
    if architecture == "gemma4":  # its layers differ, and its class knows how
        return True
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:
        return False
    return architecture in GGUF_CONFIG_ARCHS


def _is_read(config: Any, file: GGUFFile, key: str) -> bool:
    """Whether transformers has set it, or weights of the right shape show that it is set."""
    if _is_read_whole(file.architecture):
        return not key.startswith("rope.scaling.")
    mapping = unpacking.GGUF_TO_TRANSFORMERS_MAPPING["config"]
    names = (config.model_type, config.model_type.removesuffix("_text"), file.architecture)
    is_read = any(mapping.get(name, {}).get(key) is not None for name in names)
    is_alibi = file.architecture == "bloom" and key == "attention.max_alibi_bias"
    return is_read or key in SHAPES or is_alibi


def _is_neutral(key: str, value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(one in NEUTRAL.get(key, {0, ""}) for one in values)


def _set_fields(config: Any, rest: dict[str, Any]) -> None:
    """Set what a config has a field for, and take it out of ``rest``."""
    layers = getattr(config, "layer_types", None) or ["sliding_attention"]
    for key in [*rest]:
        field = next((name for name in FIELDS.get(key, ()) if hasattr(config, name)), None)
        if field == "sliding_window" and "sliding_attention" not in layers:
            continue  # no layer would look through it
        if field is not None:
            _set(config, field, rest.pop(key))


def _set(config: Any, field: str, value: Any) -> None:
    """Set a field that differs, in the type that it has: 0 is none."""
    was = getattr(config, field)
    if was != value and (was or value):
        setattr(config, field, type(was)(value) if was is not None else value)


def _set_attention(config: Any, file: GGUFFile, rest: dict[str, Any]) -> None:
    """Set which layers look through a window, the scale of attention, and whether it has biases."""
    layers = getattr(config, "layer_types", None)
    if layers and (pattern := rest.pop("attention.sliding_window_pattern", None)) is not None:
        if not isinstance(pattern, list):
            pattern = [(i + 1) % pattern != 0 for i in range(len(layers))]
        kinds = {True: "sliding_attention", False: "full_attention"}
        config.layer_types = [kinds[bool(slides)] for slides in pattern[: len(layers)]]
    if hasattr(config, "query_pre_attn_scalar"):
        if scale := rest.pop("attention.scale", None):
            config.query_pre_attn_scalar = round(1 / scale**2)
        elif (file.architecture, config.num_hidden_layers) in (("gemma2", 46), ("gemma3", 62)):
            # No key states it. llama.cpp too goes by the number of layers.
            config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    for field, part in {"attention_bias": r"attn_[qkv]", "mlp_bias": r"ffn_(gate|up|down)"}.items():
        has = any(re.fullmatch(rf"blk\.\d+\.{part}\.bias", name) for name in file.tensors)
        if has and getattr(config, field, None) is False:
            setattr(config, field, True)
