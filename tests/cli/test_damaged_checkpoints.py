"""Files of a model or an adapter that are damaged or missing: one sentence that names the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from tests.cli.test_bad_input import Trap, assert_refused
from tests.running import Run

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 2712345\n"
WEIGHTS = "model.safetensors"
BIN = "pytorch_model.bin"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(reference: Path, tmp_path: Path) -> Path:
    """A copy of a model, to be damaged."""
    return Path(shutil.copytree(reference, tmp_path / "model"))


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def as_bin(folder: Path) -> Path:
    torch.save(load_file(folder / WEIGHTS), folder / BIN)
    (folder / WEIGHTS).unlink()
    return folder / BIN


def as_shards(folder: Path) -> Path:
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    place = {name: SHARDS[i % 2] for i, name in enumerate(names)}
    for shard in SHARDS:
        part = {name: weights[name] for name in names if place[name] == shard}
        save_file(part, folder / shard, {"format": "pt"})
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder / SHARDS[1]


def change(
    folder: Path, edit: Callable[[dict[str, Any]], object], name: str = "config.json"
) -> None:
    settings = json.loads((folder / name).read_text())
    edit(settings)
    (folder / name).write_text(json.dumps(settings))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS, BIN, INDEX, SHARDS[1]])
def test_a_pointer_of_git_lfs_is_named(klcli: Run, folder: Path, corpus: Path, name: str) -> None:
    if name in (BIN, INDEX):
        (folder / WEIGHTS).unlink()
    if name == SHARDS[1]:
        as_shards(folder)
    (folder / name).write_text(POINTER)
    says = f"{folder / name} is a pointer of Git LFS"
    assert_refused(klcli("perplexity", folder, corpus), 1, says, "git lfs pull")


def test_a_gguf_file_that_is_a_pointer_is_named(klcli: Run, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_text(POINTER)
    done = klcli("perplexity", tmp_path / "model.gguf", corpus)
    assert_refused(done, 1, "model.gguf is a pointer of Git LFS", "git lfs pull")


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "shards", "bin"])
def test_weights_that_are_cut_short_are_named(
    klcli: Run, folder: Path, corpus: Path, kind: str, share: float
) -> None:
    makers = {"safetensors": lambda f: f / WEIGHTS, "shards": as_shards, "bin": as_bin}
    path = makers[kind](folder)
    cut(path, share)
    done = klcli("perplexity", folder, corpus)
    assert_refused(done, 1, f"{path} is cut short or damaged", "download it again")


def test_a_shard_that_is_missing_is_named(klcli: Run, folder: Path, corpus: Path) -> None:
    as_shards(folder).unlink()
    done = klcli("perplexity", folder, corpus)
    says = f"names 2 files of weights, and 1 are missing, first {folder / SHARDS[1]}"
    assert_refused(done, 1, says, "download the missing files")


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "is not JSON"), ("[]", "not a JSON object"), ("{}", "no weight_map")],
)
def test_an_index_that_is_none(
    klcli: Run, folder: Path, corpus: Path, text: str, says: str
) -> None:
    as_shards(folder)
    (folder / INDEX).write_text(text)
    assert_refused(klcli("perplexity", folder, corpus), 1, f"{folder / INDEX} ", says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("not json", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("3", "is not a JSON object"),
        ("{}", "does not say which model it is of (model_type)"),
        ('{"model_type": ["gpt2"]}', "does not say which model it is of (model_type)"),
        ('{"model_type": "gpt22"}', "is of a 'gpt22' model, which transformers"),
        ('{"model_type": "gpt2", "quantization_config": [4]}', "is not an object: restore it"),
    ],
)
def test_a_config_that_is_none(
    klcli: Run, folder: Path, corpus: Path, text: str, says: str
) -> None:
    (folder / "config.json").write_text(text)
    done = klcli("perplexity", folder, corpus)
    assert_refused(done, 1, str(folder / "config.json"), says)


def test_a_tokenizer_that_is_not_json_is_named(klcli: Run, folder: Path, corpus: Path) -> None:
    cut(folder / "tokenizer.json")
    done = klcli("perplexity", folder, corpus)
    assert_refused(done, 1, f"{folder / 'tokenizer.json'} is not JSON", "download it again")


def test_weights_of_other_shapes_are_named_with_both_shapes(
    klcli: Run, folder: Path, corpus: Path
) -> None:
    change(folder, lambda c: c.update(n_positions=c["n_positions"] * 2))
    done = klcli("perplexity", folder, corpus)
    says = "has 1 weights of other shapes than its config asks for: transformer.wpe.weight is"
    assert_refused(done, 1, says, "128 x ", "and should be 256 x ")


@pytest.mark.parametrize("method", ["frob", None, 3, ["gptq"]])
def test_a_method_of_quantisation_that_nobody_knows(
    klcli: Run, folder: Path, corpus: Path, method: Any
) -> None:
    change(folder, lambda c: c.update(quantization_config={"quant_method": method}))
    says = "is quantised by 'frob'" if method == "frob" else "names no quant_method"
    assert_refused(klcli("perplexity", folder, corpus), 1, says, str(folder))


def test_a_pickle_of_tensors_runs(klcli: Run, folder: Path, reference: Path, corpus: Path) -> None:
    as_bin(folder)
    done = klcli("compare", reference, folder, corpus, "--limit", "2", "--gate", "kl<=0")
    assert done.code == 0, done.err


def test_a_pickle_of_anything_else_is_not_run(
    klcli: Run, folder: Path, corpus: Path, tmp_path: Path
) -> None:
    as_bin(folder)
    torch.save({"weight": Trap(tmp_path / "trapped")}, folder / BIN)
    done = klcli("perplexity", folder, corpus)
    assert_refused(done, 1, str(folder), "does not run code of a file", "safetensors")
    assert not (tmp_path / "trapped").exists()


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    """The folder of an adapter for the model."""
    peft = pytest.importorskip("peft")
    return _adapter(peft, GPT2LMHeadModel.from_pretrained(folder), tmp_path / "adapter", folder)


def _adapter(peft: Any, model: Any, to: Path, base: Path) -> Path:
    config = peft.LoraConfig(
        r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    )
    peft.get_peft_model(model, config).save_pretrained(to)
    change(to, lambda c: c.update(base_model_name_or_path=str(base)), "adapter_config.json")
    return to


ADAPTER = "adapter_model.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (lambda a: (a / ADAPTER).write_text(POINTER), f"{ADAPTER} is a pointer of Git LFS"),
    "cut": (lambda a: cut(a / ADAPTER), f"{ADAPTER} is cut short or damaged"),
    "empty file": (lambda a: cut(a / ADAPTER, 0), f"{ADAPTER} is cut short or damaged"),
    "no weights": (lambda a: save_file({}, a / ADAPTER), f"{ADAPTER} holds no weights"),
    "no file": (lambda a: (a / ADAPTER).unlink(), "has no weights (adapter_model.safetensors or"),
    "config": (
        lambda a: (a / "adapter_config.json").write_text("[]"),
        "adapter_config.json is not a JSON object",
    ),
    "kind": (
        lambda a: change(a, lambda c: c.update(peft_type="FROB"), "adapter_config.json"),
        "names no kind of adapter that peft knows",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGES)
def test_an_adapter_that_is_damaged(klcli: Run, adapter: Path, corpus: Path, damage: str) -> None:
    break_it, says = DAMAGES[damage]
    break_it(adapter)
    assert_refused(klcli("perplexity", adapter, corpus), 1, says)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", [f"{os.sep}no{os.sep}such{os.sep}base", "nobody/no-such-model"])
def test_an_adapter_whose_base_is_not_here(
    klcli: Run, adapter: Path, folder: Path, corpus: Path, base: str
) -> None:
    change(adapter, lambda c: c.update(base_model_name_or_path=base), "adapter_config.json")
    done = klcli("perplexity", adapter, corpus)
    assert_refused(done, 1, f"is for {base!r}", f"give MODEL and --adapter {adapter}")
    done = klcli("perplexity", folder, corpus, "--adapter", adapter, "--limit", "1")
    assert done.code == 0, done.err


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_base_is_told_with_both_shapes(
    klcli: Run, folder: Path, corpus: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    small = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=112))
    adapter = _adapter(peft, small, tmp_path / "other", folder)
    done = klcli("perplexity", adapter, corpus)
    assert_refused(done, 1, f"does not fit {folder}", "have other shapes, first", "[4, 16] in the")
