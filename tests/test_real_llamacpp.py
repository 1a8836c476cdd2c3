"""A base file that llama.cpp wrote of SmolLM2-135M, and what it printed of it."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from klcli.measure.kernels import exact, truncated
from klcli.sources.files.llamacpp import BaseFileSource, open_base_file
from klcli.sources.files.llamacpp_writer import write_base_file
from klcli.sources.hf.causal import CausalSource
from klcli.sources.hf.model import ModelSource
from klcli.sources.kinds import is_base_file
from klcli.sources.options import LoadOptions
from klcli.text.corpus import Document
from klcli.text.cutting import encode_document, plan_windows
from klcli.text.protocols import choose_protocol
from klcli.text.windows import TokenizedDocument, WindowTable

pytestmark = pytest.mark.real

RELATIVE = 1e-3
"""transformers and llama.cpp multiply matrices in another order."""
PRINTED = 1e-6
"""Six digits after the point."""
FLOAT32 = 5e-6
"""Nats: llama.cpp takes the terms of a token's KL in float32. Of its own logits that moves a token
by up to 3e-6, which shows in the smallest quantiles; done so, every printed digit is found."""
Columns = Mapping[str, npt.NDArray[np.float64]]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    """The base file."""
    path = shared / "golden" / "llamacpp" / "smollm2-135m-f32-c128.kld"
    if not path.is_file():
        pytest.skip(f"{path} is absent: it is what llama.cpp wrote")
    return path


@pytest.fixture(scope="module")
def printed(shared: Path) -> str:
    """The table of what llama.cpp printed."""
    path = shared / "golden" / "llamacpp" / "README.md"
    if not path.is_file():
        pytest.skip(f"{path} is absent: it has what llama.cpp printed")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def file(golden: Path) -> BaseFileSource:
    """The base file, opened."""
    return open_base_file(str(golden), LoadOptions())


@pytest.fixture(scope="module")
def rounded(smollm2: ModelSource) -> ModelSource:
    """The same model, every Linear weight but the tied head rounded to Q5_1."""
    model = copy.deepcopy(smollm2._model)
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            module.weight.data = through_q5_1(module.weight.data)
    return CausalSource("SmolLM2 in Q5_1", model, smollm2.vocabulary)


def through_q5_1(weight: Tensor) -> Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType.Q5_1
    return torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind))


def rows_of(source: Any, table: WindowTable) -> Tensor:
    """All scored rows, in one block."""
    [rows] = source.rows([table.windows])
    block = rows.block(0, len(rows))
    assert isinstance(block, Tensor)
    return block


def compared(file: BaseFileSource, model: ModelSource) -> Columns:
    """The columns of a base file against a live model."""
    log_p = rows_of(file, file.windows).double()
    log_q = exact.log_probabilities(rows_of(model, file.windows))
    targets = torch.from_numpy(np.concatenate([w.targets for w in file.windows.windows]))
    sides = {
        "reference": truncated.predictions(log_p, targets),
        "candidate": exact.predictions(log_q, targets),
    }
    columns = truncated.divergences(log_p, log_q, targets)
    for side, found in sides.items():
        columns |= {f"{name}_{side}": values for name, values in found.items()}
    return {name: values.numpy() for name, values in columns.items()}


@pytest.fixture(scope="module")
def same(file: BaseFileSource, smollm2: ModelSource) -> Columns:
    """The file against the model that it was made of."""
    return compared(file, smollm2)


@pytest.fixture(scope="module")
def other(file: BaseFileSource, rounded: ModelSource) -> Columns:
    """The file against the rounded model."""
    return compared(file, rounded)


def figures(printed: str, row: str) -> list[float]:
    """The numbers of one row of the table, without what stands behind a ±."""
    match = re.search(rf"^\| {re.escape(row)} \| (.*) \|$", printed, re.MULTILINE)
    assert match is not None, row
    plain = re.sub(r"± [\d.]+", "", match[1])
    return [float(number) for number in re.findall(r"[\d.]+", plain)]


# The file


def test_the_file_is_one(golden: Path, file: BaseFileSource) -> None:
    assert is_base_file(golden)
    assert file.width == 49_152
    assert [len(window.inputs) for window in file.windows.windows] == [128, 128]
    assert file.windows.tokens == 126


def test_its_perplexity_is_the_printed_one(printed: str, same: Columns) -> None:
    [final] = figures(printed, "Final estimate")
    assert final == 15.2264
    assert np.exp(same["nll_reference"].mean()) == pytest.approx(final, rel=1e-5)
    running = figures(printed, "perplexity of the F32 model, chunks 1, 2 (running)")
    assert np.exp(same["nll_reference"][:63].mean()) == pytest.approx(running[0], rel=1e-5)


def test_its_tail_is_no_distribution(file: BaseFileSource) -> None:
    """Were it taken for one and renormalised, the figures below would be off."""
    sums = rows_of(file, file.windows).double().exp().sum(dim=-1)
    assert 1 < sums.min() < sums.max() < 1.01
    assert sums.max() > 1.005


# The model that it was made of


def test_the_same_weights_in_transformers_hardly_differ(same: Columns) -> None:
    """Measured: mean 4e-7, mean of the absolute 6.5e-6, from -5.5e-5 to 4.0e-5."""
    assert abs(same["kl"].mean()) < 2e-5
    assert np.abs(same["kl"]).mean() < 2e-5
    assert np.abs(same["kl"]).max() < 2e-4
    assert (same["kl"] < 0).any(), "which is what not renormalising means"
    assert (same["top1_reference"] == same["top1_candidate"]).all()


def test_taken_for_a_distribution_the_file_differs_from_its_own_model(
    file: BaseFileSource, smollm2: ModelSource
) -> None:
    """What llama.cpp's rule is for: renormalised, KL is wrong by 0.001 nats or more."""
    log_p = exact.log_probabilities(rows_of(file, file.windows))
    log_q = exact.log_probabilities(rows_of(smollm2, file.windows))
    nowhere = torch.full((len(log_p),), -1)
    assert exact.divergences(log_p, log_q, nowhere)["kl"].mean() > 1e-3


# Writing it ourselves


@pytest.fixture(scope="module")
def written(smollm2: ModelSource, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What klcli writes of the same text and weights."""
    path = tmp_path_factory.mktemp("written") / "own.kld"
    vocabulary = smollm2.vocabulary
    protocol = choose_protocol("llama.cpp", vocabulary=vocabulary, longest=8192, context=128)
    text = (shared / "corpora" / "wikitext2-test-60k.txt").read_text(encoding="utf-8")
    encoding = encode_document(Document(name="a", content=text.encode()), vocabulary, protocol)
    document = TokenizedDocument(corpus=0, name="text", ids=encoding.ids, encoding=encoding)
    table = plan_windows([document], protocol, vocabulary.prefix_id).limited(2)
    write_base_file(path, smollm2, table, batch_tokens=128)
    return path


def test_header_and_tokens_are_llama_cpps(golden: Path, written: Path) -> None:
    size = 20 + 4 * 128 * 2
    assert written.read_bytes()[:size] == golden.read_bytes()[:size]
    assert written.stat().st_size == golden.stat().st_size


def test_codes_are_llama_cpps_but_for_a_step_here_and_there(golden: Path, written: Path) -> None:
    """Measured: 99.2 % equal and none further off than 1; min_log_prob within 1.4e-5 nats.

    The logits differ in their last digits. Of llama.cpp's own logits ``encode`` makes its very
    bytes, all 12 MB of this file: found with llama-cpp-python, which no test depends on.
    """
    own, theirs = (
        np.fromfile(path, dtype="<u2", offset=20 + 4 * 128 * 2).reshape(126, -1)
        for path in (written, golden)
    )
    steps = np.abs(own[:, 4:].astype(int) - theirs[:, 4:].astype(int))
    assert (steps == 0).mean() > 0.98
    assert steps.max() <= 3
    settings, expected = (np.ascontiguousarray(r[:, :4]).view("<f4") for r in (own, theirs))
    assert settings[:, 0] == pytest.approx(expected[:, 0], rel=1e-6)
    assert settings[:, 1] == pytest.approx(expected[:, 1], abs=1e-4)


# Another model


def test_mean_kl_and_perplexities_are_the_printed_ones(printed: str, other: Columns) -> None:
    found = {
        "Mean KLD": other["kl"].mean(),
        "Mean PPL(Q)": np.exp(other["nll_candidate"].mean()),
        "Mean PPL(base)": np.exp(other["nll_reference"].mean()),
        "Mean ln(PPL(Q)/PPL(base))": other["nll_difference"].mean(),
    }
    assert figures(printed, "Mean KLD") == [0.080361]
    for row, value in found.items():
        assert [value] == pytest.approx(figures(printed, row), rel=1e-4, abs=PRINTED)


def test_quantiles_are_the_printed_ones_by_numpys_default_definition(
    printed: str, other: Columns
) -> None:
    high = figures(printed, "Maximum / 99.9% / 99% / 95% / 90%")
    low = figures(printed, "Median / 10% / 5% / 1% / 0.1% / minimum")
    found = np.quantile(other["kl"], [1, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0])
    assert found[0] == pytest.approx(high[0], rel=5e-3)  # one token
    assert found[1:] == pytest.approx([*high[1:], *low], rel=RELATIVE, abs=FLOAT32)


def test_the_printed_quantiles_are_of_no_other_definition(printed: str, other: Columns) -> None:
    high = figures(printed, "Maximum / 99.9% / 99% / 95% / 90%")
    for method in ("weibull", "hazen", "median_unbiased", "lower", "higher", "nearest"):
        found = np.quantile(other["kl"], [0.999, 0.99, 0.95, 0.9], method=method)
        assert found != pytest.approx(high[1:], rel=RELATIVE)


def test_differences_in_probability_are_the_printed_ones(printed: str, other: Columns) -> None:
    delta = other["delta_p"]
    found = [100 * delta.mean(), 100 * np.sqrt((delta**2).mean())]
    assert found == pytest.approx(figures(printed, "Mean Δp, RMS Δp"), rel=RELATIVE, abs=5e-4)


def test_the_same_top_token_is_as_often_found(printed: str, other: Columns) -> None:
    share = 100 * (other["top1_reference"] == other["top1_candidate"]).mean()
    assert [share] == pytest.approx(figures(printed, "Same top p"), abs=5e-4)
