"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.gguf_writer import GGUFWriter

ALPHABET = [chr(i) for i in range(33, 33 + 94)]
CONTEXT = 64
SHAPE = {
    "vocab_size": len(ALPHABET) + 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def llama(config: Any, **fields: Any) -> Any:
    """A model of a class of configs of transformers, with random weights and sharp attention."""
    import transformers

    settings = config(**SHAPE | fields)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(settings).eval()


def write(
    path: Path,
    model: Any,
    stated: Mapping[str, Any],
    tensors: Mapping[str, Any] | None = None,
    *,
    architecture: str = "llama",
    parts: int = 1,
    raw: Mapping[str, tuple[Any, Any]] | None = None,
) -> Path:
    """Write a model as a file of GGUF, or as parts of which the first is returned.

    ``raw`` has bytes, and their type, of tensors that are not written in float32.
    """
    writer = GGUFWriter(path, architecture, split_max_tensors=-(-25 // parts) if parts > 1 else 0)
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in stated.items():
        kind = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
        getattr(writer, f"add_{kind[type(value)]}")(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", '!"', *ALPHABET])
    writer.add_token_types([3, *[1] * (len(ALPHABET) + 1)])
    writer.add_token_merges(['! "'])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    for name, tensor in (_tensors(model, architecture) | dict(tensors or {})).items():
        if raw and name in raw:
            writer.add_tensor(name, raw[name][0], raw_dtype=raw[name][1])
        else:
            writer.add_tensor(name, np.asarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if parts == 1 else sorted(path.parent.glob(f"{path.stem}-*"))[0]


def names_of(model: Any, architecture: str) -> dict[str, str]:
    """The names in GGUF of the weights of a model."""
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], model.config.num_hidden_layers)
    parts = {name: name.rsplit(".", 1) for name in model.state_dict()}
    return {name: f"{names.get_name(stem)}.{ending}" for name, (stem, ending) in parts.items()}


def _tensors(model: Any, architecture: str) -> dict[str, Any]:
    """The weights by their names in GGUF, those of rotated heads in llama's order."""
    config = model.config
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], config.num_hidden_layers)
    found = {}
    for name, weight in _apart(model):
        stem, ending = name.rsplit(".", 1)
        to = f"{names.get_name(stem)}.{ending}"
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        if architecture == "llama" and (n := heads.get(to.split(".")[-2])):
            halves = weight.reshape(n, 2, weight.shape[0] // n // 2, *weight.shape[1:])
            weight = halves.swapaxes(1, 2).reshape(weight.shape)
        if architecture in ("gemma2", "gemma3", "nemotron") and to.endswith("norm.weight"):
            weight = weight + 1
        found[to] = weight.numpy()
    return found


def _apart(model: Any) -> Iterator[tuple[str, Any]]:
    """The weights of a model, those of experts by their names in checkpoints, and no tied head."""
    for name, weight in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), weight.chunk(2, dim=1), strict=True):
                yield name.replace("gate_up", part) + ".weight", half
        elif "experts." in name:
            yield f"{name}.weight", weight
        elif name != "lm_head.weight" or not model.config.tie_word_embeddings:
            yield name, weight
