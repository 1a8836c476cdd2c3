"""Models whose blocks torch has compiled: the same numbers, but for rounding."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from klcli.align import align
from klcli.errors import SourceError
from klcli.measure.evaluate import evaluate
from klcli.sources.hf import loading
from klcli.sources.hf.compiling import compile_blocks
from klcli.sources.hf.loading import load_model
from klcli.sources.options import LoadOptions
from klcli.text.datasets import read_dataset
from klcli.text.scope import Scope
from tests.running import Run

# What torch says of itself when its compiler is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference", "masked-reference"])
def test_a_compiled_model_gives_the_same_numbers(fixtures: Path, corpus: Path, name: str) -> None:
    folder = str(fixtures / "models" / name)
    compiled, plain = (
        load_model(folder, LoadOptions(device="cpu", compile=c)) for c in (True, False)
    )
    assert compiled.proof.head is not None
    assert compiled.provenance == {**plain.provenance, "compiled": True}
    assert compiled.digest() == plain.digest()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for context in (24, 31):
        table = align([plain], [read_dataset(str(corpus))], Scope(context=context, limit=6)).table
        found, expected = (
            evaluate(table, [one], batch_tokens=64, vocabulary_size=one.vocabulary.size).scores
            for one in (compiled, plain)
        )
        for column in ("nll", "entropy"):
            np.testing.assert_allclose(found[column], expected[column], atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "a length is a size"


@pytest.mark.slow
def test_a_report_says_that_its_models_were_compiled(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    words = ("compare", reference, candidate, corpus, "--context", "32", "--limit", "4")
    plain, compiled = (klcli(*words, *more, "--format", "json") for more in ((), ("--compile",)))
    assert compiled.code == 0, compiled.err
    one, other = json.loads(plain.out), json.loads(compiled.out)
    for side in ("reference", "candidate"):
        assert other.pop(side) == {**one.pop(side), "compiled": True}
    assert other["metrics"]["kl"]["mean"] == pytest.approx(one["metrics"]["kl"]["mean"], rel=1e-4)

    assert klcli(*words, "--run", tmp_path / "a.run").code == 0
    again = klcli(*words, "--run", tmp_path / "a.run", "--compile")
    assert again.code == 1
    assert "models.0.compiled was not noted and is True" in again.err


@pytest.mark.slow
def test_a_recording_is_not_gone_on_with_by_a_compiled_model(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    words = ("record", reference, corpus, "--context", "32", "--limit", "4", "-o", tmp_path / "r")
    assert klcli(*words).code == 0
    again = klcli(*words, "--compile")
    assert again.code == 1
    assert "compiled was None and is True" in again.err


def test_what_torch_needs_to_compile_is_said(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: object) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no working\ncompiler\n\nSet TORCH_LOGS")

    monkeypatch.setattr(loading, "compile_blocks", failing)
    with pytest.raises(SourceError, match=r": no working compiler; torch.compile needs a C\+\+"):
        load_model(str(fixtures / "models/reference"), LoadOptions(device="cpu", compile=True))


def test_a_model_without_blocks_is_not_compiled() -> None:
    with pytest.raises(SourceError, match="Linear has no stack of blocks"):
        compile_blocks(torch.nn.Linear(2, 2))


def test_the_experts_of_a_block_are_no_blocks() -> None:
    blocks = torch.nn.ModuleList(
        torch.nn.ModuleDict({"experts": torch.nn.ModuleList(torch.nn.Identity() for _ in range(8))})
        for _ in range(2)
    )
    model = torch.nn.ModuleDict({"heads": torch.nn.ModuleList([torch.nn.Identity()]), "h": blocks})
    compile_blocks(model)
    compiled = [
        name for name, part in model.named_modules() if part._compiled_call_impl is not None
    ]
    assert compiled == ["h.0", "h.1"]
