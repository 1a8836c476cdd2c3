"""Runs that are kept, joined, held against an earlier one, or ended early, as a user does it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import klcli as package
from klcli.runs.folder import RunFolder
from klcli.runs.format import RUN
from klcli.storage import manifest as manifests
from tests.running import Outcome, Run, timeless

CONTEXT = ("--context", "64")
WINDOWS = (*CONTEXT, "--limit", "12")
OFTEN = (*CONTEXT, "--batch-tokens", "64")
"""Options with which a run that may end early is looked at after every window."""
FORMATS = ("table", "json", "jsonl", "csv", "markdown")


@pytest.fixture
def undertrained(fixtures: Path) -> Path:
    """A model that is far from the reference."""
    return fixtures / "models" / "undertrained"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    """A folder with a run of the reference and the candidate, and its report beside it."""
    folder = tmp_path_factory.mktemp("saved") / "base.run"
    package.compare(
        str(fixtures / "models/reference"),
        str(fixtures / "models/candidate"),
        fixtures / "corpus.txt",
        context=64,
        limit=12,
        run=str(folder),
    )
    return folder


def report_of(done: Outcome) -> dict[str, Any]:
    assert done.out, done.err
    return dict(json.loads(done.out))


def assert_refused(done: Outcome, code: int, *says: str) -> None:
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    text = " ".join(done.err.split())
    for words in says:
        assert words in text


# --run, then report


@pytest.mark.parametrize("format_", FORMATS)
def test_a_saved_run_is_shown_as_it_was_printed(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path, format_: str
) -> None:
    shown = ("--format", format_, "--slice", "kind")
    command = ("compare", reference, candidate, corpus, *WINDOWS)
    kept = klcli(*command, *shown, "--run", tmp_path / "a.run")
    assert kept.code == 0
    again = klcli("report", tmp_path / "a.run", *shown)
    assert (again.code, again.out) == (0, kept.out)
    scored, *warnings = kept.err.splitlines()
    assert scored.startswith("768 tokens in ")
    assert again.err.splitlines() == warnings


def test_keeping_a_run_changes_nothing_that_is_printed(
    klcli: Run, saved: Path, reference: Path, candidate: Path, corpus: Path
) -> None:
    plain = klcli("compare", reference, candidate, corpus, *WINDOWS, "--format", "jsonl")
    assert klcli("report", saved, "--format", "jsonl").out == plain.out


def test_a_run_of_perplexity_is_shown_as_it_was_printed(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    kept = klcli("perplexity", reference, corpus, *WINDOWS, "--run", tmp_path / "p.run")
    assert kept.code == 0
    assert klcli("report", tmp_path / "p.run").out == kept.out


def test_a_run_of_logit_files_is_shown_as_it_was_printed(
    klcli: Run, fixtures: Path, tmp_path: Path
) -> None:
    pair = [fixtures / f"logits/{name}.npz" for name in ("reference", "candidate")]
    kept = klcli("compare", *pair, "--run", tmp_path / "l.run")
    assert kept.code == 0
    assert klcli("report", tmp_path / "l.run").out == kept.out


def test_the_report_of_a_run_is_the_json_that_is_printed(klcli: Run, saved: Path) -> None:
    printed = klcli("report", saved, "--format", "json").out
    assert json.loads((saved / "report.json").read_text()) == json.loads(printed)


def test_a_saved_run_is_judged_by_the_gates_of_today(klcli: Run, saved: Path) -> None:
    assert klcli("report", saved, "--gate", "kl<=0.01").code == 0
    done = klcli("report", saved, "--gate", "kl<=1e-6", "--format", "json")
    assert done.code == 3
    assert report_of(done)["verdict"] == "fail"


def test_a_report_alone_is_judged_by_the_gates_of_today(klcli: Run, saved: Path) -> None:
    report = saved / "report.json"
    assert klcli("report", report, "--gate", "kl<=0.01").code == 0
    assert klcli("report", report, "--gate", "kl<=1e-6").code == 3
    mean = json.loads(report.read_text())["metrics"]["kl"]["mean"]
    sure = ("--gate", f"kl<={mean}", "--gate-confidence", "0.95")
    assert klcli("report", report, *sure).code == 4
    printed = klcli("report", report, "--format", "json").out
    assert json.loads(printed) == json.loads(report.read_text())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--format", "jsonl"), 1, "token"),
        (("--format", "csv"), 1, "token"),
        (("--gate", "kl<=1", "--gate-confidence", "0.9"), 2, "95%"),
        (("--baseline", "SAVED"), 2, "give the run's folder"),
    ],
)
def test_what_a_report_alone_cannot_tell_is_said(
    klcli: Run, saved: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    given = [str(saved) if one == "SAVED" else one for one in arguments]
    assert_refused(klcli("report", saved / "report.json", *given), code, says)


def edit_report(run: Path, field: str, number: float) -> None:
    path = run / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    report["metrics"]["kl"][field] = number
    path.write_text(json.dumps(report), encoding="utf-8")


@pytest.mark.parametrize("named", ["", "report.json"])
def test_a_report_that_was_edited_in_its_run_is_an_error(
    klcli: Run, saved: Path, tmp_path: Path, named: str
) -> None:
    """It could turn a gate against a baseline from FAIL to PASS."""
    run = Path(shutil.copytree(saved, tmp_path / "a.run"))
    edit_report(run, "mean", 1.0)
    refused = klcli("report", run / named)
    assert_refused(refused, 1, str(run / "report.json"))
    given = ("--baseline", run / named, "--gate", "kl<=1.1*baseline")
    assert_refused(klcli("report", saved, *given), 1, str(run / "report.json"))


def test_the_baseline_of_a_run_without_a_checksum_is_worked_out_again(
    klcli: Run, saved: Path, tmp_path: Path
) -> None:
    """There was no checksum of the report in klcli 0.1.0: the numbers of the tokens decide."""
    run = Path(shutil.copytree(saved, tmp_path / "a.run"))
    manifest = RUN.read(run)
    del manifest["files"]["report.json"]
    manifests.save(run, manifest)
    edit_report(run, "mean", 1.0)
    mean = report_of(klcli("report", saved, "--format", "json"))["metrics"]["kl"]["mean"]
    given = ("--baseline", run, "--gate", "kl<=0.9*baseline", "--format", "json")
    done = klcli("report", saved, *given)
    assert done.code == 3
    assert report_of(done)["gates"][0]["limit"] == pytest.approx(0.9 * mean)


def test_a_run_is_incomplete_until_its_report_is_sealed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between leaves a run that goes on, not one that seems to be altered."""
    run = Path(shutil.copytree(saved, tmp_path / "a.run"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    folder = RunFolder(run, RUN.read(run))
    monkeypatch.setattr("klcli.runs.folder.put", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.complete({})
    assert not RUN.read(run)["complete"]


def test_an_infinite_baseline_does_not_pass(
    klcli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    p, q = np.zeros((8, 4)), np.zeros((8, 4))
    q[3, 0] = -np.inf
    for name, values in (("p.npz", p), ("q.npz", q)):
        np.savez(name, logits=values.astype(np.float32), tokens=np.array([1] * 8))
    assert klcli("compare", "p.npz", "q.npz", "--run", "inf.run").code == 0
    gate = ("--baseline", "inf.run", "--gate", "kl<=1.1*baseline", "--output", "again.json")
    done = klcli("compare", "p.npz", "q.npz", *gate)
    assert done.code == 3
    assert "kl.mean is inf in the baseline" in " ".join(done.out.split())
    shown = klcli("report", "again.json", "--format", "json")
    assert report_of(shown)["gates"][0]["limit"] == "inf"


@pytest.mark.parametrize("what", ["missing", "fixtures", "corpus.txt"])
def test_what_is_no_run_is_said(klcli: Run, fixtures: Path, what: str) -> None:
    path = {"fixtures": fixtures}.get(what, fixtures / what)
    assert_refused(klcli("report", path), 1, str(path))


# --shard and merge


def test_three_shards_merge_to_the_report_of_the_whole(
    klcli: Run, saved: Path, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    command = ("compare", reference, candidate, corpus, *WINDOWS, "--batch-tokens", "128")
    plain = klcli(*command, "--run", tmp_path / "plain", "--format", "json")
    parts = [tmp_path / f"part{number}" for number in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        assert klcli(*command, "--shard", f"{number}/3", "--run", part).code == 0
    whole = tmp_path / "whole.run"
    merged = klcli("merge", *reversed(parts), "-o", whole, "--format", "json")
    assert merged.code == 0
    assert timeless(merged.out) == timeless(plain.out)
    assert klcli("report", whole, "--format", "json").out == merged.out
    assert klcli("merge", *parts, "-o", tmp_path / "b", "--gate", "kl<=1e-6").code == 3
    refused = klcli("merge", parts[0], parts[2], "-o", tmp_path / "c")
    assert_refused(refused, 2, "shard 2/3 is missing")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_what_is_no_shard_is_said(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path, shard: str
) -> None:
    given = ("--shard", shard, "--run", tmp_path / "a.run")
    assert_refused(klcli("perplexity", reference, corpus, *WINDOWS, *given), 2, "--shard")


def test_a_shard_that_is_kept_nowhere_is_a_usage_error(
    klcli: Run, reference: Path, corpus: Path
) -> None:
    done = klcli("perplexity", reference, corpus, *WINDOWS, "--shard", "1/2")
    assert_refused(done, 2, "--run DIR")


# --baseline


def test_a_run_no_worse_than_its_baseline_passes_a_relative_gate(klcli: Run, saved: Path) -> None:
    done = klcli(
        "report", saved, "--baseline", saved, "--gate", "kl.mean<=1.1*baseline",
        "--format", "json",
    )  # fmt: skip
    assert done.code == 0
    report = report_of(done)
    (gate,) = report["gates"]
    assert gate["limit"] == pytest.approx(1.1 * report["metrics"]["kl"]["mean"])


def test_a_run_that_is_worse_than_its_baseline_fails_a_relative_gate(
    klcli: Run, saved: Path, reference: Path, undertrained: Path, corpus: Path
) -> None:
    command = ("compare", reference, undertrained, corpus, *WINDOWS)
    gate = ("--baseline", saved, "--gate", "kl.mean<=1.1*baseline")
    assert klcli(*command, *gate).code == 3
    assert klcli(*command, *gate, "--gate-confidence", "0.95").code == 3


def test_pairing_with_the_baseline_decides_what_its_report_alone_cannot(
    klcli: Run, saved: Path
) -> None:
    gate = ("--gate", "kl.mean<=1.1*baseline", "--gate-confidence", "0.95", "--format", "json")
    paired = klcli("report", saved, "--baseline", saved, *gate)
    alone = klcli("report", saved, "--baseline", saved / "report.json", *gate)
    assert (paired.code, alone.code) == (0, 4)
    ends = [(one["ci_low"], one["ci_high"]) for done in (paired, alone)
            for one in report_of(done)["gates"]]  # fmt: skip
    assert ends[1][0] < ends[0][0] < ends[0][1] < ends[1][1]
    codes = [[one["code"] for one in report_of(done)["warnings"]] for done in (paired, alone)]
    assert "unpaired_baseline" not in codes[0]
    assert "unpaired_baseline" in codes[1]


def test_a_baseline_on_other_windows_is_held_against_without_pairs(
    klcli: Run, saved: Path, reference: Path, candidate: Path, corpus: Path
) -> None:
    done = klcli(
        "compare", reference, candidate, corpus, *CONTEXT, "--limit", "13", "--baseline", saved,
        "--gate", "kl.mean<=2*baseline", "--gate-confidence", "0.95", "--format", "json",
    )  # fmt: skip
    assert done.code == 0
    codes = [one["code"] for one in report_of(done)["warnings"]]
    assert "unpaired_baseline" in codes


@pytest.mark.parametrize(
    "number",
    ["kl", "nll_candidate", "perplexity_candidate", "perplexity_ratio", "bits_per_byte_candidate",
     "top1_agreement", "overlap_5", "delta_p_rms", "rank_candidate", "flips.volume"],
)  # fmt: skip
def test_a_run_is_surely_no_worse_than_itself(klcli: Run, saved: Path, number: str) -> None:
    sure = ("--baseline", saved, "--gate-confidence", "0.95", "--format", "json")
    gates = ("--gate", f"{number}<=1.001*baseline", "--gate", f"{number}>=0.999*baseline")
    done = klcli("report", saved, *sure, *gates)
    assert done.code == 0, report_of(done)["gates"]


@pytest.mark.parametrize("confidence", [(), ("--gate-confidence", "0.95")])
def test_a_baseline_of_top_tokens_passes_what_it_shows_and_no_more(
    klcli: Run, saved: Path, reference: Path, candidate: Path, corpus: Path, tmp_path: Path,
    confidence: tuple[str, ...],
) -> None:  # fmt: skip
    top, bound = tmp_path / "top.rec", tmp_path / "bound.run"
    kind = ("--kind", "topk", "--top-k", "20")
    assert klcli("record", reference, corpus, "-o", top, *WINDOWS, *kind).code == 0
    assert klcli("compare", top, candidate, "--run", bound).code == 0

    def verdict(run: Path, baseline: Path, gate: str) -> tuple[int, bool]:
        held = ("--baseline", baseline, "--gate", gate, *confidence, "--format", "json")
        done = klcli("report", run, *held)
        return done.code, "only known" in str(report_of(done)["gates"][0]["reason"])

    assert verdict(saved, bound, "kl<=2*baseline") == (0, False)
    assert verdict(saved, bound, "kl>=0.5*baseline") == (3, True)
    assert verdict(bound, saved, "kl>=0.5*baseline") == (0, False)
    assert verdict(bound, saved, "kl<=2*baseline") == (3, True)
    for gate in ("kl<=2*baseline", "kl>=0.5*baseline", "kl<=0.5*baseline", "kl>=2*baseline"):
        assert verdict(bound, bound, gate) == (3, True)
    done = klcli("report", bound / "report.json", "--gate", "kl>=9", *confidence)
    assert (done.code, "only known" in done.out) == (3, True)


def test_a_baseline_of_another_command_is_a_usage_error(
    klcli: Run, saved: Path, reference: Path, corpus: Path
) -> None:
    gate = ("--baseline", saved, "--gate", "nll<=baseline")
    done = klcli("perplexity", reference, corpus, *WINDOWS, *gate)
    assert_refused(done, 2, "klcli compare", "klcli perplexity")


def test_a_relative_gate_without_a_baseline_is_a_usage_error(
    klcli: Run, saved: Path, reference: Path, candidate: Path, corpus: Path
) -> None:
    gate = ("--gate", "kl<=1.1*baseline")
    done = klcli("compare", reference, candidate, corpus, *WINDOWS, *gate)
    assert_refused(done, 2, "--baseline RUN")
    assert_refused(klcli("report", saved, *gate), 2, "--baseline RUN")


# --until


@pytest.mark.parametrize(
    ("other", "limit", "code", "verdict"),
    [("candidate", 0.1, 0, "pass"), ("undertrained", 0.01, 3, "fail")],
)
def test_a_gate_that_is_decided_early_saves_windows(
    klcli: Run, fixtures: Path, corpus: Path, other: str, limit: float, code: int, verdict: str
) -> None:
    models = [fixtures / "models" / name for name in ("reference", other)]
    done = klcli(
        "compare", *models, corpus, *OFTEN, "--until", "decided", "--gate", f"kl<={limit}",
        "--format", "json",
    )  # fmt: skip
    assert done.code == code
    report = report_of(done)
    until, (gate,) = report["until"], report["gates"]
    assert until["reached"] is True
    assert 0 < until["windows"] < until["windows_in_all"] == 56
    assert until["tokens"] == report["counts"]["tokens"] == 64 * until["windows"]
    assert until["bands"]["kl"]["method"] == "asymptotic"
    assert (gate["verdict"], report["verdict"]) == (verdict, verdict)
    assert gate["value"] == pytest.approx(report["metrics"]["kl"]["mean"])


def test_how_much_of_the_text_was_needed_is_printed(
    klcli: Run, reference: Path, undertrained: Path, corpus: Path
) -> None:
    gate = ("--until", "decided", "--gate", "kl<=0.01")
    done = klcli("compare", reference, undertrained, corpus, *OFTEN, *gate)
    assert done.code == 3
    assert "of 56 windows" in done.out
    assert "of the tokens, were read" in " ".join(done.out.split())


def test_another_seed_draws_other_windows_and_the_same_seed_the_same(
    klcli: Run, reference: Path, undertrained: Path, corpus: Path
) -> None:
    command = (
        "compare", reference, undertrained, corpus, *OFTEN, "--until", "decided",
        "--gate", "kl<=0.01", "--format", "jsonl", "--seed",
    )  # fmt: skip
    first, again, other = (klcli(*command, seed) for seed in ("0", "0", "1"))
    assert first.out == again.out
    assert first.out != other.out


def test_a_number_that_is_known_well_enough_ends_a_run(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    goal = ("--until", "top1_agreement+-0.25", "--format", "json")
    done = klcli("compare", reference, candidate, corpus, *OFTEN, *goal)
    assert done.code == 0
    report = report_of(done)
    band = report["until"]["bands"]["top1_agreement"]
    assert report["until"]["windows"] < 56
    assert (band["high"] - band["low"]) / 2 <= 0.25
    assert band["low"] <= report["metrics"]["top1_agreement"]["value"] <= band["high"]


def test_what_is_never_known_well_enough_takes_the_whole_text(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    goal = ("--until", "kl.mean±1e-9", "--format", "json")
    report = report_of(klcli("compare", reference, candidate, corpus, *OFTEN, *goal))
    band, mean = report["until"]["bands"]["kl"], report["metrics"]["kl"]["mean"]
    assert report["until"]["windows"] == 56
    assert band["method"] == "exact"
    assert band["low"] == band["high"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("decided", "--gate", "kl.p99<=0.5"), "cannot be decided from part"),
        (("decided", "--gate", "perplexity_ratio<=1.1"), "cannot be decided from part"),
        (("decided",), "give a --gate"),
        (("kl.p99±0.1",), "a mean and a distance"),
        (("kl±0",), "a mean and a distance"),
        (("soon",), "a mean and a distance"),
    ],
)
def test_what_cannot_be_known_from_part_of_a_text_is_a_usage_error(
    klcli: Run, fixtures: Path, arguments: tuple[str, ...], says: str
) -> None:
    pair = [fixtures / f"logits/{name}.npz" for name in ("reference", "candidate")]
    assert_refused(klcli("compare", *pair, "--until", *arguments), 2, says)


def test_a_run_that_ends_early_is_not_kept(klcli: Run, fixtures: Path, tmp_path: Path) -> None:
    pair = [fixtures / f"logits/{name}.npz" for name in ("reference", "candidate")]
    goal = ("--until", "kl±0.1", "--run", tmp_path / "a.run")
    assert_refused(klcli("compare", *pair, *goal), 2, "--until", "--run")
    assert not (tmp_path / "a.run").exists()


# --noise-floor


@pytest.mark.parametrize("by", ["batch", "dtype", "attention"])
def test_the_reference_hardly_differs_from_itself(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, by: str
) -> None:
    command = ("compare", reference, candidate, corpus, *WINDOWS, "--noise-floor", by)
    report = report_of(klcli(*command, "--format", "json"))
    floor = report["noise_floor"]
    assert (floor["by"], floor["tokens"]) == (by, 8 * 64)
    assert 0 <= floor["kl"] < report["metrics"]["kl"]["mean"]
    assert (floor["kl"] > 1e-9) is (by == "dtype")


def test_a_noise_floor_of_what_is_no_model_is_a_usage_error(klcli: Run, fixtures: Path) -> None:
    pair = [fixtures / f"logits/{name}.npz" for name in ("reference", "candidate")]
    assert_refused(klcli("compare", *pair, "--noise-floor", "batch"), 2, "is not a model")


# Excluded tokens


@pytest.fixture
def broken(fixtures: Path, tmp_path: Path) -> list[Path]:
    """The files of a reference and of a candidate with a NaN in every window."""
    with np.load(fixtures / "logits/candidate.npz") as saved:
        logits, tokens = saved["logits"].copy(), saved["tokens"]
    logits[:, 5, 7] = np.nan
    np.savez(tmp_path / "broken.npz", logits=logits, tokens=tokens)
    return [fixtures / "logits/reference.npz", tmp_path / "broken.npz"]


def test_excluded_tokens_fail_a_gate_with_confidence_too(klcli: Run, broken: list[Path]) -> None:
    sure = ("--gate", "kl<=0.1", "--gate-confidence", "0.95")
    assert klcli("compare", *broken, *sure).code == 3
    assert klcli("compare", *broken, *sure, "--allow-excluded").code == 0


@pytest.mark.parametrize("goal", ["decided", "kl±1e-9", "kl±100"])
def test_excluded_tokens_do_not_pass_early(klcli: Run, broken: list[Path], goal: str) -> None:
    early = ("--until", goal, "--gate", "kl<=0.1", "--batch-tokens", "64")
    assert klcli("compare", *broken, *early).code in (3, 4)


# Corners


def test_excluded_tokens_fail_a_gate_early(klcli: Run, broken: list[Path]) -> None:
    early = ("--until", "decided", "--gate", "kl<=0.1", "--batch-tokens", "64")
    done = klcli("compare", *broken, *early, "--format", "json")
    assert done.code == 3
    assert "excluded" in report_of(done)["gates"][0]["reason"]


def test_ending_early_needs_every_token(klcli: Run, broken: list[Path]) -> None:
    early = ("--until", "decided", "--gate", "kl<=0.1", "--batch-tokens", "64")
    done = klcli("compare", *broken, *early, "--allow-excluded")
    assert (done.code, "leave out --allow-excluded" in done.err) == (2, True)


def test_a_lower_bound_does_not_pass_early(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    top = tmp_path / "top.rec"
    kind = ("--kind", "topk", "--top-k", "20")
    assert klcli("record", reference, corpus, "-o", top, *CONTEXT, *kind).code == 0
    command = ("compare", top, candidate, "--batch-tokens", "64", "--gate", "kl<=0.1")
    assert klcli(*command).code == 3
    assert klcli(*command, "--until", "decided").code != 0


def test_a_run_keeps_its_noise_floor(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    command = ("compare", reference, candidate, corpus, *WINDOWS, "--noise-floor", "batch")
    kept = klcli(*command, "--run", tmp_path / "a.run")
    assert klcli("report", tmp_path / "a.run").out == kept.out


def test_a_noise_floor_that_cannot_be_is_refused_before_any_work(
    klcli: Run, fixtures: Path, tmp_path: Path
) -> None:
    pair = [fixtures / f"logits/{name}.npz" for name in ("reference", "candidate")]
    kept = ("--run", tmp_path / "a.run")
    assert_refused(klcli("compare", *pair, "--noise-floor", "batch", *kept), 2, "is not a model")
    assert not (tmp_path / "a.run").exists()


def test_a_merge_prints_the_report_that_it_keeps(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    command = ("compare", reference, candidate, corpus, *WINDOWS, "--outliers", "3")
    for number in ("1", "2"):
        shard = ("--shard", f"{number}/2", "--run", tmp_path / number, "--batch-tokens", "64")
        assert klcli(*command, *shard).code == 0
    whole = tmp_path / "whole"
    done = klcli("merge", tmp_path / "1", tmp_path / "2", "-o", whole, "--format", "json")
    assert json.loads((whole / "report.json").read_text()) == json.loads(done.out)


def test_a_relative_gate_on_a_report_alone_is_a_usage_error(klcli: Run, saved: Path) -> None:
    done = klcli("report", saved / "report.json", "--gate", "kl<=1.1*baseline")
    assert_refused(done, 2, "baseline")


def test_a_report_alone_shows_its_slices(klcli: Run, saved: Path) -> None:
    of_run, alone = (
        klcli("report", path, "--slice", "kind", "--tokens", "none")
        for path in (saved, saved / "report.json")
    )
    assert alone.out == of_run.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--until", "soon"),
        ("--until", "decided"),
        ("--gate", "kl<=1.1*baseline"),
        ("--shard", "1/2"),
        ("--until", "kl±0.1", "--run", "a.run"),
    ],
)
def test_a_wrong_option_exits_2_before_any_work(
    klcli: Run, corpus: Path, arguments: tuple[str, ...]
) -> None:
    assert klcli("compare", "no-such-model", "none", corpus, *arguments).code == 2


def test_a_negative_seed_is_a_usage_error(klcli: Run, fixtures: Path) -> None:
    pair = [fixtures / f"logits/{name}.npz" for name in ("reference", "candidate")]
    assert klcli("compare", *pair, "--until", "kl±1", "--seed", "-1").code == 2


def test_a_relative_quantile_has_no_interval_whatever_the_text(klcli: Run, saved: Path) -> None:
    gate = ("--gate", "kl.p90<=1.1*baseline", "--gate-confidence", "0.95")
    done = klcli("report", saved, "--baseline", saved, *gate, "--format", "json")
    assert done.code in (2, 4)
    assert "too short" not in done.out


# A kill

CLI = """
import sys
from klcli.runs import folder
folder.PART_ROWS = 64
from klcli.cli import main
main(sys.argv[1:])
"""
KILLED = """
import os, signal, sys
from pathlib import Path

named, when = Path.replace, sys.argv.pop(1)

def replace(self, target):
    is_third = Path(target).name == "part-00002.safetensors"
    if is_third and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    named(self, target)
    if is_third:
        os.kill(os.getpid(), signal.SIGKILL)

Path.replace = replace
"""
"""Has the system kill klcli before or after it names the file of the third part."""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_was_killed_goes_on_to_the_same_json(
    reference: Path, candidate: Path, corpus: Path, tmp_path: Path, when: str
) -> None:
    command = ("compare", reference, candidate, corpus, *OFTEN, "--format", "json")
    folder = tmp_path / "killed.run"
    words = [str(one) for one in (*command, "--run", folder)]
    program = [sys.executable, "-c", KILLED + CLI, when, *words]
    done = subprocess.run(program, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder / "part-00002.safetensors").exists() == (when == "after")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (len(manifest["parts"]), manifest["complete"]) == (2, False)
    went_on = printed(words)
    assert len(json.loads((folder / "manifest.json").read_text())["parts"]) > 2
    assert went_on == printed([str(one) for one in command])


def printed(words: list[str]) -> object:
    """The JSON of a process of its own: another may have other threads, and other last bits."""
    done = subprocess.run(
        [sys.executable, "-c", CLI, *words], capture_output=True, check=True, env=dict(os.environ)
    )
    return timeless(done.stdout)


@pytest.mark.slow
def test_the_ranks_of_torchrun_give_the_report_of_one_process(
    reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    words = [str(one) for one in ("compare", reference, candidate, corpus, *OFTEN)]
    own = [*words, "--run", str(tmp_path / "t.run"), "--output", str(tmp_path / "t.json")]
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*ranks, "-m", "--", "klcli", *own], check=True, capture_output=True)
    alone = printed([*words, "--format", "json"])
    assert timeless((tmp_path / "t.json").read_text()) == alone
    assert printed(["report", str(tmp_path / "t.run"), "--format", "json"]) == alone


def test_open_writes_a_page_and_hands_it_to_the_browser(
    klcli: Run, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2", reason="pages need klcli[html]")
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    monkeypatch.setattr("webbrowser._tryorder", None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert klcli("report", saved, "--open").code == 0
    address = seen.read_text().strip()
    assert address.startswith("file://")
    page = Path(address.removeprefix("file://"))
    assert 'id="packed"' in page.read_text(encoding="utf-8")
