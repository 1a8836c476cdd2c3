"""The blocks of a model: which modules they are, and what is between them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from klcli.errors import SourceError
from klcli.sources.hf.blocks import running_blocks
from klcli.sources.hf.classes import class_of
from klcli.sources.hf.loading import load_model
from klcli.sources.options import LoadOptions
from klcli.text.windows import Window
from tests.sources.families import tiny_config, tiny_model
from tests.sources.test_families import saved

QUICK = ("gpt2", "llama", "gpt_neox", "qwen3")
SLOW = (
    "bloom", "gemma2", "gemma3_text", "mixtral", "mpt", "olmo2", "opt", "phi", "qwen2_moe",
    "starcoder2", "llava", "qwen2_vl", "mistral3", "idefics3",
)  # fmt: skip


@pytest.fixture
def llama(tmp_path: Path, reference: Path) -> str:
    """A random model of four blocks."""
    config = tiny_config("llama")
    return saved(tiny_model(class_of("causal", config), config), tmp_path, reference)


def windows_of(lengths: int, count: int) -> list[Window]:
    ids = np.random.default_rng(0).integers(2, 100, (count, lengths + 1))
    return [
        Window(document=0, inputs=one[:-1], targets=one[1:], score_from=0, position=1)
        for one in ids
    ]


@pytest.mark.filterwarnings("ignore")  # of families, which are not ours to mend
@pytest.mark.parametrize(
    "family", [*QUICK, *(pytest.param(f, marks=pytest.mark.slow) for f in SLOW)]
)
def test_the_states_are_those_that_transformers_gives(
    family: str, tmp_path: Path, reference: Path
) -> None:
    config = tiny_config(family)
    model = tiny_model(class_of("causal", config), config)
    source = load_model(saved(model, tmp_path, reference), LoadOptions())
    windows = windows_of(31, 2)
    found = source.states(windows)
    ids = torch.from_numpy(np.stack([window.inputs for window in windows]))
    with torch.inference_mode():
        given = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    first, *between, last = given.hidden_states
    names = [f"block {number}" for number in range(len(between) + 1)]
    assert list(found.hidden) == ["embedding", *names, "final"]
    expected = {"embedding": first, **dict(zip(names, between, strict=False)), "final": last}
    for name, states in expected.items():
        torch.testing.assert_close(found.hidden[name], states.flatten(0, 1), rtol=1e-5, atol=1e-5)
    logits = found.logits.block(0, len(found.logits))
    torch.testing.assert_close(logits, given.logits.flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_of_two_stacks_the_one_that_text_reaches_is_taken(tmp_path: Path, reference: Path) -> None:
    config = tiny_config("llava")
    config.vision_config.num_hidden_layers = 9
    model = tiny_model(class_of("causal", config), config)
    source = load_model(saved(model, tmp_path, reference), LoadOptions())
    assert len(source.block_names) == 4
    assert all("language_model" in name for name in source.block_names)


def test_a_block_that_runs_many_times_is_many_layers() -> None:
    config = transformers.AlbertConfig(
        vocab_size=112,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        embedding_size=16,
    )
    model = tiny_model(transformers.AlbertForMaskedLM, config)
    found = running_blocks(model, lambda: model(input_ids=torch.ones(1, 4).long()))
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


@pytest.mark.parametrize(
    ("count", "budget", "plain", "otherwise"),
    [(4, 64, [4], [1, 1, 1, 1]), (1, 64, [1], [2]), (3, 8, [1, 1, 1], [2, 1])],
    ids=["together", "one", "one-at-a-time"],
)
def test_the_noise_is_that_of_another_batch_shape(
    llama: str, count: int, budget: int, plain: Any, otherwise: Any
) -> None:
    source = load_model(llama, LoadOptions(batch_tokens=budget))
    source.states(windows_of(16, count))
    seen: list[int] = []
    source._model.model.register_forward_pre_hook(
        lambda _m, _args, named: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    rows = [len(s.logits) for s in (source.states(windows_of(16, count)),)]
    assert (seen, rows) == (plain, [16 * count])
    seen.clear()
    again = source.states_read_otherwise(windows_of(16, count))
    assert seen == otherwise
    assert {len(state) for state in again.hidden.values()} == {16 * count}


def test_looking_into_a_model_leaves_no_hooks(llama: str) -> None:
    source = load_model(llama, LoadOptions())
    source.states(windows_of(16, 2))
    modules = source._model.modules()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(SourceError, match="Linear has no stack of blocks"):
        running_blocks(torch.nn.Linear(2, 2), lambda: None)
