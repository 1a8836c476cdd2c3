"""A tiny random model of a family, made from the default config of its family."""

import contextlib
import copy
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import CONFIG_MAPPING
from transformers.integrations.heterogeneity import AmbiguousGlobalPerLayerAttributeError

TOKENS = 116
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
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "encoder_hidden_size"), 64),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 16),
    "linear_num_key_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
"""What makes a config small, by the names that families have for it."""

LATENT = {
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "head_dim"), 8),
    "qk_head_dim": 24,
    "num_key_value_heads": 4,
}
"""The same for multi-head latent attention, whose ``head_dim`` is that of the rotary part."""

SECTIONS = {
    "ernie4_5_vl_moe": (3, 3, 2),
    "hunyuan_vl": (4, 2, 2),
    "glm4v_moe": (2, 1, 1),
    **dict.fromkeys(("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl"), (4, 2, 2)),
    **dict.fromkeys(("qwen2_5_omni", "qwen2_5_vl", "qwen2_vl"), (4, 2, 2)),
}
"""How rotary embeddings are shared between time, height and width where code has a default."""


MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
HEADS = {"head_dim": 16}
FULL = {"layer_types": ["full_attention"] * 4}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
GEMMA = {
    "num_hidden_layers": 4, "head_dim": 16, "global_head_dim": 16,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": TOKENS,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
ASSISTED = GEMMA | dict.fromkeys(("hidden_size_per_layer_input", "vocab_size_per_layer_input"), 0)
DOTS = {
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "use_sliding_window": False, "use_dsa": False,
    "rope_parameters": {"full_attention": ROPE | {"partial_rotary_factor": 1.0}},
}  # fmt: skip
QUIRKS: dict[str, dict[str, Any]] = {
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "florence_vision": {"embed_dim": (16, 16, 32, 64), "depths": (1, 1, 1, 1)},
    "glm5_next_text": {"qk_rope_head_dim": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]],
                "attention_layers": ["global", "local"] * 2},
    "hy_v4_vl_text": {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
    "inkling2_loop_text": {"unpadded_vocab_size": TOKENS},
    "inkling2_text": {"unpadded_vocab_size": TOKENS},
    "laguna": {"num_attention_heads_per_layer": [4] * 4},
    "longformer": {"attention_window": [16] * 4},
    "mistral_large4_text": {"kv_source_layers": [0, 1, 2, 3], "no_rope_layers": [1, 1, 1, 0]},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "molmo2_text": {"rope_scaling_layers": [0, 1, 2, 3]},
    "radio": {"patch_dim": 192, "video_patch_dim": 384},
    "wavtokenizer_encoder": {"codebook_size": 32, "codebook_dim": 64},
    "apertus1p5": {"image_token_offset": 20, "audio_token_offset": 52},
    "apertus1p5_vision_tokenizer": {
        "base_channels": 32, "latent_channels": 32, "codebook_size": 32,
    },
    "bamba": MAMBA,
    "blt": {"encoder_hash_byte_group_vocab": 64, "cross_attn_k": 1},
    "blt_global_transformer": {"encoder_cross_output_size": None},
    "blt_local_decoder": {"cross_attn_k": 1, "hidden_size_global": 64},
    "blt_local_encoder": {"cross_attn_k": 1, "hidden_size_global": 64},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": FULL | {"rope_parameters": {"full_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"] * 2, "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"q_lora_rank": 16, "o_lora_rank": 16, "index_n_heads": 2, "index_head_dim": 16},
    "diffusion_gemma": {"text_config": GEMMA | EXPERTS},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "text_config": DOTS | {"hidden_size": 64},
        "audio_config": {"adapter_out_dim": 64},
        "vision_config": {
            "num_hidden_layers": 4, "mlp_layer_types": ["dense"] * 4, "adapter_in_dim": 64,
            "adapter_out_dim": 64,
            "hidden_size": 64, "num_attention_heads": 4,
        },
    },
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "adapter_out_dim": 64},
    "dots3_note_text": DOTS,
    "esm": {"vocab_size": TOKENS, "pad_token_id": 1, "mask_token_id": 2},
    "esmc": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 128, "lm_head_multiplier": 0.5},
    "gemma3n_text": FULL | {
        "num_kv_shared_layers": 0, "intermediate_size": [64] * 4, "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0] * 4, "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": TOKENS,
    },
    "gemma4": {"text_config": GEMMA},
    "gemma4_assistant": {"text_config": ASSISTED},
    "gemma4_text": GEMMA,
    "gemma4_unified": {"text_config": GEMMA},
    "gemma4_unified_assistant": {"text_config": ASSISTED},
    "gemma4_unified_text": GEMMA,
    "gptj": {"rotary_dim": 8},
    "granite4_vision": {"deepstack_layer_map": [(1, 1)], "downsample_rate": "1/2"},
    "granitemoehybrid": MAMBA,
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "hunyuan_v1_moe": HEADS,
    "hunyuan_vl_text": HEADS,
    "janus_vqgan": {"base_channels": 32, "latent_channels": 32},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"], "num_dense_layers": 2},
    "luke": {"entity_vocab_size": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
    "minimax_m3_vl": {"projector_hidden_size": 64, "merged_hidden_size": 256},
    "ministral": HEADS,
    "mistral4": {"head_dim": 16},
    "mobilebert": {
        "embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32,
        "num_feedforward_networks": 2,
    },
    "muse_spark": {"projector_hidden_size": 64},
    "muse_spark_audio": {"hidden_sizes": (16, 16, 32, 64), "depths": (1, 1, 1, 1)},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2},
    "nemotron_h_omni": {"projector_hidden_size": 64, "vision_hidden_size": 64},
    "neomme": {"num_hidden_layers": 4} | FULL,
    "neomme_text": {"num_hidden_layers": 4} | FULL,
    "perceiver": {
        "d_latents": 64, "num_latents": 16, "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "qk_channels": 64,
        "v_channels": 64,
    },
    "qwen4_exp_text": {
        "ngram_vocab_size_base": 100, "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 16, "indexer_budget": 16, "indexer_compress_ratio": 4,
    },
    "reformer": {
        "hidden_size": 64, "axial_pos_embds_dim": (16, 48), "axial_pos_shape": (8, 16),
        "attn_layers": ["local", "lsh"] * 2, "hash_seed": 1, "attention_head_size": 16,
        "lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8,
    },
    "squeezebert": {"embedding_size": 64},
    "step3p5": {"sliding_window": 16, "num_sliding_attention_heads": 4},
    "xlnet": {"d_head": 16},
    "xlstm": {"embedding_dim": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"n_mamba_heads": 2, "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128, "attention_head_dim": 32},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"mamba_headdim": 16, "n_mamba_heads": 8, "attention_head_dim": 32},
}  # fmt: skip
"""What a family needs beside that, by its own names."""


def tiny_config(family: str) -> Any:
    """The default config of a family, made small.

    What a family needs it is given when it is made, if it then is a whole, and is left with.
    """
    kind = CONFIG_MAPPING[family]
    try:
        config = kind(**QUIRKS.get(family, {}))
    except (StrictDataclassClassValidationError, ValueError, TypeError):
        config = kind()
    return _shrink(config)


def tiny_model(kind: Any, config: Any) -> Any:
    """A random model, always the same, in float32."""
    torch.manual_seed(0)
    make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    return make(config).eval().float()


def _shrink(config: Any) -> Any:
    sizes = SIZES | (LATENT if _is_latent(config) else {})
    for name, size in sizes.items():
        if type(_of_all_layers(config, name)) is int:
            with contextlib.suppress(AttributeError, RuntimeError):  # it is worked out
                setattr(config, name, size)
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(types := _of_all_layers(config, name), list):
            with contextlib.suppress(AttributeError):
                setattr(config, name, types[: SIZES["num_hidden_layers"]])
    rope = getattr(config, "rope_parameters", None)
    section = SECTIONS.get(config.model_type.removesuffix("_text"))
    if isinstance(rope, dict) and (section or rope.get("mrope_section")):
        rope["mrope_section"] = list(section or (4, 2, 2))
    for name in list(vars(config)):
        if isinstance(inner := _of_all_layers(config, name), transformers.PreTrainedConfig):
            _shrink(inner)
    for name, value in QUIRKS.get(config.model_type, {}).items():
        inner = getattr(config, name, None)
        if isinstance(inner, transformers.PreTrainedConfig):
            for key, one in value.items():
                setattr(inner, key, one)
        else:
            setattr(config, name, copy.deepcopy(value))
    return config


def _is_latent(config: Any) -> bool:
    return any(name in vars(config) for name in ("kv_lora_rank", "qk_nope_head_dim"))


def _of_all_layers(config: Any, name: str) -> Any:
    """A setting, or that of the first layer where layers have their own."""
    try:
        return getattr(config, name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return None
