"""`klcli perplexity` on the fixtures."""

import gzip
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.running import Run


def report_of(klcli: Run, *arguments: str | Path) -> dict[str, Any]:
    done = klcli("perplexity", *arguments, "--format", "json", "--quiet")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def test_nll_is_that_of_transformers_in_float64(klcli: Run, reference: Path, corpus: Path) -> None:
    report = report_of(klcli, reference, corpus, "--context", "64")
    model = AutoModelForCausalLM.from_pretrained(reference)
    ids = AutoTokenizer.from_pretrained(reference)(corpus.read_text(), verbose=False).input_ids
    windows = torch.tensor(ids[:-1]).view(-1, 64)
    with torch.inference_mode():
        log_p = torch.log_softmax(model(windows).logits.double(), dim=-1).flatten(0, 1)
    nll = -log_p.gather(-1, torch.tensor(ids[1:])[:, None]).mean()
    assert report["metrics"]["nll"]["mean"] == pytest.approx(float(nll), abs=1e-6)
    assert report["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(nll), rel=1e-6)


def test_each_corpus_has_a_row_and_all_have_a_total(
    klcli: Run, reference: Path, corpus: Path, fixtures: Path
) -> None:
    report = report_of(klcli, reference, corpus, fixtures / "other.txt")
    alone = [
        report_of(klcli, reference, path)["metrics"]["nll"]["mean"]
        for path in (corpus, fixtures / "other.txt")
    ]
    parts = [part["metrics"]["nll"]["mean"] for part in report["corpora"]]
    assert parts == pytest.approx(alone, rel=1e-6)
    assert report["macro"]["perplexity"] == pytest.approx(math.exp(sum(parts) / 2))
    table = klcli("perplexity", reference, corpus, fixtures / "other.txt").out
    assert "other.txt" in table
    assert "all tokens" in table


def test_bits_per_byte_counts_the_text_behind_the_scored_tokens(
    klcli: Run, reference: Path, corpus: Path
) -> None:
    report = report_of(klcli, reference, corpus)
    counts, metrics = report["counts"], report["metrics"]
    bits = metrics["nll"]["mean"] * counts["tokens"] / math.log(2)
    assert metrics["bits_per_byte"]["value"] == pytest.approx(bits / counts["bytes"])
    first_token = 4  # bytes
    assert counts["bytes"] == pytest.approx(corpus.stat().st_size, abs=first_token + 4)


def test_text_comes_from_stdin_or_a_gzip_as_well(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = report_of(klcli, reference, corpus)
    packed = tmp_path / "corpus.txt.gz"
    packed.write_bytes(gzip.compress(corpus.read_bytes()))
    assert report_of(klcli, reference, packed)["metrics"] == plain["metrics"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(corpus.read_bytes())))
    assert report_of(klcli, reference, "-")["metrics"] == plain["metrics"]


def test_the_llama_cpp_protocol_scores_the_second_half_of_each_chunk(
    klcli: Run, reference: Path, corpus: Path
) -> None:
    report = report_of(klcli, reference, corpus, "--protocol", "llama.cpp", "--context", "64")
    chunks = 3584 // 64  # the final newline is a token, and is dropped
    assert report["counts"]["windows"] == chunks
    assert report["counts"]["tokens"] == chunks * 31


def test_a_logit_file_has_a_perplexity(klcli: Run, fixtures: Path, reference: Path) -> None:
    saved = report_of(klcli, fixtures / "logits/reference.npz")
    live = report_of(klcli, reference, fixtures / "corpus.txt", "--context", "64")
    assert saved["metrics"]["nll"]["mean"] == pytest.approx(
        live["metrics"]["nll"]["mean"], abs=1e-6
    )
    assert saved["metrics"]["bits_per_byte"]["value"] is None


def test_limit_takes_the_first_windows_of_each_corpus(
    klcli: Run, reference: Path, corpus: Path, fixtures: Path
) -> None:
    report = report_of(klcli, reference, corpus, fixtures / "other.txt", "--limit", "2")
    assert [part["counts"]["windows"] for part in report["corpora"]] == [2, 2]


def test_special_token_strings_are_text_and_are_counted(
    klcli: Run, reference: Path, tmp_path: Path
) -> None:
    text = tmp_path / "special.txt"
    text.write_text("The dog sleeps.<|endoftext|>The cat sleeps.", encoding="utf-8")
    done = klcli("perplexity", reference, text)
    assert "special tokens stand in the text" in " ".join(done.out.split())
    assert "special tokens" not in done.err
    as_data = klcli("perplexity", reference, text, "--format", "json")
    assert "special tokens stand in the text" in " ".join(as_data.err.split())
    as_text = report_of(klcli, reference, text)["counts"]["tokens"]
    parsed = report_of(klcli, reference, text, "--special-tokens", "parse")["counts"]["tokens"]
    assert parsed < as_text
