"""A tiny random model of a family, made from the default config of its family."""

from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING

TOKENS = 112
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim"), 64),
    **dict.fromkeys(("text_hidden_size", "projection_dim", "out_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "head_dim", "attention_head_dim"), 16),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "vocab_size": TOKENS,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "image_size": 32,
    "patch_size": 8,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
"""What makes a config small, by the names that families have for it."""

SECTIONS = {
    "glm4v_moe": (2, 1, 1),
    **dict.fromkeys(("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl"), (4, 2, 2)),
    **dict.fromkeys(("qwen2_5_omni", "qwen2_5_vl", "qwen2_vl"), (4, 2, 2)),
}
"""How rotary embeddings are shared between time, height and width where code has a default."""


def tiny_config(family: str) -> Any:
    """The default config of a family, made small."""
    return _shrink(CONFIG_MAPPING[family]())


def tiny_model(kind: Any, config: Any) -> Any:
    """A random model, always the same, in float32."""
    torch.manual_seed(0)
    make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    return make(config).eval().float()


def _shrink(config: Any) -> Any:
    for name, size in SIZES.items():
        if type(getattr(config, name, None)) is int:
            setattr(config, name, size)
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(getattr(config, name, None), list):
            setattr(config, name, getattr(config, name)[: SIZES["num_hidden_layers"]])
    rope = getattr(config, "rope_parameters", None)
    section = SECTIONS.get(config.model_type.removesuffix("_text"))
    if isinstance(rope, dict) and (section or rope.get("mrope_section")):
        rope["mrope_section"] = list(section or (4, 2, 2))
    for name in list(vars(config)):
        if isinstance(inner := getattr(config, name), transformers.PreTrainedConfig):
            _shrink(inner)
    return config
