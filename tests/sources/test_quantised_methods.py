"""Methods of quantisation that cannot run here are one sentence, which says what to do."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizer_hqq import HqqHfQuantizer

from klcli.errors import SourceError
from klcli.sources.hf import methods
from tests.cli.test_bad_input import assert_refused
from tests.running import Run

PLAIN = {"gguf", "gemma"}
"""They need nothing: transformers has all of their code."""


@pytest.fixture
def folder(reference: Path, tmp_path: Path) -> Path:
    """A copy of a model, whose config is to name a method."""
    return Path(shutil.copytree(reference, tmp_path / "model"))


def _name(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))


def test_every_method_of_transformers_is_known() -> None:
    theirs = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}
    assert theirs == {*methods.METHODS} | PLAIN


def test_transformers_has_no_code_for_weights_of_hqq_yet() -> None:
    assert HqqHfQuantizer.get_quantize_ops is HfQuantizer.get_quantize_ops


@pytest.mark.parametrize(
    ("method", "packages"),
    [
        ("aqlm", "accelerate 'aqlm[cpu]'"),
        ("auto-round", "auto-round"),
        ("awq", "accelerate gptqmodel"),
        ("bitnet", "'klcli[quantised]'"),
        ("compressed-tensors", "'klcli[quantised]'"),
        ("fouroversix", "fouroversix"),
        ("fp8", "'klcli[quantised]'"),
        ("gptq", "optimum gptqmodel"),
        ("mxfp4", "'klcli[quantised]'"),
        ("mxfp8", "'klcli[quantised]'"),
        ("quanto", "'klcli[quantised]' optimum-quanto"),
        ("quark", "amd-quark"),
        ("sinq", "sinq"),
        ("torchao", "'klcli[quantised]'"),
    ],
)
def test_a_package_that_is_missing_is_named(
    klcli: Run,
    folder: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    packages: str,
) -> None:
    monkeypatch.setattr(methods, "find_spec", lambda _: None)
    _name(folder, quant_method=method)
    done = klcli("perplexity", folder, corpus)
    says = f"{folder} is quantised with {method}: pip install {packages} to run it"
    assert_refused(done, 1, says)


@pytest.mark.parametrize(
    "method", ["eetq", "fbgemm_fp8", "fp_quant", "higgs", "metal", "spqr", "vptq"]
)
def test_a_method_for_gpus_says_so_on_a_cpu(
    klcli: Run, folder: Path, corpus: Path, method: str
) -> None:
    _name(folder, quant_method=method)
    done = klcli("perplexity", folder, corpus, "--device", "cpu")
    assert_refused(done, 1, f"{folder} is quantised with {method}, which runs on a", "GPU only")


@pytest.mark.parametrize("method", ["hqq", "nvfp4"])
def test_a_method_that_transformers_does_not_read_says_so(
    klcli: Run, folder: Path, corpus: Path, method: str
) -> None:
    _name(folder, quant_method=method)
    done = klcli("perplexity", folder, corpus)
    assert_refused(done, 1, f"is quantised with {method}, and transformers", "another format")


def test_four_bits_of_torchao_say_what_they_need(
    klcli: Run, folder: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = {"default": {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {}}}
    _name(folder, quant_method="torchao", quant_type=kind)
    done = klcli("perplexity", folder, corpus, "--device", "cpu")
    assert_refused(done, 1, "torchao (Int4WeightOnlyConfig), which runs on a GPU only")
    monkeypatch.setattr(methods, "find_spec", lambda name: None if name == "mslk" else name)
    config = SimpleNamespace(quantization_config={"quant_method": "torchao", "quant_type": kind})
    with pytest.raises(SourceError, match="pip install mslk-cuda to run it"):
        methods.check_method("model", config, "cuda:0")


def test_a_config_whose_weights_are_not_of_its_method_says_so(
    klcli: Run, folder: Path, corpus: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    _name(folder, quant_method="bitsandbytes", load_in_4bit=True)
    done = klcli("perplexity", folder, corpus)
    assert_refused(done, 1, "its weights are not: take quantization_config out of config.json")


def test_a_package_that_a_package_lacks_is_named(
    klcli: Run, folder: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr("klcli.sources.hf.loading.check_method", lacking)
    done = klcli("perplexity", folder, corpus)
    assert_refused(done, 1, "is missing or does not work here (No module named 'onnx')")
