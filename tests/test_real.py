"""Real models against what other programs print of them."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from klcli import layers
from klcli.keywords import LayersOptions
from klcli.sources import Source
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.model import ModelSource
from klcli.sources.opening import open_source
from klcli.sources.options import LoadOptions
from tests.running import Run

pytestmark = pytest.mark.real

RELATIVE = 2e-4


@pytest.fixture
def wikitext(shared: Path) -> Path:
    """The first 60,000 bytes of the Wikitext-2 test set."""
    return shared / "corpora" / "wikitext2-test-60k.txt"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, smollm2_file: Path, smollm2: ModelSource) -> Path:
    """The model's file, which in float32 is not loaded again."""

    def opened(spec: str, options: LoadOptions, _beside: Source | None) -> Source:
        return open_source(spec, options) if options.dtype == "bfloat16" else smollm2

    monkeypatch.setattr("klcli.workflow.open_source", opened)
    return smollm2_file


@pytest.fixture
def printed(shared: Path) -> list[float]:
    """The running perplexities that llama.cpp printed, -c 512, 16 chunks."""
    text = (shared / "golden" / "llamacpp" / "README.md").read_text(encoding="utf-8")
    row = re.search(r"-c 512, 16 chunks.*running perplexity \| ([\d. ]+) \|", text)
    assert row is not None
    return [float(number) for number in row[1].split()]


def test_the_running_perplexities_are_those_of_llama_cpp(
    klcli: Run, loaded: Path, wikitext: Path, printed: list[float], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.jsonl"
    done = klcli(
        "perplexity", loaded, wikitext, "--protocol", "llama.cpp", "--limit", "16",
        "--output", tokens,
    )  # fmt: skip
    assert done.code == 0, done.err
    nll = np.array([json.loads(line)["nll"] for line in tokens.read_text().splitlines()])
    per_chunk = nll.reshape(16, 255).mean(axis=1)
    running = np.exp(np.cumsum(per_chunk) / np.arange(1, 17))
    assert running == pytest.approx(printed, rel=RELATIVE)


def test_smaller_chunks_agree_as_well(klcli: Run, loaded: Path, wikitext: Path) -> None:
    report = json_of(
        klcli, "perplexity", loaded, wikitext, "--protocol", "llama.cpp", "--context", "128",
        "--limit", "2",
    )  # fmt: skip
    assert report["counts"]["tokens"] == 126
    assert report["metrics"]["perplexity"]["value"] == pytest.approx(15.2264, rel=RELATIVE)


def test_bfloat16_is_a_small_step_from_float32(klcli: Run, loaded: Path, wikitext: Path) -> None:
    report = json_of(
        klcli, "compare", loaded, loaded, wikitext, "--candidate-dtype", "bfloat16",
        "--limit", "4",
    )  # fmt: skip
    metrics = report["metrics"]
    assert 1e-4 < metrics["kl"]["mean"] < 3e-3
    assert metrics["top1_agreement"]["value"] > 0.95
    assert abs(math.log(metrics["perplexity_ratio"]["value"])) < 0.01


@pytest.mark.slow
def test_bfloat16_parts_nowhere_and_a_block_that_was_changed_is_named(
    monkeypatch: pytest.MonkeyPatch, smollm2_file: Path, smollm2: ModelSource, wikitext: Path
) -> None:
    coarse = load_model(str(smollm2_file), LoadOptions(device="cpu", dtype="bfloat16"))

    def loaded(_spec: str, options: LoadOptions, _beside: Source | None) -> ModelSource:
        return coarse if options.dtype == "bfloat16" else smollm2

    monkeypatch.setattr("klcli.layerwise.open_model", loaded)
    settings: LayersOptions = {"candidate_dtype": "bfloat16", "context": 48, "limit": 1}
    found = layers(smollm2_file, smollm2_file, wikitext, **settings)
    assert len(found.layers) == 33
    assert found.first_apart is None
    with torch.no_grad():
        coarse._model.model.layers[15].mlp.down_proj.weight.mul_(1.5)
    changed = layers(smollm2_file, smollm2_file, wikitext, **settings)
    assert changed.first_apart == "block 15"
    assert changed.rise is not None
    assert changed.rise.layer == "block 15"


def json_of(klcli: Run, *arguments: str | Path) -> dict[str, Any]:
    done = klcli(*arguments, "--format", "json", "--quiet")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))
