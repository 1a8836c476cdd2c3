r"""SmolLM2-135M scored by four presets, against figures of the programs that they are named after.

``golden/parity.json`` has what lm-eval, the loop of the Hugging Face guide, the metric of evaluate
and the functions of exllamav3's eval/ppl.py gave of one text, and how they were asked. They
take logarithms in float32, which leaves a token up to 2.1e-5 nats, and 8e-6 in the mean, below what
klcli finds of the same logits in float64; where the file has a program's logits read in float64 a
much smaller difference is allowed.

What differs on purpose, and is shown here:

- lm-eval's *bytes* are those of the text, and it scores all of them, as the preset does: byte
  perplexity and bits per byte are equal. Its *words* are the pieces that ``re.split(r"\s+", …)``
  makes: where white space begins or ends the text that is an empty one more each. klcli counts the
  words. (The wikitext *task* of lm-eval divides what it scored of a rewritten text by the words and
  bytes of the text before it. That is no figure of one text, and klcli has none to set against it.)
- A tokenizer that adds a BOS by itself gives lm-eval two, of which it scores the second: the preset
  has one, and scores none. SmolLM2's adds none.
- The guide weights a window's mean with one token less than it is the mean of, in all windows but
  the first. klcli's perplexity is of all scored tokens alike, which is the *sound* reading; the
  guide's own figure follows from klcli's tokens with its weights.
- evaluate's ``mean_perplexity`` is a mean of the perplexities of lines, of two words or two hundred
  alike. klcli's perplexity is of all tokens of all lines. evaluate's metric also transposes logits
  before it takes the logarithm, which leaves a line up to 1.8e-4 nats a token below.
- eval/ppl.py has its rows 2048 tokens apart whatever their length. The preset has them end to end,
  as exllamav3's model_diff.py does, and those of eval/ppl.py are among them.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from klcli.align import align
from klcli.align.alignment import Alignment
from klcli.measure.evaluate import evaluate
from klcli.sources.hf.model import ModelSource
from klcli.text.datasets import read_dataset
from klcli.text.scope import Scope
from klcli.text.windows import Window
from tests.running import Run

pytestmark = pytest.mark.real

FLOAT32 = 1e-5
"""Nats a token in the mean: programs that take logarithms in float32."""
FLOAT32_TOKEN = 3e-5
"""The same, of any one token."""
FLOAT64 = 1e-6
"""Nats a token in the mean: a program's logits, read in float64, from another batch shape."""
TRANSPOSED = 3e-4
"""Nats a token in the mean: evaluate's metric."""
BATCH_TOKENS = 1024
GOLDEN = Path(__file__).parent / "golden" / "parity.json"

Floats = npt.NDArray[np.float64]
Figures = dict[str, Any]
Key = tuple[tuple[int, ...], int, tuple[int, ...]]

READ: dict[Key, Floats] = {}
"""What has been scored: exllamav3's rows are windows of the guide too."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Windows, and the NLL of each scored token of each."""

    windows: tuple[Window, ...]
    nll: list[Floats]

    @property
    def all(self) -> Floats:
        """One window after the other."""
        return np.concatenate(self.nll)

    @property
    def shapes(self) -> list[list[int]]:
        """Inputs, first scored row and scored tokens of each window."""
        return [[len(w.inputs), w.score_from, len(w.targets)] for w in self.windows]


@pytest.fixture(scope="module")
def golden() -> Figures:
    """The figures of the programs."""
    return dict(json.loads(GOLDEN.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def text(shared: Path, golden: Figures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text that they were given: the first 12,000 characters, cut after a newline."""
    source = shared / "corpora" / "wikitext2-test-60k.txt"
    if not source.is_file():
        pytest.skip(f"{source} is absent: it has the text that the programs were given")
    with source.open(encoding="utf-8", newline="") as file:
        start = file.read(12_000)
    raw = start[: start.rindex("\n") + 1].encode()
    assert hashlib.sha256(raw).hexdigest() == golden["text"]["sha256"]
    path = tmp_path_factory.mktemp("parity") / "text.txt"
    path.write_bytes(raw)
    return path


@pytest.fixture(scope="module")
def smollm2(text: Path, golden: Figures, smollm2_file: Path, smollm2: ModelSource) -> ModelSource:
    """SmolLM2, if it is the file that the programs read."""
    if smollm2_file.name != golden["model"]["file"]:
        pytest.skip(f"{smollm2_file.name} is not what they read: {golden['model']['package']}")
    return smollm2


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> Iterator[None]:
    """Two threads on two processors, one of them busy, take four times as long as one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def aligned(model: ModelSource, text: Path, scope: Scope) -> Alignment:
    return align([model], [read_dataset(str(text), scope.split)], scope)


def split(windows: Sequence[Window], nll: Floats) -> list[Floats]:
    """NLLs of all tokens, window by window."""
    return np.split(nll, np.cumsum([len(window.targets) for window in windows])[:-1])


def score(model: ModelSource, alignment: Alignment) -> Scored:
    """The NLLs of an alignment. A window that has been read already is not read again."""
    table = alignment.table
    if unread := [window for window in table.windows if key(window) not in READ]:
        found = evaluate(
            replace(table, windows=tuple(unread)),
            [model],
            batch_tokens=BATCH_TOKENS,
            vocabulary_size=alignment.vocabulary_size,
        )
        nll = split(unread, found.scores["nll"].astype(np.float64))
        READ.update(zip(map(key, unread), nll, strict=True))
    return Scored(table.windows, [READ[key(window)] for window in table.windows])


def key(window: Window) -> Key:
    return tuple(window.inputs.tolist()), window.score_from, tuple(window.targets.tolist())


def only(alignment: Alignment, numbers: Sequence[int]) -> Alignment:
    """Some windows of an alignment."""
    windows = tuple(alignment.table.windows[number] for number in numbers)
    return replace(alignment, table=replace(alignment.table, windows=windows))


# lm-eval


def check_lm_eval(found: Scored, expected: Figures) -> None:
    """Windows, tokens, and sums of a run of ``loglikelihood_rolling``."""
    assert found.shapes == [window[:3] for window in expected["windows"]]
    for nll, window in zip(found.nll, expected["windows"], strict=True):
        assert nll.mean() == pytest.approx(-window[3] / len(nll), abs=FLOAT32)
    nll, tokens = found.all, expected["scored"]
    assert len(nll) == tokens
    assert nll[:5] == pytest.approx(expected["first_5_nll_float32"], abs=FLOAT32_TOKEN)
    assert nll[-5:] == pytest.approx(expected["last_5_nll_float32"], abs=FLOAT32_TOKEN)
    assert nll.mean() == pytest.approx(-expected["loglikelihood"] / tokens, abs=FLOAT32)
    in_float64 = expected["sum_nll_float64_logsoftmax"] / tokens
    assert nll.mean() == pytest.approx(in_float64, abs=FLOAT64)


def test_lm_eval_512(smollm2: ModelSource, text: Path, golden: Figures) -> None:
    alignment = aligned(smollm2, text, Scope(protocol="lm-eval", context=512))
    check_lm_eval(score(smollm2, alignment), golden["lm_eval"]["runs"]["raw-512"])


def test_lm_eval_1024_on_the_command_line(
    klcli: Run,
    smollm2: ModelSource,
    text: Path,
    golden: Figures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With all that it prints; only the model is not loaded again."""
    monkeypatch.setattr("klcli.workflow.open_source", lambda *_: smollm2)
    tokens = tmp_path / "tokens.jsonl"
    done = klcli(
        "perplexity", smollm2.name, text, "--protocol", "lm-eval", "--context", "1024",
        "--batch-tokens", str(BATCH_TOKENS), "--output", tokens, "--format", "json", "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    expected = golden["lm_eval"]["runs"]["raw-1024"]
    nll = np.array([json.loads(line)["nll"] for line in tokens.read_text().splitlines()])
    windows = aligned(smollm2, text, Scope(protocol="lm-eval", context=1024)).table.windows
    check_lm_eval(Scored(windows, split(windows, nll)), expected)

    report = json.loads(done.out)
    metrics = {name: metric.get("value") for name, metric in report["metrics"].items()}
    assert report["counts"]["tokens"] == expected["scored"]
    assert metrics["perplexity"] == pytest.approx(math.exp(nll.mean()), rel=1e-6)
    assert metrics["byte_perplexity"] == pytest.approx(expected["byte_perplexity"], rel=FLOAT32)
    assert metrics["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=FLOAT32)
    words = len(text.read_text(encoding="utf-8").split())
    assert words == expected["words"] - 2, "white space begins and ends this text"
    of_as_many_words = metrics["word_perplexity"] ** (words / expected["words"])
    assert of_as_many_words == pytest.approx(expected["word_perplexity"], rel=2 * FLOAT32)


# The Hugging Face guide


@pytest.mark.parametrize(("context", "stride"), [(1024, 512), (512, 512)])
def test_the_guide(
    smollm2: ModelSource, text: Path, golden: Figures, context: int, stride: int
) -> None:
    expected = golden["guide"]["runs"][f"{context}/{stride}"]
    scope = Scope(protocol="strided", context=context, stride=stride)
    found = score(smollm2, aligned(smollm2, text, scope))
    assert found.shapes == [window[:3] for window in expected["windows"]]
    for nll, window in zip(found.nll, expected["windows"], strict=True):
        assert nll.mean() == pytest.approx(window[4], abs=FLOAT32_TOKEN)

    assert len(found.all) == expected["scored"]
    sound = expected["sound"]
    assert found.all.mean() == pytest.approx(sound["mean_nll_float64"], abs=FLOAT64)
    assert found.all.mean() == pytest.approx(sound["mean_nll_float32"], abs=FLOAT32)
    assert math.exp(found.all.mean()) == pytest.approx(sound["perplexity"], rel=FLOAT64)

    counted = [window[3] for window in expected["windows"]]
    weighted = sum(
        nll.mean() * weight for nll, weight in zip(found.nll, counted, strict=True)
    ) / sum(counted)
    assert weighted == pytest.approx(expected["own_weighting_float64"], abs=FLOAT64)
    assert weighted == pytest.approx(expected["avg_nll"], abs=FLOAT32)
    assert math.exp(weighted) == pytest.approx(expected["ppl"], rel=2 * FLOAT32)


# evaluate


def test_evaluate(smollm2: ModelSource, text: Path, golden: Figures) -> None:
    scope = Scope(protocol="evaluate", documents="line", limit=20)
    found = score(smollm2, aligned(smollm2, text, scope))
    runs = golden["evaluate"]["runs"]
    alone = runs["alone float64"]
    assert [len(nll) for nll in found.nll] == alone["tokens"]
    assert {tuple(shape[1:2]) for shape in found.shapes} == {(0,)}
    means = np.array([nll.mean() for nll in found.nll])
    assert means == pytest.approx(np.log(alone["perplexities"]), abs=5 * FLOAT64)  # short lines
    for run in ("right bs=1", "right bs=16"):
        assert means == pytest.approx(np.log(runs[run]["perplexities"]), abs=TRANSPOSED)
        mean = runs[run]["mean_perplexity"]
        assert np.exp(means).mean() == pytest.approx(mean, rel=TRANSPOSED)
    assert math.exp(found.all.mean()) == pytest.approx(alone["micro_perplexity"], rel=FLOAT64)


# exllamav3


def test_exllamav3(smollm2: ModelSource, text: Path, golden: Figures) -> None:
    """Rows end to end, and among them those that eval/ppl.py reads, 2048 tokens apart."""
    runs = golden["exllamav3"]["runs"]
    scope = Scope(protocol="exllamav3", context=512)
    found = score(smollm2, aligned(smollm2, text, scope))
    expected = runs["exl3 512/512 (model_diff rows)"]
    assert found.shapes == [[512, 0, 511]] * expected["rows"]
    assert len(found.all) == expected["scored"]
    in_float64 = expected["sum_float64"] / expected["scored"]
    assert found.all.mean() == pytest.approx(in_float64, abs=FLOAT64)
    apart = [nll for nll, w in zip(found.nll, found.windows, strict=True) if starts_apart(w)]
    check_exllamav3(np.concatenate(apart), runs["exl3 512 as called"])


def test_exllamav3_in_shorter_rows(smollm2: ModelSource, text: Path, golden: Figures) -> None:
    alignment = aligned(smollm2, text, Scope(protocol="exllamav3", context=256))
    windows = alignment.table.windows
    assert len(windows) == 11
    apart = [number for number, window in enumerate(windows) if starts_apart(window)]
    found = score(smollm2, only(alignment, apart))
    check_exllamav3(found.all, golden["exllamav3"]["runs"]["exl3 256 as called"])


def starts_apart(window: Window) -> bool:
    return (window.position - 1) % 2048 == 0


def check_exllamav3(nll: Floats, expected: Figures) -> None:
    [printed] = [line for line in expected["printed"] if "Perplexity" in line]
    assert len(nll) == expected["scored"]
    assert nll.mean() == pytest.approx(expected["mean_nll"], abs=FLOAT32)
    assert math.exp(nll.mean()) == pytest.approx(float(printed.split()[-1]), rel=FLOAT32)
    assert math.exp(nll.mean()) == pytest.approx(expected["ppl_float64"], rel=FLOAT64)
