"""`klcli compare` on the fixtures."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.running import Run


def report_of(klcli: Run, *arguments: str | Path) -> dict[str, Any]:
    done = klcli("compare", *arguments, "--format", "json", "--quiet")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


@pytest.fixture(scope="session")
def figures(fixtures: Path) -> dict[str, Any]:
    """What fixtures/make.py computed with code of its own."""
    return dict(json.loads((fixtures / "figures.json").read_text()))


def test_two_models_and_a_text_make_a_table(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    command = ("compare", reference, candidate, corpus, "--context", "64")
    done = klcli(*command)
    assert done.code == 0
    assert done.err.startswith("3,584 tokens in ")
    assert done.err.count("\n") == 1
    assert done.out.startswith("≠ candidate differs from reference ")
    assert "kl                0.001014 ± 0.000097 nats" in done.out
    assert "KL(ref ‖ cand)        0.001014" in klcli(*command, "--details").out
    assert max(map(len, done.out.splitlines())) <= 80
    assert "\x1b" not in done.out


def test_the_report_has_the_keys_of_the_contract(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    report = report_of(klcli, reference, candidate, corpus, "--limit", "2")
    assert {
        "format", "format_version", "command", "signature", "reference", "candidate", "protocol",
        "environment", "counts", "metrics", "corpora", "outliers", "gates", "verdict", "warnings",
        "clusters", "slices",
    } <= set(report)  # fmt: skip
    assert (report["format"], report["format_version"]) == ("klcli.report", 1)
    assert report["verdict"] is None
    assert {"tokens", "windows", "documents", "bytes", "excluded", "infinite"} <= set(
        report["counts"]
    )
    assert report["corpora"][0]["metrics"]["kl"]["mean"] == report["metrics"]["kl"]["mean"]
    assert set(report["outliers"][0]) >= {
        "index", "document", "position", "token", "token_id", "before", "after", "kl", "score",
        "nll_reference", "nll_candidate", "top_reference", "top_candidate",
    }  # fmt: skip


def test_every_slice_is_in_the_report_and_those_asked_for_in_the_table(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "run.json"
    done = klcli(
        "compare", reference, candidate, corpus, "--context", "64", "--slice", "kind",
        "--output", saved,
    )  # fmt: skip
    assert "kind of text" in done.out
    assert "row of the window" not in done.out
    report = json.loads(saved.read_text())
    assert report["clusters"]["count"] == 28
    assert -1 < report["clusters"]["lag1_correlation"] < 1
    for by in ("confidence", "position", "kind"):
        rows = [row for row in report["slices"] if row["by"] == by]
        assert sum(row["tokens"] for row in rows) == report["counts"]["tokens"]
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        mean = sum(row["tokens"] * row["kl"] for row in rows) / report["counts"]["tokens"]
        assert mean == pytest.approx(report["metrics"]["kl"]["mean"])


def test_a_gate_can_rest_on_the_end_of_a_quantile(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    gates = ("--gate", "kl.p90_high<=1", "--gate", "top1_agreement.ci_low>=0.9")
    assert klcli("compare", reference, candidate, corpus, "--context", "64", *gates).code == 0


def test_a_model_against_itself_is_equal_at_every_token(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.csv"
    report = report_of(klcli, reference, reference, corpus, "--output", tokens)
    rows = list(csv.DictReader(tokens.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == report["counts"]["tokens"] == 3584
    assert {row["kl"] for row in rows} == {"0.0"}
    assert report["metrics"]["kl"]["max"] == 0
    assert report["metrics"]["top1_agreement"]["value"] == 1
    assert report["metrics"]["perplexity_ratio"]["value"] == 1
    assert report["outliers"] == []


@pytest.mark.parametrize("name", ["reference", "candidate", "undertrained"])
def test_the_divergence_from_the_truth_is_that_of_independent_code(
    klcli: Run, fixtures: Path, figures: dict[str, Any], name: str
) -> None:
    report = report_of(klcli, fixtures / "logits/truth.npz", fixtures / "models" / name)
    metrics = report["metrics"]
    known = figures[name]
    assert metrics["kl"]["mean"] == pytest.approx(known["kl_from_truth"], abs=1e-6)
    assert metrics["nll_candidate"]["mean"] == pytest.approx(known["nll"], abs=1e-6)


def test_a_better_model_is_nearer_to_the_truth(klcli: Run, fixtures: Path) -> None:
    truth = fixtures / "logits/truth.npz"
    kl = {
        name: report_of(klcli, truth, fixtures / "models" / name)["metrics"]["kl"]["mean"]
        for name in ("reference", "undertrained")
    }
    assert kl["reference"] < kl["undertrained"] / 10


@pytest.mark.parametrize("name", ["reference", "candidate", "undertrained"])
def test_cross_entropy_less_entropy_of_the_truth_is_the_divergence(
    klcli: Run, fixtures: Path, name: str
) -> None:
    report = report_of(klcli, fixtures / "logits/truth.npz", fixtures / "models" / name)
    metrics = report["metrics"]
    excess = metrics["nll_candidate"]["mean"] - metrics["entropy_reference"]["mean"]
    assert abs(excess - metrics["kl"]["mean"]) <= 2 * metrics["nll_candidate"]["se"]


def test_a_logit_file_stands_for_the_model_that_made_it(
    klcli: Run, fixtures: Path, reference: Path, candidate: Path, corpus: Path
) -> None:
    """The files were made on another processor: its float32 models differ in their last digits."""
    live = report_of(klcli, reference, candidate, corpus, "--context", "64")
    for sides in (
        (fixtures / "logits/reference.npz", fixtures / "logits/candidate.safetensors"),
        (fixtures / "logits/reference.npz", candidate),
        (reference, fixtures / "logits/candidate.npz"),
        (fixtures / "logits/reference.npz", candidate, corpus),
    ):
        saved = report_of(klcli, *sides)
        for name in ("kl", "kl_reverse", "jsd", "nll_difference", "delta_p"):
            assert saved["metrics"][name]["mean"] == pytest.approx(
                live["metrics"][name]["mean"], rel=1e-4, abs=2e-7
            ), (name, sides)


def test_a_model_outside_transformers_is_compared_by_its_logits(klcli: Run, fixtures: Path) -> None:
    report = report_of(klcli, fixtures / "logits/truth.npz", fixtures / "logits/lstm.npz")
    assert 0 < report["metrics"]["kl"]["mean"] < 0.1
    assert report["outliers"][0]["token"].strip().startswith("#")


def test_one_model_at_two_dtypes_is_one_command(klcli: Run, reference: Path, corpus: Path) -> None:
    report = report_of(
        klcli, reference, reference, corpus, "--candidate-dtype", "bfloat16", "--limit", "4"
    )
    assert report["reference"]["dtype"] == "float32"
    assert report["candidate"]["dtype"] == "bfloat16"
    assert 0 < report["metrics"]["kl"]["mean"] < 1e-3


def test_several_outputs_are_written_in_one_run(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    names = ["run.json", "tokens.csv", "tokens.jsonl", "run.md"]
    outputs = [part for name in names for part in ("--output", tmp_path / name)]
    done = klcli("compare", reference, candidate, corpus, "--limit", "2", *outputs)
    assert done.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    report = json.loads((tmp_path / "run.json").read_text())
    lines = (tmp_path / "tokens.jsonl").read_text().splitlines()
    assert len(lines) == report["counts"]["tokens"]
    mean = math.fsum(json.loads(line)["kl"] for line in lines) / len(lines)
    assert mean == pytest.approx(report["metrics"]["kl"]["mean"])


def test_tokens_all_lists_every_token(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    few = klcli("compare", reference, candidate, corpus, "--limit", "1", "--tokens", "none")
    many = klcli("compare", reference, candidate, corpus, "--limit", "1", "--tokens", "all")
    assert len(many.out.splitlines()) >= len(few.out.splitlines()) + 128
    assert max(map(len, many.out.splitlines())) <= 80


def test_several_corpora_stand_side_by_side_and_together(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, fixtures: Path
) -> None:
    report = report_of(klcli, reference, candidate, corpus, fixtures / "other.txt")
    parts = report["corpora"]
    assert [part["counts"]["tokens"] for part in parts] == [3584, 1024]
    assert report["counts"]["tokens"] == 4608
    means = [part["metrics"]["kl"]["mean"] for part in parts]
    assert report["metrics"]["kl"]["mean"] == pytest.approx(
        (3584 * means[0] + 1024 * means[1]) / 4608
    )
    assert report["macro"]["kl"] == pytest.approx(sum(means) / 2)


def test_equal_arguments_give_equal_signatures_and_others_do_not(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    first = report_of(klcli, reference, candidate, corpus, "--limit", "1")["signature"]
    again = report_of(klcli, reference, candidate, corpus, "--limit", "1")["signature"]
    other = report_of(klcli, reference, candidate, corpus, "--limit", "1", "--context", "64")
    assert first == again != other["signature"]


def test_batch_size_changes_no_number_beyond_rounding(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    one = report_of(klcli, reference, candidate, corpus, "--batch-tokens", "1")
    many = report_of(klcli, reference, candidate, corpus, "--batch-tokens", "100000")
    assert one["metrics"]["kl"]["mean"] == pytest.approx(many["metrics"]["kl"]["mean"], rel=1e-4)


def test_lines_can_be_documents(klcli: Run, reference: Path, candidate: Path, corpus: Path) -> None:
    report = report_of(klcli, reference, candidate, corpus, "--documents", "line")
    assert report["counts"]["documents"] > 20
    assert report["counts"]["windows"] >= report["counts"]["documents"]
    lines = [line for line in corpus.read_text().splitlines() if line]
    assert report["counts"]["documents"] == len(lines)


def test_bos_before_the_document_scores_its_first_token_too(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    report = report_of(klcli, reference, candidate, corpus, "--bos", "document")
    assert report["counts"]["tokens"] == 3585
    assert report["counts"]["bytes"] == corpus.stat().st_size
