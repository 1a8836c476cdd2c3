"""Where memory runs out the model reads less at once and goes on, to the same numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from klcli.align import align
from klcli.errors import SourceError
from klcli.measure.evaluate import evaluate
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.model import ModelSource
from klcli.sources.options import LoadOptions
from klcli.text.datasets import read_dataset
from klcli.text.scope import Scope


def scores_of(source: ModelSource, corpus: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    table = align([source], [read_dataset(str(corpus))], Scope(context=16, limit=40)).table
    size = source.vocabulary.size
    found = evaluate(table, [source], batch_tokens=640, vocabulary_size=size).scores["nll"]
    return np.asarray(found)


def failing_above(limit: int, read: Any, error: Exception) -> Callable[..., Tensor]:
    def limited(ids: Tensor, places: Tensor) -> Tensor:
        if ids.numel() > limit:
            raise error
        result: Tensor = read(ids, places)
        return result

    return limited


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
    ids=["device", "machine", "Python"],
)
def test_the_budget_is_halved_until_a_pass_fits(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    folder = str(fixtures / "models" / "reference")
    source = load_model(folder, LoadOptions(device="cpu", batch_tokens=640))
    expected = scores_of(source, fixtures / "corpus.txt")
    monkeypatch.setattr(source, "_hidden", failing_above(200, source._hidden, error))
    assert scores_of(source, fixtures / "corpus.txt") == pytest.approx(expected, abs=1e-5)
    assert source.batch_tokens == 160


def test_a_single_sequence_that_does_not_fit_is_an_error_with_advice(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_model(str(fixtures / "models" / "reference"), LoadOptions(device="cpu"))
    error = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(source, "_hidden", failing_above(8, source._hidden, error))
    with pytest.raises(SourceError, match="out of memory; try a smaller --batch-tokens"):
        scores_of(source, fixtures / "corpus.txt")


def test_another_failure_is_not_tried_again(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_model(str(fixtures / "models" / "reference"), LoadOptions(device="cpu"))
    monkeypatch.setattr(source, "_hidden", failing_above(8, source._hidden, RuntimeError("no")))
    before = source.batch_tokens
    with pytest.raises(SourceError, match="fails on a batch"):
        scores_of(source, fixtures / "corpus.txt")
    assert source.batch_tokens == before
