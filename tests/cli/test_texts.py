"""Several texts on the command line: rows, means with intervals, and gates on one of them."""

import json
from pathlib import Path

import pytest

from tests.running import Run

TEXTS = {
    "en": ["The small cat sees the red dogs.", "A farmer sings behind the house."],
    "other": ["The foxes are very big.", "The children fear the old boats."],
}


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """Twenty texts, of two groups in turn."""
    path = tmp_path / "groups.jsonl"
    lines = [
        {"text": f"{TEXTS[lang][n % 2]} The teacher waits today.", "lang": lang}
        for n in range(10)
        for lang in TEXTS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_means_of_several_texts_have_intervals(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, groups: Path
) -> None:
    arguments = ("compare", reference, candidate, corpus, groups, "--limit", "20", "--quiet")
    report = json.loads(klcli(*arguments, "--format", "json").out)
    assert report["macro_intervals"].keys() == report["macro"].keys()
    for name, mean in report["macro"].items():
        ends = report["macro_intervals"][name]
        assert ends["ci_low"] <= mean <= ends["ci_high"]
    row = next(line for line in klcli(*arguments).out.splitlines() if "mean of corpora" in line)
    assert len(row.split()) >= 6


def test_groups_are_rows_as_corpora_are(
    klcli: Run, reference: Path, candidate: Path, groups: Path, tmp_path: Path
) -> None:
    markdown, page = tmp_path / "run.md", tmp_path / "run.html"
    arguments = ("compare", reference, candidate, groups, "--group-by", "lang", "--quiet")
    shown = klcli(*arguments, "--output", markdown, "--output", page)
    for printed in (shown.out, markdown.read_text(), page.read_text()):
        assert "mean of groups" in printed
    found = json.loads(klcli(*arguments, "--format", "json").out)["groups"]
    assert [one["name"] for one in found["groups"]] == ["en", "other"]
    means = [one["metrics"]["kl"]["mean"] for one in found["groups"]]
    assert found["macro"]["kl"] == pytest.approx(sum(means) / 2)
    assert found["macro_intervals"]["kl"]["se"] > 0


def test_groups_come_back_out_of_a_run_and_a_report(
    klcli: Run, reference: Path, candidate: Path, groups: Path, tmp_path: Path
) -> None:
    run = tmp_path / "kept.run"
    arguments = ("compare", reference, candidate, groups, "--group-by", "lang", "--run", run)
    made = json.loads(klcli(*arguments, "--quiet", "--format", "json").out)
    for saved in (run, run / "report.json"):
        again = json.loads(klcli("report", saved, "--format", "json").out)
        assert again["groups"] == made["groups"]
        assert again["macro_intervals"] == made["macro_intervals"]


def test_a_gate_can_be_on_one_corpus_or_one_group(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, groups: Path, tmp_path: Path
) -> None:
    run, junit = tmp_path / "kept.run", tmp_path / "run.xml"
    gates = ("--gate", "groups.jsonl:kl<=10", "--gate", "other:kl.mean<=1e-9",
             "--gate", f"{corpus}:kl<=10")  # fmt: skip
    done = klcli(
        "compare", reference, candidate, corpus, groups, "--group-by", "lang", "--limit", "20",
        "--quiet", "--run", run, "--output", junit, "--format", "json", *gates,
    )  # fmt: skip
    assert done.code == 3
    report = json.loads(done.out)
    assert [gate["verdict"] for gate in report["gates"]] == ["pass", "fail", "pass"]
    by_corpus = [one["metrics"]["kl"]["mean"] for one in report["corpora"]]
    assert report["gates"][0]["value"] == by_corpus[1]
    assert report["gates"][2]["value"] == by_corpus[0]
    assert "other:kl.mean" in junit.read_text()
    for saved in (run, run / "report.json"):
        again = klcli("report", saved, "--format", "json", *gates)
        assert json.loads(again.out)["gates"] == report["gates"]


def test_a_gate_on_one_text_does_not_stand_behind_the_number_of_all(
    klcli: Run, reference: Path, candidate: Path, groups: Path
) -> None:
    arguments = ("compare", reference, candidate, groups, "--quiet", "--gate")
    assert "limit 123" not in klcli(*arguments, "groups.jsonl:kl<=123").out
    assert "limit 123" in klcli(*arguments, "kl<=123").out


def test_a_gate_on_one_text_is_held_against_that_text_of_the_baseline(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, groups: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.json"
    arguments = ("compare", reference, candidate, corpus, groups, "--limit", "20", "--quiet")
    klcli(*arguments, "--output", base)
    gate = ("--baseline", base, "--gate", "groups.jsonl:kl<=2*baseline")
    report = json.loads(klcli(*arguments, *gate, "--format", "json").out)
    (result,) = report["gates"]
    assert result["verdict"] == "pass"
    assert result["baseline"] == result["value"] == report["corpora"][1]["metrics"]["kl"]["mean"]
    refused = klcli(*arguments, *gate, "--gate-confidence", "0.9")
    assert refused.code == 2
    assert "leave out --gate-confidence" in refused.err


def test_a_confidence_holds_the_interval_of_that_text_against_the_limit(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, groups: Path
) -> None:
    done = klcli(
        "compare", reference, candidate, corpus, groups, "--limit", "20", "--quiet",
        "--format", "json", "--gate", "groups.jsonl:kl<=10", "--gate-confidence", "0.95",
    )  # fmt: skip
    report = json.loads(done.out)
    metric = report["corpora"][1]["metrics"]["kl"]
    (result,) = report["gates"]
    assert (result["ci_low"], result["ci_high"]) == (metric["ci_low"], metric["ci_high"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--gate", "none.txt:kl<=1"), "unknown text 'none.txt'; use one of"),
        (("--gate", "groups.jsonl:kl<=1", "--until", "decided"), "--until decides gates on all"),
    ],
)
def test_a_gate_that_has_no_text_exits_2_before_a_model_is_loaded(
    klcli: Run, reference: Path, groups: Path, more: tuple[str, ...], says: str
) -> None:
    done = klcli("compare", reference, reference, groups, *more)
    assert done.code == 2
    assert says in done.err


def test_more_groups_than_anybody_reads_are_refused(
    klcli: Run, reference: Path, tmp_path: Path
) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": "The cat.", "id": n}) + "\n" for n in range(300)))
    done = klcli("compare", reference, reference, path, "--group-by", "id")
    assert done.code == 2
    assert "--group-by finds 300 groups" in done.err
