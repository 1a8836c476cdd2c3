"""From Python loaded models, logits in memory and texts go in the place of paths."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from klcli import KlcliError, Report, compare, perplexity, record
from klcli.errors import UsageError


def _loaded(folder: Path, kind: Any = AutoModelForCausalLM) -> tuple[Any, Any]:
    return kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def _numbers(report: Report) -> Any:
    assert report.tokens is not None
    return report.tokens.scores["kl"]


@pytest.fixture
def pair(reference: Path, candidate: Path) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return _loaded(reference), _loaded(candidate)


def test_loaded_models_give_the_numbers_of_their_folders(
    pair: Any, reference: Path, candidate: Path, corpus: Path
) -> None:
    expected = compare(reference, candidate, corpus, limit=4)
    for sides in (pair, (pair[0], candidate), (reference, pair[1])):
        assert np.array_equal(
            _numbers(compare(sides[0], sides[1], corpus, limit=4)), _numbers(expected)
        )


def test_masked_models_are_known_by_their_class(fixtures: Path, corpus: Path) -> None:
    folder = fixtures / "models" / "masked-reference"
    found = perplexity(_loaded(folder, AutoModelForMaskedLM), corpus, limit=1)
    expected = perplexity(folder, corpus, limit=1)
    assert found.metrics["nll"]["mean"] == expected.metrics["nll"]["mean"]


def test_a_model_in_training_goes_on_as_if_nothing_had_been(
    pair: Any, reference: Path, corpus: Path
) -> None:
    model, tokenizer = pair[1]
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    random = torch.get_rng_state()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(2):
        found.append(
            float(_numbers(compare(reference, (model, tokenizer), corpus, limit=1)).mean())
        )
        if len(found) == 1:
            assert [module.training for module in model.modules()] == before
            assert all(torch.equal(model.state_dict()[n], w) for n, w in weights.items())
            assert torch.equal(torch.get_rng_state(), random)
            ids = torch.arange(2, 40)[None]
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    assert found[1] > found[0]


def test_a_model_is_left_as_it_was_where_the_comparison_fails(pair: Any, reference: Path) -> None:
    model, tokenizer = pair[1]
    model.train()
    with pytest.raises(KlcliError, match="no corpus"):
        compare(reference, (model, tokenizer), "missing.txt")
    with pytest.raises(KlcliError):
        compare(reference, (model, tokenizer), "   \n ")
    assert model.training


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_logits_in_memory_give_the_numbers_of_a_file(
    pair: Any, tmp_path: Path, corpus: Path, make: Any
) -> None:
    tokenizer = pair[0][1]
    ids = np.array(tokenizer(corpus.read_text())["input_ids"][:256]).reshape(4, 64)
    with torch.inference_mode():
        p, q = (model(torch.from_numpy(ids)).logits.numpy() for model, _ in pair)
    for name, one in (("p", p), ("q", q)):
        np.savez(tmp_path / f"{name}.npz", logits=one, tokens=ids)
    expected = _numbers(compare(tmp_path / "p.npz", tmp_path / "q.npz"))
    found = compare((make(p), make(ids)), (make(q), ids.tolist()))
    assert np.array_equal(_numbers(found), expected)
    assert np.array_equal(_numbers(compare(make(p), make(q))), expected)


def test_texts_go_in_the_place_of_a_file(reference: Path, candidate: Path, tmp_path: Path) -> None:
    text = "The cat sleeps. A dog runs near the river."
    (tmp_path / "text.txt").write_text(text)
    expected = compare(reference, candidate, tmp_path / "text.txt")
    assert np.array_equal(_numbers(compare(reference, candidate, text)), _numbers(expected))
    several = compare(reference, candidate, [text, "A child likes a house."])
    assert several.counts["documents"] == 2
    assert several.corpora[0].name == "<texts>"


@pytest.mark.parametrize("path", ["missing.txt", "my notes.txt", "corpus"])
def test_a_path_without_a_file_is_not_taken_for_a_text(reference: Path, path: str) -> None:
    with pytest.raises(KlcliError, match="no corpus"):
        perplexity(reference, path)


def test_a_loaded_model_is_recorded_like_its_folder(
    pair: Any, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    record(pair[0], corpus, tmp_path / "recording", limit=2)
    found = compare(tmp_path / "recording", pair[1])
    expected = compare(reference, candidate, corpus, limit=2)
    assert np.array_equal(_numbers(found), _numbers(expected))


def test_the_noise_floor_of_a_loaded_model_is_measured_by_batches(pair: Any, corpus: Path) -> None:
    found = compare(pair[0], pair[1], corpus, limit=2, noise_floor="batch")
    assert found.noise_floor is not None
    with pytest.raises(UsageError, match="give a path"):
        compare(pair[0], pair[1], corpus, limit=2, noise_floor="dtype")


@pytest.mark.parametrize("given", [3, None, ("a", "b"), object()])
def test_what_is_no_source_is_named(reference: Path, corpus: Path, given: Any) -> None:
    with pytest.raises(UsageError, match="neither a path nor a model"):
        compare(reference, given, corpus)


def test_a_model_without_its_tokenizer_is_refused(pair: Any, corpus: Path) -> None:
    with pytest.raises(UsageError, match=r"\(model, tokenizer\)"):
        compare(pair[0][0], pair[1], corpus)


def test_logits_whose_tokens_do_not_fit_are_refused(reference: Path) -> None:
    with pytest.raises(KlcliError, match="do not fit"):
        compare(reference, (np.zeros((2, 8, 112), dtype=np.float32), np.zeros((2, 5), dtype=int)))


def test_one_model_at_a_time_needs_paths(pair: Any, corpus: Path) -> None:
    with pytest.raises(UsageError, match="one_at_a_time"):
        compare(pair[0], pair[1], corpus, one_at_a_time=True)
