"""Functions in the place of models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import klcli
from klcli.errors import KlcliError, SourceError
from klcli.sources.hf.loading import load_model
from klcli.sources.options import LoadOptions

Predict = Callable[[Any], Any]


@pytest.fixture(scope="module")
def predict(fixtures: Path) -> Predict:
    """The reference as a function."""
    model = load_model(str(fixtures / "models" / "reference"), LoadOptions()).model

    def logits_of(ids: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(ids)[None]).logits[0].numpy()

    return logits_of


def test_a_function_predicts_what_its_model_does(
    predict: Predict, reference: Path, corpus: Path
) -> None:
    report = klcli.compare(reference, (predict, reference), corpus)
    assert report.metrics["kl"]["max"] < 1e-9  # type: ignore[operator]
    assert report.models["candidate"]["source"] == "logits_of"
    assert report.counts["tokens"] == 3584


def test_its_numbers_are_those_of_the_model(
    predict: Predict, reference: Path, candidate: Path, corpus: Path
) -> None:
    settings: dict[str, Any] = {"context": 48, "limit": 5}
    one = klcli.compare((predict, reference), candidate, corpus, **settings)
    other = klcli.compare(reference, candidate, corpus, **settings)
    assert one.metrics["kl"]["mean"] == pytest.approx(other.metrics["kl"]["mean"], rel=1e-5)


def test_the_tokenizer_may_be_an_object(predict: Predict, reference: Path, corpus: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(reference)
    named = klcli.perplexity((predict, reference), corpus, limit=2, context=48)
    given = klcli.perplexity((predict, tokenizer), corpus, limit=2, context=48)
    assert given.metrics["nll"] == named.metrics["nll"]


def test_it_is_called_once_for_each_window(reference: Path, corpus: Path, predict: Predict) -> None:
    lengths: list[int] = []

    def counted(ids: Any) -> Any:
        lengths.append(len(ids))
        return predict(ids)

    report = klcli.perplexity((counted, reference), corpus, context=50)
    assert len([n for n in lengths if n != 8]) == report.counts["windows"]
    assert max(lengths) == 50


@pytest.mark.parametrize("kind", ["logits", "topk"])
def test_it_can_be_recorded(
    predict: Predict, reference: Path, corpus: Path, tmp_path: Path, kind: Any
) -> None:
    done = klcli.record(
        (predict, reference), corpus, tmp_path / "f.rec", kind=kind, limit=3, context=48
    )
    assert done.kind == kind
    report = klcli.compare(tmp_path / "f.rec", reference)
    assert report.metrics["kl"]["mean"] < 1e-9  # type: ignore[operator]


def zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype)


WRONG: dict[str, tuple[Predict, str]] = {
    "a row too few": (
        lambda ids: zeros(len(ids) - 1, 112), "returned float32 of 7×112 for 8 ids"
    ),
    "whole numbers": (lambda ids: zeros(len(ids), 112, dtype=np.int64), "returned int64"),
    "no vocabulary": (lambda ids: zeros(len(ids)), "returned float32 of 8 for"),
    "it looks ahead": (lambda ids: zeros(len(ids), 112) + ids.sum(), "is not causal"),
    "it fails": (lambda ids: 1 / 0, "failed on 8 ids: division by zero"),
}  # fmt: skip


@pytest.mark.parametrize(("returned", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_message(
    reference: Path, corpus: Path, returned: Predict, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        klcli.perplexity((returned, reference), corpus)


def test_more_ids_than_it_reads_point_to_the_context(
    predict: Predict, reference: Path, corpus: Path
) -> None:
    with pytest.raises(SourceError, match=r"failed on 512 ids: .* give a context"):
        klcli.perplexity((predict, reference), corpus)


def test_what_a_function_cannot_do_is_said(
    predict: Predict, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    given = (predict, reference)
    with pytest.raises(KlcliError, match="does not show its layers"):
        klcli.layers(reference, given, corpus)
    with pytest.raises(KlcliError, match="cannot answer"):
        klcli.answer(given, corpus, tmp_path / "a.jsonl")
    with pytest.raises(KlcliError, match="--noise-floor"):
        klcli.compare(given, reference, corpus, noise_floor="batch")
