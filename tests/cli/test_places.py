"""What a command writes is never what it reads, and goes nowhere else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from klcli.storage.manifest import seal
from tests.running import Outcome, Run


@pytest.fixture
def run(fixtures: Path, tmp_path: Path) -> Path:
    """A complete run."""
    return shutil.copytree(fixtures / "saved" / "first.run", tmp_path / "first.run")


@pytest.fixture
def recording(fixtures: Path, tmp_path: Path) -> Path:
    """A complete recording."""
    return shutil.copytree(fixtures / "saved" / "first.recording", tmp_path / "first.recording")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, and seal it again."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    change(manifest)
    path.write_text(json.dumps({**manifest, "sha256": seal(manifest)}))


def assert_refused(done: Outcome, code: int, *says: str) -> None:
    said = " ".join(done.err.split())
    assert done.code == code, said
    assert "Traceback" not in done.err
    assert said.count("Error") == 1
    for part in says:
        assert part in said


# Names in manifests


@pytest.mark.parametrize("name", ["../victim", "/etc/passwd", "part-1.safetensors", "lock", 7])
def test_a_run_with_a_part_of_another_name_is_refused_and_nothing_is_removed(
    klcli: Run, run: Path, tmp_path: Path, name: object
) -> None:
    (tmp_path / "victim").write_text("mine")
    half = shutil.copytree(run, tmp_path / "whole.run")
    forge(half, lambda m: (m.update(complete=False), m["parts"][0].update(name=name)))
    assert_refused(klcli("merge", run, "-o", half), 1, "whole.run", "is damaged", "parts[0].name")
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "manifest.json"])
@pytest.mark.parametrize("kind", ["run", "recording"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(
    klcli: Run, run: Path, recording: Path, name: str, kind: str
) -> None:
    folder, command = (run, "report") if kind == "run" else (recording, "perplexity")
    forge(folder, lambda m: m["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    assert_refused(klcli(command, folder), 1, "is damaged", name)


# Outputs that are inputs


@pytest.mark.parametrize("name", ["manifest.json", "new.json", "deep/../new.json"])
def test_an_output_inside_a_recording_is_refused(klcli: Run, recording: Path, name: str) -> None:
    before = contents(recording)
    done = klcli("perplexity", recording, "--output", recording / name)
    assert_refused(done, 2, "--output", "lies in", str(recording))
    assert contents(recording) == before


def test_a_link_into_an_input_is_followed(klcli: Run, recording: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(recording)
    done = klcli("perplexity", recording, "--output", tmp_path / "way" / "manifest.json")
    assert_refused(done, 2, "lies in")


@pytest.mark.parametrize("option", ["--baseline", "--run"])
def test_an_output_inside_a_run_that_is_read_or_kept_is_refused(
    klcli: Run, run: Path, recording: Path, option: str
) -> None:
    before = contents(run)
    done = klcli("perplexity", recording, option, run, "--output", run / "report.json")
    assert_refused(done, 2, "lies in", str(run))
    assert contents(run) == before


@pytest.mark.parametrize("ending", ["", ".kld"])
def test_a_recording_never_replaces_its_corpus(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path, ending: str
) -> None:
    text = tmp_path / f"text{ending}"
    shutil.copy(corpus, text)
    assert_refused(klcli("record", reference, text, "-o", text), 2, "is an input of this run")
    assert text.read_bytes() == corpus.read_bytes()


def test_a_recording_is_not_made_in_its_model(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(reference, tmp_path / "model")
    assert_refused(klcli("record", model, corpus, "-o", model / "x.kld"), 2, "lies in")


def test_a_run_is_not_kept_in_what_it_reads(klcli: Run, recording: Path, tmp_path: Path) -> None:
    assert_refused(klcli("perplexity", recording, "--run", recording), 2, "is an input")
    assert_refused(klcli("perplexity", recording, "--run", recording / "x"), 2, "lies in")
    done = klcli("perplexity", recording, "--run", tmp_path)
    assert_refused(done, 2, "lies in --run")


def test_merge_does_not_write_to_a_shard(klcli: Run, run: Path) -> None:
    before = contents(run)
    assert_refused(klcli("merge", run, "-o", run), 2, "is an input of this run")
    assert_refused(klcli("merge", run, "-o", run / "x"), 2, "lies in")
    assert contents(run) == before


# Links that lie in wait


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
@pytest.mark.parametrize("name", ["lock", "manifest.json.tmp", "windows.safetensors.tmp"])
def test_nothing_is_written_through_a_link(
    klcli: Run, fixtures: Path, tmp_path: Path, name: str
) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "new.run"
    victim.write_text("mine")
    folder.mkdir()
    (folder / name).symlink_to(victim)
    klcli("perplexity", fixtures / "saved" / "first.recording", "--run", folder)
    assert victim.read_text() == "mine"
