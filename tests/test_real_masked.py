"""A real masked model, AntiBERTy, against figures of code that is not klcli's."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.running import Run
from tests.sources.antiberty_model import ANTIBODIES, antiberty_folder

pytestmark = pytest.mark.real

PSEUDO_PERPLEXITIES = {
    "trastuzumab-heavy": 1.905479,
    "trastuzumab-light": 1.789170,
    "adalimumab-heavy": 1.633640,
    "adalimumab-light": 1.286165,
}
"""Of each sequence, one residue hidden at a time, in float32."""
POOLED = 1.643048
"""Of all residues together."""
RELATIVE = 1e-5
GROUP = 32
"""So many weights of a row share a scale."""


@pytest.fixture(scope="module")
def antiberty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AntiBERTy as a folder that transformers loads."""
    folder = antiberty_folder(tmp_path_factory.mktemp("real") / "antiberty")
    if folder is None:
        pytest.skip("no real weights here: pip install --no-deps antiberty==0.1.3")
    return folder


@pytest.fixture(scope="module")
def rounded(antiberty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with the weights of its linear layers rounded to 4 bits."""
    folder = tmp_path_factory.mktemp("real") / "rounded"
    model = transformers.AutoModelForMaskedLM.from_pretrained(antiberty)
    tied = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not tied]
    assert len(layers) > 40
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(to_4_bits(layer.weight))
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(antiberty).save_pretrained(folder)
    return folder


def to_4_bits(weight: Tensor) -> Tensor:
    """15 symmetric levels for each group of weights, as plain numbers again."""
    groups = weight.reshape(-1, GROUP)
    scale = groups.abs().amax(dim=1, keepdim=True) / 7
    levels = (groups / scale.clamp_min(1e-12)).round().clamp(-7, 7)
    return (levels * scale).reshape(weight.shape)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sequence a line."""
    path = tmp_path_factory.mktemp("real") / "antibodies.txt"
    path.write_text("".join(f"{one}\n" for one in ANTIBODIES.values()), encoding="utf-8")
    return path


def json_of(klcli: Run, *arguments: str | Path) -> dict[str, Any]:
    done = klcli(*arguments, "--format", "json", "--quiet")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def test_pseudo_perplexities_are_those_of_independent_code(
    klcli: Run, antiberty: Path, sequences: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.jsonl"
    report = json_of(
        klcli, "perplexity", antiberty, sequences, "--documents", "line", "--output", tokens
    )
    assert report["model"]["dtype"] == "float32"
    lengths = [len(one) for one in ANTIBODIES.values()]
    counts = report["counts"]
    assert (counts["tokens"], counts["documents"]) == (sum(lengths), len(lengths))
    assert report["metrics"]["perplexity"]["value"] == pytest.approx(POOLED, rel=RELATIVE)
    rows = [json.loads(line) for line in tokens.read_text(encoding="utf-8").splitlines()]
    assert "".join(row["token"].strip() for row in rows) == "".join(ANTIBODIES.values())
    nll = [row["nll"] for row in rows]
    found = {}
    for name, length in zip(ANTIBODIES, lengths, strict=True):
        found[name] = math.exp(math.fsum(nll[:length]) / length)
        nll = nll[length:]
    assert found == pytest.approx(PSEUDO_PERPLEXITIES, rel=RELATIVE)


def test_rounding_to_4_bits_shows(
    klcli: Run, antiberty: Path, rounded: Path, sequences: Path, tmp_path: Path
) -> None:
    """Of two sequences, every 4th residue hidden at once: a fraction of the time."""
    options = (sequences, "--documents", "line", "--mask-every", "4", "--limit", "2")
    live = json_of(klcli, "compare", antiberty, rounded, *options)
    metrics = live["metrics"]
    kl = metrics["kl"]["mean"]
    assert 1e-4 < kl < 1
    assert math.isfinite(metrics["kl"]["max"])
    assert metrics["perplexity_reference"]["value"] == pytest.approx(1.85, rel=0.05)
    assert 0.8 < metrics["top1_agreement"]["value"] <= 1
    base, other = tmp_path / "base", tmp_path / "other"
    assert klcli("record", antiberty, *options, "-o", base, "--quiet").code == 0
    assert klcli("record", rounded, *options, "-o", other, "--quiet").code == 0
    assert json_of(klcli, "compare", base, other)["metrics"] == metrics
    for bound, code in ((kl / 2, 3), (kl * 2, 0)):
        assert klcli("compare", base, other, "--gate", f"kl.mean<={bound:.8f}").code == code
    assert json_of(klcli, "compare", base, base)["metrics"]["kl"]["max"] == 0
