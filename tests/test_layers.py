"""Where two models part: what is changed in one of them is where it is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from klcli import layers, record
from klcli.errors import MismatchError, SourceError, UsageError
from klcli.judge.layers import Layer, Layers
from klcli.layerwise import DEFAULT_TOKENS
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.quiet import quiet_transformers
from klcli.sources.options import LoadOptions
from tests.running import Run
from tests.sources.families import tiny_model

SIZES = {
    "vocab_size": 112, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
Change = Callable[[Any], object]


@pytest.fixture
def llama() -> Any:
    """A random model of four blocks, whose head is apart from its embeddings."""
    return tiny_model(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZES))


@pytest.fixture
def saved(tmp_path: Path, reference: Path) -> Callable[..., str]:
    """Saves a model, changed in some way, with a tokenizer that fits it."""

    def save(model: Any, name: str, change: Change = lambda _model: None) -> str:
        with torch.no_grad():
            change(model)
        with quiet_transformers():
            model.save_pretrained(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(reference / file, tmp_path / name)
        return str(tmp_path / name)

    return save


def shift(tensor: Tensor) -> None:
    """Change a weight by a little in every number."""
    tensor.add_(0.01 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))


def by_name(found: Layers) -> dict[str, Layer]:
    return {layer.layer: layer for layer in found.layers}


NAMES = ["embedding", "block 0", "block 1", "block 2", "block 3", "final", "logits"]


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda m: shift(m.model.embed_tokens.weight), "embedding"),
        (lambda m: shift(m.model.layers[0].self_attn.q_proj.weight), "block 0"),
        (lambda m: shift(m.model.layers[2].mlp.down_proj.weight), "block 2"),
        (lambda m: shift(m.model.layers[3].self_attn.o_proj.weight), "block 3"),
        (lambda m: shift(m.model.norm.weight), "final"),
        (lambda m: shift(m.lm_head.weight), "logits"),
    ],
    ids=["embedding", "block-0", "block-2", "block-3", "final-norm", "head"],
)
def test_models_part_where_one_was_changed(
    llama: Any, saved: Callable[..., str], corpus: Path, change: Change, first: str
) -> None:
    found = layers(saved(llama, "a"), saved(llama, "b", change), corpus, limit=2)
    assert [layer.layer for layer in found.layers] == NAMES
    assert found.first_apart == first
    place = NAMES.index(first)
    assert [layer.error > 0 for layer in found.layers] == [n >= place for n in range(len(NAMES))]
    assert [layer.module for layer in found.layers if layer.module] == [
        f"model.layers.{number}" for number in range(4)
    ]


def test_a_model_does_not_part_from_itself(
    llama: Any, saved: Callable[..., str], corpus: Path
) -> None:
    model = saved(llama, "a")
    found = layers(model, model, corpus, limit=2)
    assert (found.first_apart, found.rise) == (None, None)
    assert [layer.error for layer in found.layers] == [0.0] * len(NAMES)
    assert [layer.cosine for layer in found.layers] == pytest.approx([1.0] * len(NAMES))


def test_rounding_to_16_bits_is_not_taken_for_a_difference(reference: Path, corpus: Path) -> None:
    found = layers(reference, reference, corpus, limit=2, candidate_dtype="bfloat16")
    assert found.first_apart is None
    assert all(1e-4 < layer.error < layer.allowed for layer in found.layers)


def test_the_error_rises_most_where_most_was_changed(
    llama: Any, saved: Callable[..., str], corpus: Path
) -> None:
    def change(model: Any) -> None:
        shift(model.model.layers[0].mlp.down_proj.weight)
        model.model.layers[2].mlp.down_proj.weight.mul_(-4)

    found = layers(saved(llama, "a"), saved(llama, "b", change), corpus, limit=2)
    assert found.first_apart == "block 0"
    assert found.rise is not None
    assert found.rise.layer == "block 2"
    assert found.rise.after == by_name(found)["block 2"].token_error


# The numbers


def own_states(model: Any, inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What transformers gives of one sequence, by the names of layers."""
    last: list[Tensor] = []
    hook = model.model.layers[-1].register_forward_hook(
        lambda _block, _args, out: last.append(out if isinstance(out, Tensor) else out[0])
    )
    with torch.inference_mode():
        given = model(input_ids=torch.from_numpy(inputs).long()[None], output_hidden_states=True)
    hook.remove()
    states = [*given.hidden_states[:-1], last[0], given.hidden_states[-1], given.logits]
    return {name: state[0].double().numpy() for name, state in zip(NAMES, states, strict=True)}


def test_the_numbers_are_those_of_an_independent_computation(
    llama: Any, saved: Callable[..., str], corpus: Path
) -> None:
    other = tiny_model(transformers.LlamaForCausalLM, llama.config)
    a = saved(llama, "a")
    b = saved(other, "b", lambda m: shift(m.model.layers[1].mlp.up_proj.weight))
    found = by_name(layers(a, b, corpus, limit=3, context=32, stride=16))
    ids = np.array(load_model(a, LoadOptions()).vocabulary.encode(corpus.read_text()).ids)
    windows = [(ids[0:32], 0), (ids[16:48], 16), (ids[32:64], 16)]
    sides = [
        [(own_states(model, window), first) for window, first in windows]
        for model in (llama, other)
    ]
    for name in NAMES:
        p, q = (np.concatenate([states[name][first:] for states, first in side]) for side in sides)
        errors = np.linalg.norm(q - p, axis=1) / np.linalg.norm(p, axis=1)
        cosines = (p * q).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1)
        one = found[name]
        assert one.error == pytest.approx(
            np.linalg.norm(q - p) / np.linalg.norm(p), rel=1e-4, abs=1e-6
        )
        assert one.token_error == pytest.approx(errors.mean(), rel=1e-4, abs=1e-6)
        assert one.cosine == pytest.approx(cosines.mean(), rel=1e-6)
        assert one.largest is not None
        assert one.largest.error == pytest.approx(errors.max(), rel=1e-4, abs=1e-6)
        if name.startswith("block") and one.error > 1e-3:
            assert one.largest.index == errors.argmax()
            assert one.largest.token_id == ids[one.largest.position]


@pytest.mark.parametrize("side", ["reference", "masked-reference"])
def test_the_size_of_batches_changes_nothing(fixtures: Path, corpus: Path, side: str) -> None:
    models = fixtures / "models"
    pair = (models / side, models / side.replace("reference", "candidate"))
    wide, narrow = (
        layers(*pair, corpus, limit=6, context=48, batch_tokens=size) for size in (2048, 60)
    )
    for one, other in zip(wide.layers, narrow.layers, strict=True):
        assert one.error == pytest.approx(other.error, rel=1e-4, abs=1e-6)
        assert one.cosine == pytest.approx(other.cosine, rel=1e-6)
        assert (one.largest and one.largest.index) == (other.largest and other.largest.index)


def test_masked_models_part_where_one_was_changed(
    fixtures: Path, corpus: Path, tmp_path: Path
) -> None:
    bert = fixtures / "models" / "masked-reference"
    model = transformers.BertForMaskedLM.from_pretrained(bert)
    with torch.no_grad():
        shift(model.bert.encoder.layer[1].output.dense.weight)
    shutil.copytree(bert, tmp_path / "changed")
    with quiet_transformers():
        model.save_pretrained(tmp_path / "changed")
    found = layers(bert, tmp_path / "changed", corpus, limit=2)
    assert found.first_apart == "block 1"
    assert found.protocol["mask_every"] == 16
    assert layers(bert, bert, corpus, limit=1, pll="original").protocol["mask_every"] is None


def test_nan_is_where_models_part(llama: Any, saved: Callable[..., str], corpus: Path) -> None:
    def change(model: Any) -> None:
        model.model.layers[1].input_layernorm.weight[0] = torch.inf

    found = layers(saved(llama, "a"), saved(llama, "b", change), corpus, limit=1)
    assert found.first_apart == "block 1"
    assert by_name(found)["block 1"].not_finite == found.counts["tokens"]
    assert by_name(found)["block 0"].error == 0
    assert [one.code for one in found.warnings] == ["excluded"]
    assert found.warnings[0].message.startswith("64 of 64 tokens are left out in block 1")
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_a_model_of_fewer_blocks_is_compared_as_far_as_it_goes(
    llama: Any, saved: Callable[..., str], corpus: Path
) -> None:
    whole = saved(llama, "a")

    def cut(model: Any) -> None:
        model.model.layers = model.model.layers[:3]
        model.config.num_hidden_layers = 3

    found = layers(whole, saved(llama, "b", cut), corpus, limit=1)
    assert [layer.layer for layer in found.layers] == [n for n in NAMES if n != "block 3"]
    assert found.first_apart == "final"
    assert [one.code for one in found.warnings] == ["depths_differ"]
    assert "4 blocks" in found.warnings[0].message


# How much is read


def test_without_a_limit_the_first_tokens_are_read(
    klcli: Run, reference: Path, corpus: Path
) -> None:
    done = klcli("layers", reference, reference, corpus, "--format", "json")
    counts = json.loads(done.out)["counts"]
    assert DEFAULT_TOKENS - 128 < counts["tokens"] <= DEFAULT_TOKENS < counts["tokens_in_all"]
    assert "the first of 3,584" in klcli("layers", reference, reference, corpus).out


def test_a_limit_counts_windows(reference: Path, corpus: Path) -> None:
    counts = layers(reference, reference, corpus, limit=3, context=64).counts
    assert counts["windows"] == 3
    assert counts["tokens"] == 192


# What is refused


def test_what_is_not_a_model_is_refused(
    klcli: Run, fixtures: Path, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    record(reference, corpus, tmp_path / "recording", limit=1)
    for path, kind in (
        (tmp_path / "recording", "recording"),
        (fixtures / "logits" / "reference.npz", "logit file"),
    ):
        done = klcli("layers", reference, path, corpus)
        assert (done.code, done.out) == (1, "")
        assert f"{path} is a {kind}" in done.err
        with pytest.raises(SourceError, match="give the model itself"):
            layers(path, reference, corpus)


def test_states_of_other_sizes_are_refused(
    llama: Any, saved: Callable[..., str], corpus: Path
) -> None:
    sizes = SIZES | {"hidden_size": 48, "num_hidden_layers": 2}
    wider = tiny_model(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes))
    with pytest.raises(MismatchError, match=r"4 blocks of 32 numbers .* 2 blocks of 48 numbers"):
        layers(saved(llama, "a"), saved(wider, "b"), corpus, limit=1)


def test_a_causal_model_is_not_held_against_a_masked_one(
    fixtures: Path, reference: Path, corpus: Path
) -> None:
    with pytest.raises(MismatchError, match="compare two of one kind"):
        layers(reference, fixtures / "models" / "masked-reference", corpus)


def test_there_must_be_a_text(klcli: Run, reference: Path) -> None:
    assert klcli("layers", reference, reference).code == UsageError.exit_code


@pytest.mark.parametrize("option", ["--compile", "--values", "--token-ids", "--tokenizer"])
def test_options_that_mean_nothing_to_layers_are_unknown(
    klcli: Run, reference: Path, corpus: Path, option: str
) -> None:
    done = klcli("layers", reference, reference, corpus, option, "x")
    assert (done.code, done.out) == (2, "")


# What is written


def test_files_are_written_in_the_format_of_their_ending(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "layers.json", tmp_path / "layers.md"]
    outputs = [argument for file in files for argument in ("--output", file)]
    done = klcli("layers", reference, candidate, corpus, "--limit", "2", *outputs)
    assert done.code == 0
    assert json.loads(files[0].read_text())["first_apart"] == "block 0"
    assert "The models part at block 0" in files[1].read_text()
    assert "The models part at block 0" in done.out


def test_a_file_of_tokens_is_refused(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    done = klcli("layers", reference, reference, corpus, "--output", tmp_path / "layers.csv")
    assert (done.code, done.out) == (2, "")
    assert "use one of .json, .md" in done.err
