"""A model runs with exactly the weights of its checkpoint, or is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from klcli import compare
from klcli.errors import SourceError
from klcli.sources.hf.loading import load_model
from klcli.sources.options import LoadOptions

Weights = dict[str, Tensor]
LAYER = "model.layers.0."


@pytest.fixture
def llama(tmp_path: Path, reference: Path) -> Path:
    """A small llama with the tokenizer of the fixtures."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=112, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return _saved(LlamaForCausalLM(config), tmp_path / "llama", reference)


def _saved(model: Any, folder: Path, tokenizer: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    return folder


def _change(folder: Path, edit: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _set(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def _one_layer_more(weights: Weights) -> None:
    again = {k.replace("layers.1", "layers.2"): v.clone() for k, v in weights.items()}
    weights.update(again)


def _with_scales(weights: Weights) -> None:
    weights[LAYER + "mlp.up_proj.weight_scale"] = torch.ones(64)


LEFT_OVER: dict[str, tuple[Callable[[Weights], object], str]] = {
    "scales": (_with_scales, "quantised weights whose quantization_config was lost"),
    "GPTQ": (
        lambda w: w.update({LAYER + "mlp.up_proj.qweight": torch.ones(4, 64, dtype=torch.int32)}),
        "weights of GPTQ or AWQ",
    ),
    "bitsandbytes": (
        lambda w: w.update({LAYER + "mlp.up_proj.SCB": torch.ones(64)}),
        "quantised weights whose quantization_config was lost",
    ),
    "biases": (
        lambda w: w.update({LAYER + "self_attn.q_proj.bias": torch.ones(32)}),
        "biases, which its config says it does not have",
    ),
    "layers": (_one_layer_more, "they reach to layer 2, and the config has 2 layers from 0"),
    "adapter": (
        lambda w: w.update({LAYER + "self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}),
        "an adapter that was saved with the model",
    ),
    "reward": (lambda w: w.update({"score.weight": torch.ones(1, 32)}), "the head of another task"),
    "unknown": (lambda w: w.update({"model.extra.weight": torch.ones(3)}), "model.extra.weight"),
}


@pytest.mark.parametrize("case", LEFT_OVER)
def test_a_weight_that_the_model_does_not_take_is_refused_by_name(llama: Path, case: str) -> None:
    edit, looks_like = LEFT_OVER[case]
    _change(llama, edit)
    with pytest.raises(SourceError) as raised:
        load_model(str(llama), LoadOptions())
    message = str(raised.value)
    assert looks_like in message
    assert "does not take" in message
    assert "--allow-unused-weights" in message


@pytest.mark.parametrize("case", LEFT_OVER)
def test_it_can_be_left_aside_if_a_user_says_so(llama: Path, case: str) -> None:
    _change(llama, LEFT_OVER[case][0])
    source = load_model(str(llama), LoadOptions(allow_unused_weights=True))
    assert [notice.code for notice in source.notices] == ["unused_weights"]


@pytest.mark.parametrize(
    "name",
    [
        LAYER + "self_attn.rotary_emb.inv_freq",
        LAYER + "attention.masked_bias",
        LAYER + "attn.bias",
        "model.embeddings.position_ids",
        "vision_tower.encoder.layers.9.weight",
        "model.visual.blocks.7.norm.weight",
    ],
)
def test_buffers_and_what_sees_pictures_are_no_part_of_it(llama: Path, name: str) -> None:
    _change(llama, lambda weights: weights.update({name: torch.ones(4)}))
    assert load_model(str(llama), LoadOptions()).notices == ()


def test_the_other_heads_of_bert_are_no_part_of_it(tmp_path: Path, fixtures: Path) -> None:
    config = BertConfig(
        vocab_size=112, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    folder = _saved(
        BertForMaskedLM(config), tmp_path / "bert", fixtures / "models" / "masked-reference"
    )
    more = {
        "bert.pooler.dense.weight": torch.ones(32, 32),
        "cls.seq_relationship.bias": torch.ones(2),
    }
    _change(folder, lambda weights: weights.update(more))
    assert load_model(str(folder), LoadOptions()).notices == ()


def test_integer_weights_without_a_quantization_config_are_refused(llama: Path) -> None:
    name = LAYER + "mlp.up_proj.weight"
    _change(llama, lambda w: w.update({name: (w[name] * 1000).to(torch.int8)}))
    with pytest.raises(SourceError, match=rf"whole numbers \({name} in model.safetensors\)"):
        load_model(str(llama), LoadOptions())


def test_a_method_of_quantisation_that_nobody_knows_is_refused(llama: Path) -> None:
    _set(llama, quantization_config={"quant_method": "qlattice", "bits": 3})
    with pytest.raises(SourceError, match="'qlattice', which transformers does not know"):
        load_model(str(llama), LoadOptions())


def test_missing_weights_are_refused(llama: Path) -> None:
    _change(llama, lambda weights: weights.pop(LAYER + "mlp.up_proj.weight"))
    with pytest.raises(SourceError, match=r"lacks 1 weights .* first model.layers.0.mlp.up_proj"):
        load_model(str(llama), LoadOptions())


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "adapter_config.json", "consolidated.00.pth", "model-Q4_K_M.gguf"],
)
def test_weights_that_are_not_read_are_named(llama: Path, name: str) -> None:
    (llama / name).write_text('{"base_model_name_or_path": "elsewhere", "peft_type": "LORA"}')
    (notice,) = load_model(str(llama), LoadOptions()).notices
    assert notice.code == "weights_not_read"
    assert f"holds model.safetensors, which runs, and {name} (newer), which is not read" in (
        notice.message
    )


def test_two_folders_with_the_same_weights_say_so(
    llama: Path, tmp_path: Path, corpus: Path
) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(llama, twin)
    report = compare(llama, twin, corpus, limit=64)
    assert [notice.code for notice in report.warnings] == ["same_model"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_hidden_layers": 100_000}, r"100,000 layers \(num_hidden_layers\).* 21 weights"),
        ({"num_labels": 10**9}, "1,000,000,000 labels"),
    ],
)
def test_counts_that_cannot_be_are_refused_before_a_model_is_made(
    llama: Path, settings: dict[str, int], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(llama, **settings)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
    with pytest.raises(SourceError, match=reason):
        load_model(str(llama), LoadOptions())


@pytest.mark.parametrize("name", ["reference", "masked-reference"])
def test_a_folder_without_its_tokenizer_is_refused(
    fixtures: Path, tmp_path: Path, name: str
) -> None:
    """Of some classes an empty tokenizer is made, to which every text is unknown."""
    folder = tmp_path / name
    shutil.copytree(fixtures / "models" / name, folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(SourceError, match=r"has no tokenizer \(such as .*tokenizer.json"):
        load_model(str(folder), LoadOptions())


def test_so_is_one_whose_family_has_no_tokenizer_of_its_own(llama: Path) -> None:
    for path in llama.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(SourceError, match="has no tokenizer"):
        load_model(str(llama), LoadOptions())
