"""What `klcli inspect` says of runs and reports."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from klcli.storage import manifest as manifests
from tests.running import Run


def facts_of(klcli: Run, path: Path) -> dict[str, Any]:
    done = klcli("inspect", path, "--format", "json")
    assert (done.code, done.err) == (0, "")
    return dict(json.loads(done.out))


@pytest.fixture
def run(fixtures: Path, tmp_path: Path) -> Path:
    """A complete run."""
    return shutil.copytree(fixtures / "saved" / "first.run", tmp_path / "first.run")


def test_a_run_says_what_it_is_of_and_what_came_of_it(klcli: Run, run: Path) -> None:
    facts = facts_of(klcli, run)
    assert facts["kind"] == "run"
    assert facts["command"] == "compare"
    assert facts["complete"] is True
    assert facts["reference"] == "fixtures/models/reference"
    assert (
        facts["tokens"] == facts["tokens_in_all"] == facts_of(klcli, run / "report.json")["tokens"]
    )
    assert facts["signature"].startswith("klcli:")
    assert "fixtures/models/candidate" in klcli("inspect", run).out


def test_a_run_that_was_killed_says_how_far_it_came(klcli: Run, run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["sha256"]
    manifests.save(run, {**manifest, "complete": False, "parts": []})
    facts = facts_of(klcli, run)
    assert (facts["complete"], facts["tokens"]) == (False, 0)
    assert facts["tokens_in_all"] > 0
    assert facts["signature"] is facts["verdict"] is None


def test_a_part_that_was_altered_is_an_error(klcli: Run, run: Path) -> None:
    (run / "part-00000.safetensors").write_bytes(b"half")
    done = klcli("inspect", run)
    assert (done.code, done.out) == (1, "")
    assert "part-00000" in done.err
