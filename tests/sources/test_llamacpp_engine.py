"""GGUF files that llama.cpp runs itself."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import LlamaConfig

import klcli
from klcli.errors import KlcliError, SourceError
from klcli.sources.opening import open_live
from klcli.sources.options import LoadOptions
from klcli.text.windows import Window
from tests.running import Run
from tests.sources.gguf_copies import copy_as
from tests.sources.gguf_files import ALPHABET, CONTEXT, llama, write

pytest.importorskip("llama_cpp", reason="needs klcli[llama.cpp]")
pytestmark = pytest.mark.engine

EXACT: dict[str, Any] = {
    "engine": "llama.cpp", "kv_cache_type": "f32", "flash_attention": "off", "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return llama(LlamaConfig, initializer_range=0.1)


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write(path, model, {"rope.dimension_count": 8, "attention.layer_norm_rms_epsilon": 1e-6})


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    path.write_text("".join(ALPHABET[n] for n in rng.integers(0, len(ALPHABET), 400)))
    return path


def mean_and_most(report: klcli.Report) -> tuple[float, float]:
    """The mean and the largest KL."""
    mean, most = (report.metrics["kl"][field] for field in ("mean", "max"))
    assert mean is not None
    assert most is not None
    return mean, most


def window(ids: Any, rows: Any) -> Window:
    """A window of which some rows are scored."""
    rows = np.asarray(rows)
    return Window(
        document=0, inputs=np.asarray(ids), score_from=int(rows[0]), position=int(rows[0]) + 1,
        targets=np.zeros(len(rows), dtype=np.int64), steps=rows - rows[0],
    )  # fmt: skip


def test_float32_predicts_what_transformers_does(file: Path, text: Path) -> None:
    settings = {f"candidate_{name}": value for name, value in EXACT.items()}
    report = klcli.compare(file, file, text, context=48, **settings)
    assert mean_and_most(report)[1] < 1e-9
    assert report.counts["tokens"] == 399
    assert [one.cause for one in report.findings] == ["engine"]


def test_rows_are_those_that_were_asked_for_in_any_order(file: Path, model: Any) -> None:
    source = open_live(str(file), LoadOptions(**EXACT))
    ids = np.random.default_rng(1).integers(1, 90, (2, 30))
    windows = [window(ids[0], [3, 4, 9, 29]), window(ids[1], range(5, 20))]
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids)).logits
    expected = torch.cat([logits[n, one.rows] for n, one in enumerate(windows)])
    (rows,) = source.rows([windows])
    assert len(rows) == 19
    for start, stop in ((0, 19), (0, 4), (2, 7), (0, 1), (18, 19), (4, 19)):
        found = rows.block(start, stop)
        assert isinstance(found, torch.Tensor)
        assert torch.allclose(found, expected[start:stop], atol=1e-4)


def test_two_readers_of_one_model_do_not_disturb_each_other(file: Path, model: Any) -> None:
    source = open_live(str(file), LoadOptions(**EXACT))
    ids = np.random.default_rng(2).integers(1, 90, (2, 20))
    one, other = source.rows([[window(ids[0], range(20))], [window(ids[1], range(20))]])
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids)).logits
    for start in range(0, 20, 5):
        for number, rows in enumerate((one, other)):
            found = rows.block(start, start + 5)
            assert isinstance(found, torch.Tensor)
            assert torch.allclose(found, logits[number, start : start + 5], atol=1e-4)


def test_a_recording_gives_the_numbers_of_the_engine(
    file: Path, text: Path, tmp_path: Path
) -> None:
    settings = {"context": 48, **EXACT}
    live = klcli.compare(file, file, text, context=48, candidate_engine="llama.cpp", threads=1)
    klcli.record(file, text, tmp_path / "tiny.rec", **settings)
    exact = klcli.compare(tmp_path / "tiny.rec", file, **EXACT)
    assert mean_and_most(exact)[1] < 1e-12
    assert exact.models["reference"]["engine"] == "llama.cpp"
    klcli.record(file, text, tmp_path / "f16.rec", context=48, engine="llama.cpp", threads=1)
    again = klcli.compare(file, tmp_path / "f16.rec")
    assert again.metrics["kl"]["mean"] == pytest.approx(live.metrics["kl"]["mean"], rel=1e-6)


def test_the_report_says_what_ran(klcli: Run, file: Path, text: Path) -> None:
    done = klcli(
        "perplexity", file, text, "--engine", "llama.cpp", "--context", "48", "--format", "json",
        "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    model = json.loads(done.out)["model"]
    assert model["engine"] == "llama.cpp"
    assert model["binding"].startswith("llama-cpp-python ")
    assert "CPU" in model["kernels"]
    assert (model["kv_cache_type"], model["flash_attention"]) == ("f16", "auto")


def test_parts_are_read_as_one_model(model: Any, text: Path, tmp_path: Path) -> None:
    stated = {"rope.dimension_count": 8, "attention.layer_norm_rms_epsilon": 1e-6}
    whole = write(tmp_path / "whole.gguf", model, stated)
    first = write(tmp_path / "parts.gguf", model, stated, parts=2)
    assert first != tmp_path / "parts.gguf"
    report = klcli.compare(whole, first, text, context=48, **EXACT)
    assert report.metrics["kl"]["max"] == 0


def test_half_precision_of_the_cache_changes_a_little(file: Path, text: Path) -> None:
    settings: dict[str, Any] = {"engine": "llama.cpp", "context": 48, "flash_attention": "off"}
    report = klcli.compare(
        file, file, text, reference_kv_cache_type="f32", candidate_kv_cache_type="f16", **settings
    )
    kl = report.metrics["kl"]["mean"]
    assert kl is not None
    assert 0 < kl < 1e-3


def test_a_cache_that_does_not_fit_the_heads_is_one_message(
    klcli: Run, file: Path, text: Path
) -> None:
    done = klcli(
        "perplexity", file, text, "--engine", "llama.cpp", "--kv-cache-type", "q8_0",
        "--context", "48",
    )  # fmt: skip
    assert done.code == 1
    assert "with --kv-cache-type q8_0" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_one_message(
    klcli: Run, file: Path, text: Path, tmp_path: Path, share: float
) -> None:
    cut = tmp_path / "cut.gguf"
    content = file.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    done = klcli("perplexity", cut, text, "--engine", "llama.cpp")
    assert done.code == 1
    assert "cut.gguf" in done.err
    assert "Traceback" not in done.err


def test_a_text_longer_than_the_model_reads_is_cut_into_windows(file: Path, text: Path) -> None:
    report = klcli.perplexity(file, text, **EXACT)
    assert report.protocol["context"] == CONTEXT


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("compare", "MODEL", "FILE"), 1, "is not a .gguf file"),
        (("compare", "FILE", "FILE", "--noise-floor", "batch"), 2, "needs a reference that"),
        (("compare", "FILE", "none.gguf"), 1, "no model at 'none.gguf'"),
    ],
)
def test_what_it_cannot_do_is_said(
    klcli: Run, file: Path, reference: Path, text: Path,
    arguments: tuple[str, ...], code: int, message: str,
) -> None:  # fmt: skip
    paths: dict[str, str | Path] = {"MODEL": reference, "FILE": file}
    named = [paths.get(one, one) for one in arguments]
    done = klcli(*named[:3], text, *named[3:], "--engine", "llama.cpp")
    assert (done.code, message in done.err) == (code, True), done.err


def test_without_the_binding_it_is_named(
    monkeypatch: pytest.MonkeyPatch, file: Path, text: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else found(name)
    )
    with pytest.raises(SourceError, match=r"pip install 'klcli\[llama.cpp\]'"):
        klcli.perplexity(file, text, engine="llama.cpp")


def test_a_tokenizer_of_another_model_is_refused(file: Path, reference: Path, text: Path) -> None:
    with pytest.raises(KlcliError, match=r"differs from what llama.cpp reads in it"):
        klcli.perplexity(file, text, engine="llama.cpp", tokenizer=reference)


@pytest.fixture(scope="module")
def full(smollm2_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    return copy_as(smollm2_file, folder / "f32.gguf", GGMLQuantizationType.F32)


@pytest.fixture
def wikitext(shared: Path) -> Path:
    return shared / "corpora" / "wikitext2-test-60k.txt"


@pytest.mark.real
@pytest.mark.slow
class TestSmolLM2:
    def test_perplexities_are_those_that_llama_perplexity_prints(
        self, full: Path, wikitext: Path
    ) -> None:
        report = klcli.perplexity(
            full, wikitext, protocol="llama.cpp", context=128, limit=2, **EXACT
        )
        value = report.metrics["perplexity"]["value"]
        assert value == pytest.approx(15.2264, abs=2e-4)

    def test_float32_is_that_of_transformers(self, full: Path, wikitext: Path) -> None:
        settings = {f"candidate_{name}": value for name, value in EXACT.items()}
        report = klcli.compare(full, full, wikitext, limit=2, **settings)
        assert mean_and_most(report)[0] < 1e-6

    def test_eight_bits_cost_more_in_llama_cpp_than_their_weights_do(
        self, full: Path, wikitext: Path, tmp_path: Path
    ) -> None:
        eight = copy_as(full, tmp_path / "q8_0.gguf", GGMLQuantizationType.Q8_0)
        weights = klcli.compare(full, eight, wikitext, limit=4).metrics["kl"]["mean"]
        run = klcli.compare(full, eight, wikitext, limit=4, candidate_engine="llama.cpp")
        assert weights == pytest.approx(0.0011, abs=3e-4)
        assert run.metrics["kl"]["mean"] == pytest.approx(0.0038, abs=1e-3)
