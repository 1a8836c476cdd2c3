"""Rows of a logit file that are off by one are warned of, and honest ones never."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from klcli.align.offset import off_by_one
from klcli.errors import Notice
from klcli.sources.files.arrays import open_arrays
from klcli.sources.hf.loading import load_model
from klcli.sources.options import LoadOptions
from klcli.text.windows import Window
from tests.running import Run

Array = npt.NDArray[np.generic]
HONEST = ["reference.npz", "candidate.npz", "lstm.npz", "truth.npz", "candidate.safetensors"]


@pytest.fixture(scope="module")
def logits(fixtures: Path) -> Array:
    with np.load(fixtures / "logits" / "reference.npz") as arrays:
        return np.array(arrays["logits"])


@pytest.fixture(scope="module")
def tokens(fixtures: Path) -> Array:
    with np.load(fixtures / "logits" / "reference.npz") as arrays:
        return np.array(arrays["tokens"])


def notice(path: Path) -> Notice | None:
    source = open_arrays(str(path), LoadOptions())
    return off_by_one(source, source.windows)


def saved(path: Path, logits: Array, tokens: Array, score_from: int = 0) -> Path:
    np.savez(path, logits=logits, tokens=tokens, score_from=np.array(score_from))
    return path


@pytest.mark.parametrize("score_from", [0, 5])
def test_rows_that_are_off_by_one_either_way_are_warned_of(
    klcli: Run, logits: Array, tokens: Array, tmp_path: Path, score_from: int
) -> None:
    files = {
        "token i far better": (logits[:, :-1], tokens[:, 1:], "leave out the first row"),
        "token i + 2 far better": (logits[:, 1:], tokens[:, :-1], "leave out the first token"),
    }
    for says, (rows, ids, advice) in files.items():
        path = saved(tmp_path / "x.npz", rows, ids, score_from=score_from)
        done = klcli("perplexity", path, "--format", "json", "--quiet")
        messages = {one["code"]: one["message"] for one in json.loads(done.out)["warnings"]}
        assert f"row i predicts {says} than token i + 1" in messages["rows_off_by_one"]
        assert advice in messages["rows_off_by_one"]


def test_the_side_that_is_off_by_one_is_named(
    klcli: Run, fixtures: Path, logits: Array, tokens: Array, tmp_path: Path
) -> None:
    path = saved(tmp_path / "x.npz", np.roll(logits, 1, axis=1), tokens)
    done = klcli("compare", fixtures / "logits" / "reference.npz", path, "--format", "json")
    messages = [one["message"] for one in json.loads(done.out)["warnings"]]
    assert any(said.startswith(f"{path}: row i predicts token i far better") for said in messages)


@pytest.mark.parametrize("name", HONEST)
def test_honest_files_are_not_warned_of(fixtures: Path, name: str) -> None:
    assert notice(fixtures / "logits" / name) is None


@pytest.mark.parametrize("model", ["reference", "candidate", "undertrained"])
def test_the_logits_of_models_are_not_warned_of(
    fixtures: Path, tokens: Array, tmp_path: Path, model: str
) -> None:
    source = load_model(str(fixtures / "models" / model), LoadOptions(device="cpu"))
    windows = [
        Window(document=0, inputs=row[:-1], score_from=0, targets=row[1:], position=1)
        for row in tokens[:4].astype(np.int64)
    ]
    [rows] = source.rows([windows])
    block = rows.block(0, len(rows))
    assert isinstance(block, torch.Tensor)
    values = block.float().numpy().reshape(4, 64, -1)
    assert notice(saved(tmp_path / "x.npz", values, tokens[:4])) is None


@pytest.mark.parametrize("text", ["one token", "two in turn", "random", "few"])
def test_texts_that_repeat_themselves_are_not_warned_of(tmp_path: Path, text: str) -> None:
    """A model that knows the next token, or that knows nothing, on texts that are hard to tell."""
    random = np.random.default_rng(0)
    tokens = {
        "one token": np.zeros(65, dtype=np.int64),
        "two in turn": np.arange(65) % 2,
        "random": random.integers(0, 50, 65),
        "few": random.integers(0, 50, 9),
    }[text]
    rows = len(tokens) - 1
    knowing = np.zeros((rows, 50))
    knowing[np.arange(rows), tokens[1:]] = 9
    knowing_nothing = random.normal(size=(rows, 50))
    for number, values in enumerate((knowing, knowing_nothing)):
        assert notice(saved(tmp_path / f"{number}.npz", values, tokens)) is None
