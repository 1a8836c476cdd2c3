"""What klcli 0.1.0 wrote is still read: fixtures/saved, whose README says how it was made."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.running import Run

SCOPE = ("--context", "32", "--limit", "2")


@pytest.fixture
def saved(fixtures: Path, tmp_path: Path) -> Path:
    """A copy: a test that went wrong leaves the fixtures as they were."""
    return Path(shutil.copytree(fixtures / "saved", tmp_path / "saved"))


def report_of(klcli: Run, *arguments: str | Path) -> dict[str, Any]:
    done = klcli(*arguments, "--format", "json", "--quiet")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def test_a_recording_stands_for_the_model(
    klcli: Run, fixtures: Path, saved: Path, reference: Path, candidate: Path
) -> None:
    live = report_of(klcli, "compare", reference, candidate, fixtures / "other.txt", *SCOPE)
    found = report_of(klcli, "compare", saved / "first.recording", candidate)
    for field in ("mean", "median", "max"):
        expected = pytest.approx(live["metrics"]["kl"][field], rel=1e-4, abs=1e-9)
        assert found["metrics"]["kl"][field] == expected


def test_a_run_has_the_numbers_that_were_printed(klcli: Run, saved: Path) -> None:
    printed = json.loads((saved / "first.run" / "report.json").read_text(encoding="utf-8"))
    found = report_of(klcli, "report", saved / "first.run")
    for key in ("reference", "candidate", "protocol", "environment", "warnings"):
        assert found[key] == printed[key]
    assert found["counts"] == printed["counts"] | {"unknown": 0}
    assert [o["token"] for o in found["outliers"]] == [o["token"] for o in printed["outliers"]]
    for name, metric in printed["metrics"].items():
        for field in set(metric) & {"mean", "value", "median", "p99"}:
            assert found["metrics"][name][field] == metric[field], name


def test_its_report_can_be_gated_again(klcli: Run, saved: Path) -> None:
    assert klcli("report", saved / "first.run" / "report.json", "--gate", "kl<=1").code == 0
    assert klcli("report", saved / "first.run" / "report.json", "--gate", "kl<=1e-9").code == 3
