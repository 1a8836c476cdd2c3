"""Configs say what a checkpoint is; classes that are no language models are refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from klcli.errors import SourceError
from klcli.sources.hf.classes import class_of, task_of
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.quiet import quiet_transformers
from klcli.sources.options import LoadOptions
from tests.sources.families import tiny_config, tiny_model


def saved(model: Any, folder: Path, reference: Path) -> str:
    """A folder with the model, and the tokenizer of the fixtures."""
    with quiet_transformers():
        model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference / name, folder)
    return str(folder)


LLAMA = transformers.LlamaConfig(
    vocab_size=112, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [
        transformers.LlamaModel,
        transformers.LlamaForSequenceClassification,
        transformers.LlamaForTokenClassification,
    ],
)
def test_what_is_no_language_model_is_refused_although_its_embeddings_are_tied(
    kind: Any, tmp_path: Path, reference: Path
) -> None:
    folder = saved(kind(LLAMA), tmp_path, reference)
    with pytest.raises(SourceError, match=f"is a {kind.__name__}, which does not predict tokens"):
        load_model(folder, LoadOptions())
    allowed = LoadOptions(allow_other_architecture=True, allow_unused_weights=True)
    assert load_model(folder, allowed).provenance["architecture"] == "LlamaForCausalLM"


def test_a_class_that_no_registry_has_is_found_by_its_name() -> None:
    config = transformers.BertConfig(architectures=["LlamaForCausalLM"])
    config.__class__ = type("UnknownConfig", (transformers.PreTrainedConfig,), {})
    assert class_of("causal", config) is transformers.LlamaForCausalLM


def test_image_text_models_are_causal() -> None:
    config = tiny_config("llava")
    config.architectures = ["LlavaForConditionalGeneration"]
    assert task_of("model", config) == "causal"


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (transformers.XLMConfig(architectures=["XLMWithLMHeadModel"]), "masked"),
        (transformers.XLMConfig(architectures=["XLMWithLMHeadModel"], causal=True), "causal"),
        (transformers.XLMConfig(), "masked"),
        (transformers.BertConfig(architectures=["BertLMHeadModel"]), "causal"),
        (transformers.BertConfig(is_decoder=True), "causal"),
        (transformers.ReformerConfig(architectures=["ReformerForMaskedLM"]), "masked"),
        (transformers.ReformerConfig(architectures=["ReformerModelWithLMHead"]), "causal"),
    ],
)
def test_a_family_that_can_be_both_is_what_its_config_says(config: Any, task: str) -> None:
    assert task_of("model", config) == task


@pytest.mark.filterwarnings("ignore")  # of families, which are not ours to mend
@pytest.mark.parametrize("hash_seed", [None, 1])
def test_a_model_that_differs_from_itself_is_reported(
    hash_seed: int | None, tmp_path: Path, reference: Path
) -> None:
    config = tiny_config("reformer")
    config.is_decoder, config.hash_seed = True, hash_seed
    # Where all tokens fit a chunk their hashes do not matter.
    config.lsh_attn_chunk_length = 8 if hash_seed is None else 64
    model = tiny_model(transformers.ReformerModelWithLMHead, config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)
    source = load_model(saved(model, tmp_path, reference), LoadOptions())
    codes = [notice.code for notice in source.notices]
    assert codes == (["noisy_model"] if hash_seed is None else [])
