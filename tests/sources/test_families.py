"""Image-text checkpoints read text alone, and classes that are no language models are refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from klcli.errors import SourceError
from klcli.sources.hf.classes import class_of, task_of
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.quiet import quiet_transformers
from klcli.sources.options import LoadOptions
from klcli.text.windows import Window
from tests.sources.families import tiny_config, tiny_model

IMAGE_TEXT = (
    "aria", "aya_vision", "cohere2_vision", "cosmos3_edge", "cosmos3_omni", "deepseek_vl",
    "deepseek_vl_hybrid", "emu3", "exaone4_5", "fuyu", "gemma3", "git", "glm46v", "glm4v",
    "glm4v_moe", "glm_ocr", "glmga", "got_ocr2", "granite_docling", "hyperclovax_vision_v2",
    "idefics2", "idefics3", "inkling_mm_model", "internvl", "kosmos-2.5", "lfm2_vl", "lfm3_vl",
    "lighton_ocr", "llama4", "llava", "llava_next", "llava_next_video", "llava_onevision",
    "minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "mistral3", "mllama", "muse_glimmer", "ovis2",
    "paddleocr_vl", "pp_chart2table", "qianfan_ocr", "qwen2_5_omni_thinker", "qwen2_5_vl",
    "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe",
    "smolvlm", "unlimited_ocr", "video_llama_3", "video_llava", "vipllava",
)  # fmt: skip
"""Families whose default config the recipe makes small enough."""
QUICK = ("llava", "qwen2_vl", "mistral3")

FAMILIES = [
    family if family in QUICK else pytest.param(family, marks=pytest.mark.slow)
    for family in IMAGE_TEXT
]


def saved(model: Any, folder: Path, reference: Path) -> str:
    """A folder with the model, and the tokenizer of the fixtures."""
    with quiet_transformers():
        model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference / name, folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore")  # of families, which are not ours to mend
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_text_model_gives_its_own_logits_on_text(
    family: str, tmp_path: Path, reference: Path
) -> None:
    config = tiny_config(family)
    model = tiny_model(class_of("causal", config), config)
    source = load_model(saved(model, tmp_path, reference), LoadOptions())
    ids = np.arange(2, 34)
    window = Window(document=0, inputs=ids[:-1], targets=ids[1:], score_from=0, position=1)
    (rows,) = source.rows([[window]])
    with torch.inference_mode():
        own = model(input_ids=torch.from_numpy(ids[:-1]).long()[None]).logits[0]
    log_p = torch.log_softmax(own.double(), dim=-1)
    log_q = torch.log_softmax(rows.block(0, len(rows)).double(), dim=-1)
    assert float((log_p.exp() * (log_p - log_q)).sum(dim=-1).abs().max()) < 1e-6
    assert source.provenance["architecture"] == type(model).__name__


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
    model = tiny_model(transformers.ReformerModelWithLMHead, config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)
    source = load_model(saved(model, tmp_path, reference), LoadOptions())
    codes = [notice.code for notice in source.notices]
    assert codes == (["noisy_model"] if hash_seed is None else [])
