"""Checkpoints that libraries quantised run as they are, and are read without being changed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    TorchAoConfig,
)

from klcli import compare, layers, record
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.quiet import quiet_transformers
from klcli.sources.hf.tokenizer import load_tokenizer
from klcli.sources.options import LoadOptions
from tests.running import Run

pytestmark = [
    pytest.mark.quantised,
    pytest.mark.filterwarnings("ignore"),  # of the libraries, which are not ours to mend
]
WINDOWS = 4
METHODS = ("nf4", "fp4", "int8", "torchao-int8", "torchao-int8-dynamic", "torchao-fp8", "w8a16")


def settings_of(method: str) -> Any:
    if method in ("nf4", "fp4"):
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=method)
    if method == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao import quantization

    kinds: dict[str, Callable[[], Any]] = {
        "torchao-int8": quantization.Int8WeightOnlyConfig,
        "torchao-int8-dynamic": quantization.Int8DynamicActivationInt8WeightConfig,
        "torchao-fp8": quantization.Float8WeightOnlyConfig,
    }
    return TorchAoConfig(kinds[method]())


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "format": "int-quantized",
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        }
    },
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    """A small llama that is not quantised."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=112, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for weight in model.parameters():
        weight.data *= 4 if weight.ndim > 1 else 1
    return _saved(model, tmp_path_factory.mktemp("models") / "plain", fixtures)


def _saved(model: Any, folder: Path, fixtures: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(fixtures / "models" / "reference" / name, folder)
    return folder


@pytest.fixture(scope="module", params=METHODS)
def quantised(request: pytest.FixtureRequest, plain: Path, fixtures: Path) -> Path:
    """The same llama, as a library saved it."""
    method = str(request.param)
    folder = plain.parent / method
    if method == "w8a16":
        return _compressed(plain, folder)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings_of(method))
        return _saved(model, folder, fixtures)


def _compressed(plain: Path, folder: Path) -> Path:
    """Weights of compressed-tensors, made by hand: int8 codes, and a scale for each row."""
    shutil.copytree(plain, folder)
    weights = load_file(plain / "model.safetensors")
    for name in [name for name in weights if "_proj.weight" in name]:
        scale = weights[name].abs().amax(dim=1, keepdim=True) / 127
        weights[name.replace("weight", "weight_scale")] = scale
        weights[name] = (weights[name] / scale).round().clamp(-127, 127).to(torch.int8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": COMPRESSED}))
    return folder


def test_kl_is_that_of_the_float64_sum_over_its_own_logits(
    plain: Path, quantised: Path, corpus: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text()[:200])
    report = compare(plain, quantised, text, bos="none")
    assert report.tokens is not None
    targets = report.tokens.scores["token_id"]
    ids = load_tokenizer(str(plain), LoadOptions()).encode(text.read_text()).ids
    assert targets.tolist() == ids[1:].tolist()
    log_p, log_q = _log_probs(plain, ids[:-1]), _log_probs(quantised, ids[:-1])
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1).numpy()
    assert kl.mean() > 1e-5
    assert report.tokens.scores["kl"] == pytest.approx(kl, rel=1e-2, abs=1e-7)


STATED = {
    "nf4": ("bitsandbytes", 4, 64, None, False),
    "fp4": ("bitsandbytes", 4, 64, None, False),
    "int8": ("bitsandbytes", 8, None, 8, True),
    "torchao-int8": ("torchao", 8, None, None, False),
    "torchao-int8-dynamic": ("torchao", 8, None, 8, True),
    "torchao-fp8": ("torchao", 8, None, None, False),
    "w8a16": ("compressed-tensors", 8, None, None, False),
}


def test_its_provenance_says_what_is_quantised_and_what_of_that_runs(
    plain: Path, quantised: Path
) -> None:
    whole, found = (load_model(str(f), LoadOptions()).provenance for f in (plain, quantised))
    keys = ("method", "bits", "group_size", "activations", "activations_run")
    about = found["quantization"]
    assert tuple(about[key] for key in keys) == STATED[quantised.name]
    assert about["head"] is False
    assert found["parameters"] == whole["parameters"]
    assert found["bits_per_weight"] < whole["bits_per_weight"] / 2


def _log_probs(folder: Path, ids: Any) -> torch.Tensor:
    with quiet_transformers(), torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        logits = model(input_ids=torch.from_numpy(ids).long()[None]).logits[0]
    return torch.log_softmax(logits.double(), dim=-1)


def test_a_recording_of_it_gives_the_same_kl(
    plain: Path, quantised: Path, corpus: Path, tmp_path: Path
) -> None:
    record(quantised, corpus, tmp_path / "recording", limit=WINDOWS)
    live = compare(plain, quantised, corpus, limit=WINDOWS)
    recorded = compare(plain, tmp_path / "recording", limit=WINDOWS)
    assert recorded.metrics["kl"]["mean"] == pytest.approx(live.metrics["kl"]["mean"], rel=1e-9)


def test_it_parts_from_what_it_was_made_of_in_the_first_block(
    plain: Path, quantised: Path, corpus: Path
) -> None:
    found = layers(plain, quantised, corpus, limit=1)
    assert found.first_apart == "block 0"
    assert found.layers[0].error < 0.01
    assert layers(quantised, quantised, corpus, limit=1).first_apart is None


def test_one_weight_that_changes_changes_the_digest(quantised: Path, tmp_path: Path) -> None:
    changed = tmp_path / quantised.name
    shutil.copytree(quantised, changed)
    weights = load_file(changed / "model.safetensors")
    codes = [one for name, one in weights.items() if "mlp.up_proj" in name and one.ndim == 2]
    max(codes, key=torch.numel).view(torch.uint8).reshape(-1)[77] ^= 1
    metadata = _metadata(changed / "model.safetensors")
    save_file(weights, changed / "model.safetensors", metadata)
    digests = [load_model(str(f), LoadOptions()).digest() for f in (quantised, quantised, changed)]
    assert digests[0] == digests[1] != digests[2]


def _metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("quantised", ["int8", "w8a16"], indirect=True)
def test_libraries_are_quiet_in_this_process(
    plain: Path, quantised: Path, corpus: Path, klcli: Run
) -> None:
    done = klcli("compare", plain, quantised, corpus, "--limit", "2", "--format", "json")
    assert json.loads(done.out)["command"] == "compare"
    first, *warnings = done.err.splitlines()
    assert all(line.startswith(("Warning:", "  ")) for line in warnings)
    assert first.endswith("tokens/s")


@pytest.mark.slow
def test_libraries_say_nothing_on_the_terminal(plain: Path, quantised: Path, corpus: Path) -> None:
    command: list[str | Path] = [
        "klcli",
        "compare",
        plain,
        quantised,
        corpus,
        "--limit",
        "2",
        "--format",
        "json",
    ]
    loud = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, env=loud
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "compare"
    first, *warnings = done.stderr.splitlines()
    assert all(line.startswith(("Warning:", "  ")) for line in warnings)
    assert first.endswith("tokens/s")
