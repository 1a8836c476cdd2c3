"""GGUF files: what they state is what the model does, and each is read once."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from klcli.errors import SourceError
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.tokenizer import load_tokenizer
from klcli.sources.options import LoadOptions

gguf = pytest.importorskip("gguf", reason="reading GGUF needs klcli[gguf]")
from tests.sources.gguf_files import ALPHABET, CONTEXT, llama, write  # noqa: E402


def loaded(path: Path) -> Any:
    return load_model(str(path), LoadOptions(device="cpu"))._model


@torch.inference_mode()
def largest_kl(model: Any, other: Any) -> float:
    """Of one window that fills the context, in nats."""
    ids = torch.randint(0, model.config.vocab_size, (1, CONTEXT), generator=torch.manual_seed(1))
    p, q = (m(input_ids=ids).logits.double().log_softmax(-1) for m in (model, other))
    return float((p.exp() * (p - q)).sum(-1).max())


def scaled(rope: dict[str, Any]) -> Any:
    return llama(transformers.LlamaConfig, rope_parameters={"rope_theta": 10000.0} | rope)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip


def divisors(model: Any) -> list[float]:
    plain = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    return list(plain / model.model.rotary_emb.inv_freq)


def test_the_divisors_of_llama_3_are_heeded(tmp_path: Path) -> None:
    model = scaled(LLAMA3)
    freqs = {"rope_freqs.weight": divisors(model)}
    path = write(tmp_path / "l3.gguf", model, {"rope.dimension_count": 8}, freqs)
    assert largest_kl(model, scaled({"rope_type": "default"})) > 0.01
    assert largest_kl(model, loaded(path)) < 1e-9


@pytest.mark.parametrize(
    ("rope", "stated"),
    [
        pytest.param({"rope_type": "default"}, {}, id="none"),
        pytest.param(
            {"rope_type": "linear", "factor": 4.0},
            {"scaling.type": "linear", "scaling.factor": 4.0},
            id="linear",
        ),
        pytest.param({"rope_type": "linear", "factor": 4.0}, {"scale_linear": 4.0}, id="old"),
        pytest.param(
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 16,
             "scaling.finetuned": True, "scaling.yarn_beta_fast": 32.0},
            id="yarn",
        ),
        pytest.param(
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
             "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 0.5 * (1 + 0.1 * np.log(4))},
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 16,
             "scaling.yarn_beta_fast": 4.0, "scaling.yarn_beta_slow": 0.5,
             "scaling.attn_factor": 0.5},
            id="yarn with all its numbers",
        ),
    ],
)  # fmt: skip
def test_the_scaling_that_a_file_states_is_heeded(
    rope: dict[str, Any], stated: dict[str, Any], tmp_path: Path
) -> None:
    model = scaled(rope)
    keys = {f"rope.{key}": value for key, value in stated.items()}
    path = write(tmp_path / "model.gguf", model, {"rope.freq_base": 10000.0} | keys)
    assert largest_kl(model, loaded(path)) < 1e-9


def test_a_window_and_factors_for_short_and_long_texts_are_heeded(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.25, 1.5, 2.0],
            "long_factor": [1.0, 2.0, 4.0, 8.0], "original_max_position_embeddings": 32,
            "attention_factor": 1.25, "factor": 2.0}  # fmt: skip
    model = llama(
        transformers.Phi3Config,
        rope_parameters=rope,
        sliding_window=16,
        original_max_position_embeddings=32,
    )
    stated = {"rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.25,
              "attention.sliding_window": 16, "rope.dimension_count": 8}  # fmt: skip
    factors = {f"rope_factors_{name}.weight": rope[f"{name}_factor"] for name in ("short", "long")}
    path = write(tmp_path / "phi.gguf", model, stated, factors, architecture="phi3")
    assert largest_kl(model, loaded(path)) < 1e-9


def test_half_of_a_head_is_rotated_where_a_file_says_so(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    model = llama(transformers.Phi3Config, rope_parameters=rope)
    path = write(tmp_path / "phi.gguf", model, {"rope.dimension_count": 4}, architecture="phi3")
    assert largest_kl(model, loaded(path)) < 1e-9


def test_biases_of_attention_are_loaded(tmp_path: Path) -> None:
    model = llama(transformers.LlamaConfig, attention_bias=True)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    path = write(tmp_path / "model.gguf", model, {})
    assert largest_kl(model, loaded(path)) < 1e-9


FAMILIES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "qwen2": (transformers.Qwen2Config, {}, {"rope.freq_base": 500.0}),
    "qwen3": (
        transformers.Qwen3Config,
        {"head_dim": 16},
        {"attention.key_length": 16, "attention.value_length": 16, "rope.freq_base": 500.0},
    ),
    "qwen3moe": (
        transformers.Qwen3MoeConfig,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "norm_topk_prob": False, "head_dim": 8},
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16,
         "expert_weights_norm": False, "attention.key_length": 8},
    ),
    "gemma2": (
        transformers.Gemma2Config,
        {"tie_word_embeddings": True, "head_dim": 8, "sliding_window": 16,
         "final_logit_softcapping": 5.0, "attn_logit_softcapping": 20.0,
         "query_pre_attn_scalar": 16},
        {"attention.key_length": 8, "attention.value_length": 8, "attention.sliding_window": 16,
         "final_logit_softcapping": 5.0, "attn_logit_softcapping": 20.0, "attention.scale": 0.25},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {"head_dim": 8, "sliding_window": 16,
         "layer_types": ["sliding_attention", "full_attention"],
         "rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 700.0},
             "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}}},
        {"attention.key_length": 8, "attention.value_length": 8, "attention.sliding_window": 16,
         "attention.sliding_window_pattern": 2, "rope.freq_base": 700.0,
         "rope.freq_base_swa": 300.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "stablelm": (
        transformers.StableLmConfig,
        {"partial_rotary_factor": 0.5, "layer_norm_eps": 0.125, "rope_theta": 500.0},
        {"rope.dimension_count": 4, "attention.layer_norm_epsilon": 0.125,
         "use_parallel_residual": False, "rope.freq_base": 500.0},
    ),
    "starcoder2": (
        transformers.Starcoder2Config,
        {"norm_epsilon": 0.125, "rope_theta": 500.0},
        {"attention.layer_norm_epsilon": 0.125, "rope.freq_base": 500.0},
    ),
    "nemotron": (
        transformers.NemotronConfig,
        {"norm_eps": 0.125, "partial_rotary_factor": 0.25},
        {"attention.layer_norm_epsilon": 0.125, "rope.dimension_count": 2,
         "rope.scaling.type": "none"},
    ),
}  # fmt: skip
"""What llama.cpp's converter states of each, with values that are not the defaults of the class."""


@pytest.mark.parametrize("architecture", FAMILIES)
def test_what_families_state_is_heeded(architecture: str, tmp_path: Path) -> None:
    kind, fields, stated = FAMILIES[architecture]
    if "rope.freq_base" in stated and "rope_theta" not in fields:
        fields = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}} | fields
    model = llama(kind, **fields)
    path = write(tmp_path / "model.gguf", model, stated, architecture=architecture)
    assert largest_kl(model, loaded(path)) < 1e-9


def test_the_largest_gemma_scales_attention_by_its_width(tmp_path: Path) -> None:
    model = llama(
        transformers.Gemma2Config, num_hidden_layers=46, head_dim=8, tie_word_embeddings=True
    )
    path = write(tmp_path / "27b.gguf", model, {"attention.key_length": 8}, architecture="gemma2")
    assert model.config.query_pre_attn_scalar == 256
    assert loaded(path).config.query_pre_attn_scalar == 32 / 4


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"rope.scaling.type": "dynamic"}, "llama.rope.scaling.type = dynamic"),
        ({"expert_count": 4}, "llama.expert_count = 4"),
        ({"logit_scale": 0.25}, "llama.logit_scale = 0.25"),
        ({"attention.sliding_window": 16}, "llama.attention.sliding_window = 16"),
        ({"attention.causal": False}, "llama.attention.causal = False"),
        ({"rope.dimension_count_swa": 4}, "llama.rope.dimension_count_swa = 4"),
        ({"a_key_of_tomorrow": 3}, "llama.a_key_of_tomorrow = 3"),
    ],
)
def test_what_cannot_be_set_is_refused(stated: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", llama(transformers.LlamaConfig), stated)
    with pytest.raises(SourceError, match=f"states {says}, which a LlamaConfig"):
        loaded(path)


def test_a_window_that_no_layer_looks_through_is_refused(tmp_path: Path) -> None:
    stated = {"attention.sliding_window": 16}
    model = llama(transformers.Qwen2Config)
    path = write(tmp_path / "model.gguf", model, stated, architecture="qwen2")
    with pytest.raises(SourceError, match=r"qwen2\.attention\.sliding_window = 16"):
        loaded(path)


def test_what_changes_nothing_passes(tmp_path: Path) -> None:
    stated = {"attention.causal": True, "logit_scale": 1.0, "a_key_of_tomorrow": 0,
              "expert_count": 0, "rope.scaling.type": "none", "pooling_type": 1}  # fmt: skip
    model = llama(transformers.LlamaConfig)
    assert largest_kl(model, loaded(write(tmp_path / "model.gguf", model, stated))) < 1e-9


def test_a_tensor_that_no_model_takes_is_named(tmp_path: Path) -> None:
    extra = {"blk.0.attn_q_norm.weight": np.ones(8)}
    path = write(tmp_path / "model.gguf", llama(transformers.LlamaConfig), {}, extra)
    with pytest.raises(SourceError, match=r"1 weights that .* \(blk\.0\.attn_q_norm\.weight\)"):
        loaded(path)


def test_without_such_a_tensor_it_runs_if_that_is_asked_for(tmp_path: Path) -> None:
    extra = {"blk.0.attn_q_norm.weight": np.ones(8)}
    model = llama(transformers.LlamaConfig)
    path = write(tmp_path / "model.gguf", model, {}, extra)
    source = load_model(str(path), LoadOptions(device="cpu", allow_unused_weights=True))
    assert [notice.code for notice in source.notices] == ["unused_weights"]
    assert largest_kl(model, source._model) < 1e-9


def test_an_architecture_that_is_not_supported_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "g.gguf", llama(transformers.LlamaConfig), {}, architecture="granite")
    with pytest.raises(
        SourceError, match=r"architecture 'granite'.* GGUF files of .*llama.*: give"
    ):
        loaded(path)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.999])
def test_a_file_that_is_cut_short_says_so(share: float, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", llama(transformers.LlamaConfig), {})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SourceError, match=r"cut short or damaged.*copy or download it again"):
        loaded(path)


def test_without_the_package_that_reads_them_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "model.gguf", llama(transformers.LlamaConfig), {})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SourceError, match=r"pip install 'klcli\[gguf\]'"):
        loaded(path)


def in_parts(folder: Path) -> list[Path]:
    write(folder / "model.gguf", llama(transformers.LlamaConfig), {}, parts=3)
    return sorted(folder.iterdir())


def test_parts_are_read_as_one_model(tmp_path: Path) -> None:
    first, *others = in_parts(tmp_path)
    assert len(others) == 2
    assert largest_kl(llama(transformers.LlamaConfig), loaded(first)) < 1e-9


def test_their_tokenizer_is_read_too(tmp_path: Path) -> None:
    first, *_ = in_parts(tmp_path)
    vocabulary = load_tokenizer(str(first), LoadOptions())
    assert vocabulary.size == len(ALPHABET) + 2


def test_where_transformers_cannot_join_parts_the_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = in_parts(tmp_path)
    monkeypatch.setattr("klcli.sources.hf.gguf_file._reads_by_itself", lambda _: True)
    with pytest.raises(SourceError, match=f"--merge {first} {tmp_path}/model.gguf"):
        loaded(first)


def test_another_part_than_the_first_names_the_first(tmp_path: Path) -> None:
    first, second, _ = in_parts(tmp_path)
    with pytest.raises(SourceError, match=f"is part 2 of 3: name the first, {first}"):
        loaded(second)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first, _, third = in_parts(tmp_path)
    third.unlink()
    with pytest.raises(SourceError, match=f"part 1 of 3, and 1 are missing, first {third}: put"):
        loaded(first)


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    first, second, third = in_parts(tmp_path)
    third.write_bytes(second.read_bytes())
    with pytest.raises(SourceError, match="parts of different files"):
        loaded(first)


def test_a_part_with_another_name_says_what_the_names_are(tmp_path: Path) -> None:
    first = in_parts(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(SourceError, match=r"one of 3 parts .*NAME-00001-of-00003\.gguf"):
        loaded(first)


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.gguf", llama(transformers.LlamaConfig), {})
    read: list[Path] = []
    own = gguf.GGUFReader.__init__

    def counted(reader: Any, at: Path) -> None:
        read.append(at)
        own(reader, at)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", counted)
    loaded(path)
    assert read == [path]


def test_nothing_is_shown_while_a_file_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded(write(tmp_path / "model.gguf", llama(transformers.LlamaConfig), {}))
    assert capfd.readouterr() == ("", "")
