"""Exit codes: a failed gate and a broken run are never mistaken for each other."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.running import Run

LIMIT = ("--limit", "1", "--quiet")


def test_a_gate_that_holds_exits_0(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    done = klcli("compare", reference, candidate, corpus, "--gate", "kl.mean<=0.01", *LIMIT)
    assert done.code == 0
    assert "PASS" in done.out


def test_a_gate_that_fails_exits_3_with_all_outputs_written(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run.json"
    done = klcli(
        "compare", reference, candidate, corpus, *LIMIT, "--output", run,
        "--gate", "kl.mean<=0.01", "--gate", "kl.max<=1e-9",
    )  # fmt: skip
    assert done.code == 3
    assert "FAIL" in done.out
    report = json.loads(run.read_text())
    assert report["verdict"] == "fail"
    assert [gate["verdict"] for gate in report["gates"]] == ["pass", "fail"]


@pytest.mark.parametrize("gate", ["kld<=1", "kl.p42<=1", "kl<1", "perplexity<=3", ""])
def test_an_unknown_gate_exits_2_before_any_work(klcli: Run, gate: str) -> None:
    done = klcli("compare", "no-such-model", "none", "none.txt", "--gate", gate)
    assert done.code == 2
    assert "--gate" in done.err
    assert done.out == ""


def test_nan_in_logits_fails_a_gate_until_it_is_allowed(
    klcli: Run, fixtures: Path, tmp_path: Path
) -> None:
    with np.load(fixtures / "logits/candidate.npz") as saved:
        logits, tokens = saved["logits"].copy(), saved["tokens"]
    logits[3, 5, 7] = np.nan
    np.savez(tmp_path / "broken.npz", logits=logits, tokens=tokens)
    arguments = (
        "compare", fixtures / "logits/reference.npz", tmp_path / "broken.npz",
        "--gate", "kl<=0.01",
    )  # fmt: skip
    done = klcli(*arguments)
    assert done.code == 3
    assert "1 of 3584 tokens are left out" in " ".join(done.out.split())
    assert klcli(*arguments, "--allow-excluded").code == 0


def test_an_infinite_kl_fails_a_gate_and_is_said(
    klcli: Run, fixtures: Path, tmp_path: Path
) -> None:
    with np.load(fixtures / "logits/candidate.npz") as saved:
        logits, tokens = saved["logits"].copy(), saved["tokens"]
    logits[3, 5, 7] = -np.inf
    np.savez(tmp_path / "banned.npz", logits=logits, tokens=tokens)
    done = klcli(
        "compare", fixtures / "logits/reference.npz", tmp_path / "banned.npz",
        "--gate", "kl<=0.01", "--format", "json",
    )  # fmt: skip
    assert done.code == 3
    report = json.loads(done.out)
    assert report["metrics"]["kl"]["mean"] == "inf"
    assert report["counts"]["infinite"] == 1
    assert "infinite" in [warning["code"] for warning in report["warnings"]]


def test_what_both_models_hold_impossible_is_counted_when_it_comes(
    klcli: Run, fixtures: Path, tmp_path: Path
) -> None:
    paths = []
    for name in ("reference", "candidate"):
        with np.load(fixtures / f"logits/{name}.npz") as saved:
            logits, tokens = saved["logits"].copy(), saved["tokens"]
        logits[3, 5, tokens[3, 6]] = -np.inf
        paths.append(tmp_path / f"{name}.npz")
        np.savez(paths[-1], logits=logits, tokens=tokens)
    report = json.loads(klcli("compare", *paths, "--format", "json").out)
    assert report["counts"]["infinite"] == 1
    assert report["metrics"]["nll_candidate"]["mean"] == "inf"
    assert report["metrics"]["nll_difference"]["mean"] is None
    assert "infinite" in [warning["code"] for warning in report["warnings"]]


def test_an_excluded_token_has_no_numbers(klcli: Run, fixtures: Path, tmp_path: Path) -> None:
    with np.load(fixtures / "logits/candidate.npz") as saved:
        logits, tokens = saved["logits"].copy(), saved["tokens"]
    logits[0, 5, 7] = np.nan
    np.savez(tmp_path / "broken.npz", logits=logits, tokens=tokens)
    out = tmp_path / "tokens.jsonl"
    klcli("compare", fixtures / "logits/reference.npz", tmp_path / "broken.npz", "--output", out)
    row = json.loads(out.read_text().splitlines()[5])
    assert row["excluded"] is True
    for side in ("reference", "candidate"):
        for column in ("nll", "rank", "top1", "entropy"):
            assert row[f"{column}_{side}"] is None


def test_a_gate_says_why_it_fails_where_the_comparison_does_not(
    klcli: Run, fixtures: Path, tmp_path: Path
) -> None:
    with np.load(fixtures / "logits/candidate.npz") as saved:
        logits, tokens = saved["logits"].copy(), saved["tokens"]
    logits[0, 5, 7] = np.nan
    np.savez(tmp_path / "broken.npz", logits=logits, tokens=tokens)
    done = klcli(
        "compare", fixtures / "logits/reference.npz", tmp_path / "broken.npz",
        "--gate", "kl<=1", "--gate", "kl<=1e-9", "--format", "json",
    )  # fmt: skip
    holds, fails = json.loads(done.out)["gates"]
    assert "--allow-excluded" in holds["reason"]
    assert fails["reason"] is None


def test_the_warning_of_nan_names_the_side(klcli: Run, fixtures: Path, tmp_path: Path) -> None:
    with np.load(fixtures / "logits/candidate.npz") as saved:
        logits, tokens = saved["logits"].copy(), saved["tokens"]
    logits[0, 5, 7] = np.nan
    np.savez(tmp_path / "broken.npz", logits=logits, tokens=tokens)
    files = [fixtures / "logits/reference.npz", tmp_path / "broken.npz"]
    for sides, role in ((files, "candidate"), (files[::-1], "reference")):
        report = json.loads(klcli("compare", *sides, "--format", "json").out)
        (warning,) = [one for one in report["warnings"] if one["code"] == "excluded"]
        assert f"the {role} ({tmp_path / 'broken.npz'}) gave NaN or +inf" in warning["message"]
