"""A report says why two models differ where there is evidence, and nothing where there is none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from klcli import Report, compare, report
from klcli.judge.report import Finding
from klcli.sources.hf.loading import load_model
from klcli.sources.options import LoadOptions

SHAPE = {
    "vocab_size": 112, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
Edit = Callable[[Any], object]


def saved(folder: Path, tokenizer: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    return folder


def llama(**settings: Any) -> Any:
    """A llama with the same weights whatever its settings are, as far as it has them."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True))
    for layer in base.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "tie_word_embeddings": False, **settings}))
    with torch.no_grad():
        model.load_state_dict(base.state_dict(), strict=False)
    model.tie_weights()
    return model


def mistral(window: int | None) -> Any:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=window))


def causes(found: Report, cause: str) -> list[Finding]:
    return [one for one in found.findings if one.cause == cause]


@pytest.fixture
def pair(tmp_path: Path, reference: Path, corpus: Path) -> Callable[..., Report]:
    """Compares two models on a few windows of 64 tokens."""

    def compared(one: Any, other: Any, **options: Any) -> Report:
        folders = [
            saved(tmp_path / name, reference, model)
            for name, model in (("one", one), ("other", other))
        ]
        return compare(folders[0], folders[1], corpus, **{"limit": 8, "context": 64, **options})

    return compared


THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
SCALED = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}

FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, list[Any]]]] = {
    "the rotary base is lost": (
        THETA,
        {},
        {"rope_parameters.rope_theta": [100.0, 1e4]},
    ),
    "the scaling of rotary embeddings is lost": (
        SCALED,
        {},
        {"rope_parameters.rope_type": ["linear", "default"], "rope_parameters.factor": [4.0, None]},
    ),
    "biases are lost": (
        {"attention_bias": True},
        {"attention_bias": False},
        {"attention_bias": [True, None]},
    ),
    "a layer is lost": ({}, {"num_hidden_layers": 1}, {"num_hidden_layers": [2, 1]}),
    "the head is tied": (
        {},
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": [None, True]},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_settings_that_differ_are_named(pair: Callable[..., Report], fault: str) -> None:
    one, other, evidence = FAULTS[fault]
    found = pair(llama(**one), llama(**other))
    assert (found.metrics["kl"]["mean"] or 0) > 1e-3
    [finding] = causes(found, "settings")
    assert finding.evidence == evidence
    assert all(name in finding.message for name in evidence)


def test_a_sliding_window_that_differs_is_named(pair: Callable[..., Report]) -> None:
    [finding] = causes(pair(mistral(16), mistral(None)), "settings")
    assert finding.evidence == {"sliding_window": [16, None]}


def test_a_rotary_fault_begins_behind_row_0_and_rises(pair: Callable[..., Report]) -> None:
    [finding] = causes(pair(llama(**THETA), llama()), "position")
    assert finding.evidence["first_row"] == 1
    rows = finding.evidence["rows"]
    assert rows[0] == {"rows_from": 0, "tokens": 8, "kl": pytest.approx(0, abs=1e-7)}
    assert "rises with the row" in finding.message


def test_a_sliding_window_shows_in_the_row_from_which_on_models_differ(
    pair: Callable[..., Report],
) -> None:
    [finding] = causes(pair(mistral(16), mistral(None)), "position")
    assert finding.evidence["first_row"] == 16
    assert "rows 0 to 15" in finding.message


def test_another_head_is_flat_from_row_0_on(pair: Callable[..., Report]) -> None:
    other = llama()
    torch.manual_seed(1)
    torch.nn.init.normal_(other.lm_head.weight, std=0.3)
    [finding] = causes(pair(llama(), other, limit=40), "position")
    assert finding.evidence["first_row"] == 0
    assert "output head" in finding.message


@pytest.mark.parametrize("by", [1, -1])
def test_ids_that_are_moved_by_one_are_found(
    reference: Path, tmp_path: Path, corpus: Path, by: int
) -> None:
    found = _against_moved(reference, tmp_path, corpus, by)
    [finding] = causes(found, "shift")
    assert finding.evidence["by"] == by
    assert finding.evidence["kl"] < 0.05 * finding.evidence["kl_unmoved"]


def test_a_saved_run_still_tells_that_ids_are_moved(
    reference: Path, tmp_path: Path, corpus: Path
) -> None:
    found = _against_moved(reference, tmp_path, corpus, 1, run=tmp_path / "run")
    assert report(tmp_path / "run").findings == found.findings


def _against_moved(reference: Path, folder: Path, corpus: Path, by: int, **options: Any) -> Report:
    """A model against its own logits, with the vocabulary moved."""
    return _against(
        lambda logits, _ids: np.roll(logits, by, axis=-1), reference, folder, corpus, **options
    )


def _against(
    change: Callable[[Any, Any], Any],
    reference: Path,
    folder: Path,
    corpus: Path,
    special: int = 0,
    **options: Any,
) -> Report:
    """A model against its own logits (4, 64, vocabulary), changed, on text with some EOS in it."""
    source = load_model(str(reference), LoadOptions())
    ids = source.vocabulary.encode(corpus.read_text()).ids[:256].reshape(4, 64).copy()
    ids.reshape(-1)[5 : 5 + 9 * special : 9] = source.vocabulary.control_ids[0]
    with torch.inference_mode():
        logits = source._model(input_ids=torch.from_numpy(ids).long()).logits
    np.save(folder / "changed.npy", change(logits.numpy(), ids))
    np.save(folder / "ids.npy", ids)
    return compare(
        reference,
        folder / "changed.npy",
        candidate_token_ids=str(folder / "ids.npy"),
        tokenizer=str(reference),
        **options,
    )


def _noise_where(chosen: Any, logits: Any) -> Any:
    """Logits (n, length, vocabulary) with noise in the rows that predict some of the targets."""
    noise = np.random.default_rng(0).normal(size=logits.shape).astype(np.float32)
    rows = np.zeros(logits.shape[:2], dtype=bool)
    rows[:, :-1] = chosen[:, 1:]
    return logits + np.where(rows[..., None], noise, 0)


def test_one_kind_of_token_that_carries_most_of_the_kl_is_named(
    reference: Path, tmp_path: Path, corpus: Path
) -> None:
    names = load_model(str(reference), LoadOptions()).vocabulary

    def change(logits: Any, ids: Any) -> Any:
        is_mark = np.vectorize(lambda one: names.bytes_of(one).strip() in (b".", b",", b"?"))
        return _noise_where(is_mark(ids), logits)

    [finding] = causes(_against(change, reference, tmp_path, corpus), "share")
    assert finding.evidence["of"] == "punctuation tokens"
    assert finding.evidence["share"] == pytest.approx(1)


def test_special_tokens_that_carry_most_of_the_kl_are_named(
    reference: Path, tmp_path: Path, corpus: Path
) -> None:
    special = load_model(str(reference), LoadOptions()).vocabulary.control_ids[0]
    found = _against(
        lambda logits, ids: _noise_where(ids == special, logits),
        reference,
        tmp_path,
        corpus,
        special=25,
    )
    assert "special tokens" in [one.evidence["of"] for one in causes(found, "share")]


def test_a_document_that_carries_most_of_the_kl_is_named(
    reference: Path, tmp_path: Path, corpus: Path
) -> None:
    def change(logits: Any, ids: Any) -> Any:
        chosen = np.zeros(ids.shape, dtype=bool)
        chosen[2] = True
        return _noise_where(chosen, logits)

    [finding] = causes(_against(change, reference, tmp_path, corpus), "share")
    assert finding.evidence["of"].startswith("document ")
    assert finding.evidence["tokens"] == 64


def test_what_no_window_was_long_enough_to_show_is_said(pair: Callable[..., Report]) -> None:
    found = pair(mistral(16), mistral(None), context=16)
    assert found.metrics["kl"]["mean"] == 0
    [finding] = found.findings
    assert finding.cause == "not_seen"
    assert finding.evidence == {"setting": "sliding_window", "limit": 16, "longest_window": 16}


def _in_bfloat16(model: Any) -> Any:
    return model.to(torch.bfloat16)


def _noisy(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * weight.std() * torch.randn_like(weight)
    return model


def _rounded(model: Any) -> Any:
    """Every matrix rounded to 6 bits a row."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                scale = weight.abs().amax(dim=1, keepdim=True) / 31
                weight.copy_((weight / scale).round() * scale)
    return model


@pytest.mark.parametrize("change", [_in_bfloat16, _noisy, _rounded])
def test_of_a_healthy_pair_nothing_is_claimed(pair: Callable[..., Report], change: Edit) -> None:
    found = pair(llama(), change(llama()))
    assert (found.metrics["kl"]["mean"] or 0) > 0
    assert found.findings == []


def test_of_trained_models_nothing_is_claimed(
    reference: Path, candidate: Path, corpus: Path
) -> None:
    assert compare(reference, candidate, corpus).findings == []
