"""Models that do not fit one device: split over several, with the numbers of one."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from klcli.align import align
from klcli.errors import SourceError
from klcli.measure.evaluate import evaluate
from klcli.measure.gathered import Evaluation
from klcli.sources.hf import placement
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.model import ModelSource
from klcli.sources.options import LoadOptions
from klcli.text.datasets import read_dataset
from klcli.text.scope import Scope

CAUSAL = {
    "transformer.wte": "cpu",
    "transformer.wpe": "cpu",
    "transformer.h.0": "cpu",
    "transformer.h.1": "disk",
    "transformer.ln_f": "disk",
    "lm_head": "cpu",
}
Load = Callable[[str, dict[str, str]], ModelSource]

accelerated = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="needs accelerate"
)


@pytest.fixture
def split(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """A fixture model, loaded as if its weights did not fit, with a given map of devices."""

    def load(name: str, where: dict[str, str]) -> ModelSource:
        with monkeypatch.context() as patch:
            patch.setattr(placement, "free_memory", lambda _: 100_000)
            spread = placement._spread

            def chosen(*given: Any) -> dict[str, Any]:
                assert spread(*given) == {"device_map": "auto"}
                return {"device_map": where, "offload_folder": str(tmp_path / "offload")}

            patch.setattr(placement, "_spread", chosen)
            return load_model(str(fixtures / "models" / name), LoadOptions())

    return load


def whole(fixtures: Path, name: str) -> ModelSource:
    return load_model(str(fixtures / "models" / name), LoadOptions(device="cpu"))


def scored(source: ModelSource, corpus: Path) -> Evaluation:
    table = align([source], [read_dataset(str(corpus))], Scope(context=32, limit=6)).table
    size = source.vocabulary.size
    return evaluate(table, [source], batch_tokens=64, vocabulary_size=size)


@accelerated
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("reference", CAUSAL),
        ("reference", {"": "disk"}),
        ("reference", {**CAUSAL, "transformer.wte": "disk", "lm_head": "disk"}),
        ("masked-reference", {"": "disk"}),
    ],
    ids=["part", "all", "head", "masked"],
)
def test_a_split_model_gives_the_same_bits(
    split: Load, fixtures: Path, corpus: Path, name: str, where: dict[str, str]
) -> None:
    one, other = split(name, where), whole(fixtures, name)
    assert any(weight.is_meta for weight in one._model.parameters())
    assert one.proof.head is not None
    found, expected = scored(one, corpus).scores, scored(other, corpus).scores
    for column in expected.columns:
        np.testing.assert_array_equal(found[column], expected[column], err_msg=column)
    assert one.digest() == other.digest()
    stored, expected_matrix = one.stored_matrix(), other.stored_matrix()
    assert stored.keys() == expected_matrix.keys()
    assert all(torch.equal(stored[key], expected_matrix[key]) for key in stored)


@accelerated
def test_the_devices_of_a_split_model_are_named(split: Load) -> None:
    source = split("reference", CAUSAL)
    assert source.provenance["device"] == "cpu, disk"
    assert source.device == torch.device("cpu")


@accelerated
def test_a_map_of_a_single_device_is_that_device(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda _: 100_000)
    source = load_model(str(fixtures / "models/reference"), LoadOptions())
    assert (source.provenance["device"], source.device.type) == ("cpu", "cpu")


@pytest.mark.parametrize(("room", "splits"), [(600_000, False), (400_000, True)])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_model_is_split_only_where_it_does_not_fit(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch, room: int, splits: bool, dtype: Any
) -> None:
    sizes = []
    spread = placement._spread

    def noted(spec: str, size: int, *given: Any) -> dict[str, Any]:
        sizes.append(size)
        assert bool(spread(spec, size, *given)) is (splits and dtype == "auto")
        return {}

    monkeypatch.setattr(placement, "free_memory", lambda _: room)
    monkeypatch.setattr(placement, "_spread", noted)
    load_model(str(fixtures / "models/reference"), LoadOptions(dtype=dtype))
    assert sizes == [461_824 if dtype == "auto" else 230_912]


def test_a_device_that_is_named_is_the_only_one(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda _: 1)
    source = load_model(str(fixtures / "models/reference"), LoadOptions(device="cpu"))
    assert not hasattr(source._model, "hf_device_map")


def test_under_torchrun_a_model_that_does_not_fit_is_an_error(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda _: 1000)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SourceError, match=r"GB of weights.* not split; run without"):
        load_model(str(fixtures / "models/reference"), LoadOptions())


@accelerated
def test_a_model_that_is_split_is_not_compiled(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda _: 1000)
    with pytest.raises(SourceError, match="has to be split, and so cannot be compiled"):
        load_model(str(fixtures / "models/reference"), LoadOptions(compile=True))


def test_without_accelerate_a_model_that_does_not_fit_is_an_error(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda _: 1000)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SourceError, match="pip install accelerate"):
        load_model(str(fixtures / "models/reference"), LoadOptions())
