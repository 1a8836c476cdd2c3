"""A report says what ran: how large a model is, how it is quantised, what its config states."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from klcli.render.models import details_of
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.settings import settings_of
from klcli.sources.options import LoadOptions

SHAPE = {
    "vocab_size": 112, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def _saved(folder: Path, tokenizer: Path, *, tied: bool = False, shard: str = "1GB") -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    return folder


def _parameters(*, tied: bool) -> int:
    attention = 32 * 32 * 2 + 32 * 16 * 2
    layer = attention + 3 * 32 * 64 + 2 * 32
    return 112 * 32 * (1 if tied else 2) + 2 * layer + 32


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_by_hand_and_shared_ones_once(
    tmp_path: Path, reference: Path, *, tied: bool
) -> None:
    folder = _saved(tmp_path / "llama", reference, tied=tied)
    provenance = load_model(str(folder), LoadOptions()).provenance
    assert provenance["parameters"] == _parameters(tied=tied)
    assert provenance["bytes"] == (folder / "model.safetensors").stat().st_size
    bits = 8 * provenance["bytes"] / provenance["parameters"]
    assert provenance["bits_per_weight"] == pytest.approx(bits, abs=1e-3)
    assert provenance["quantization"] is None
    assert provenance["attention"] == "sdpa"


def test_bytes_are_those_of_all_shards_and_of_no_other_file(
    tmp_path: Path, reference: Path
) -> None:
    folder = _saved(tmp_path / "llama", reference, shard="20KB")
    shards = list(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    (folder / "training_args.bin").write_bytes(b"not weights")
    found = load_model(str(folder), LoadOptions()).provenance["bytes"]
    assert found == sum(path.stat().st_size for path in shards)


def test_settings_are_those_that_predictions_depend_on() -> None:
    config = LlamaConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert settings_of(config) == {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_parameters.rope_theta": 5e5,
        "rope_parameters.rope_type": "default",
    }


def test_a_model_is_shown_with_what_ran_of_its_quantisation() -> None:
    shown = details_of(
        {
            "source": "m",
            "dtype": "float32",
            "device": "cpu",
            "parameters": 134_515_008,
            "bits_per_weight": 8.123,
            "quantization": {
                "method": "torchao",
                "type": "Int8DynamicActivationInt8Weight",
                "bits": 8,
                "group_size": None,
                "activations": 8,
                "activations_run": False,
                "dequantised": True,
                "head": False,
            },
        }
    )
    assert shown == (
        "float32, cpu, 135 M parameters at 8.12 bits, torchao Int8DynamicActivationInt8Weight, "
        "8-bit weights, dequantised on loading, 8-bit activations, not rounded here"
    )
