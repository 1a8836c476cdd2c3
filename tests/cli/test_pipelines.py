"""What pipelines run: the action and the example for GitLab, their own shell steps."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from tests.running import Run

ROOT = Path(__file__).resolve().parents[2]
LIMIT = ("--limit", "1", "--quiet")

FAKE = """#!/bin/sh
for argument in "$@"; do printf '%s\\0' "$argument" >> "$RUNNER_TEMP/arguments"; done
echo '::set-output name=verdict::pass' >&2
echo '::error title=klcli::a gate failed'
exit 3
"""
"""A klcli that notes what it was called with, and prints a command to each stream."""


def action() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8")))


def steps() -> list[dict[str, Any]]:
    return list(action()["runs"]["steps"])


def run_compare(folder: Path, path: str, **inputs: str) -> tuple[int, list[str], dict[str, str]]:
    """Run the step of the action that compares: its code, what it printed, and its outputs."""
    (step,) = [one for one in steps() if one.get("id") == "compare"]
    empty = dict.fromkeys(step["env"], "")
    outputs = folder / "outputs"
    outputs.touch()
    environment = {"RUNNER_TEMP": str(folder), "GITHUB_OUTPUT": str(outputs)}
    done = bash(step["run"], folder, path, {**empty, **inputs, **environment})
    pairs = [line.partition("=") for line in outputs.read_text().splitlines()]
    return done.returncode, done.stdout.splitlines(), {name: value for name, _, value in pairs}


def bash(
    script: str, folder: Path, path: str, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a script as the runners of GitHub do."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{path}:{os.environ['PATH']}",
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )


REAL = str(Path(sys.executable).parent)
"""The folder with the klcli of these tests."""


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """A folder with a klcli that only notes its arguments."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "klcli"
    program.write_text(FAKE)
    program.chmod(0o755)
    return str(program.parent)


class TestAction:
    def test_no_input_is_part_of_a_script(self) -> None:
        for step in steps():
            assert "${{" not in step["run"]

    def test_every_input_is_used_and_every_expression_known(self) -> None:
        text = (ROOT / "action.yml").read_text(encoding="utf-8")
        used = set(re.findall(r"\$\{\{ inputs\.([\w-]+) \}\}", text))
        assert used == set(action()["inputs"])
        expressions = re.findall(r"\$\{\{ (.*?) \}\}", text)
        known = r"inputs\.[\w-]+|github\.action_path|steps\.compare\.outputs\.[\w-]+"
        assert all(re.fullmatch(known, one) for one in expressions)

    def test_inputs_are_arguments_and_never_code(self, tmp_path: Path, fake: str) -> None:
        code, _, _ = run_compare(
            tmp_path, fake,
            REFERENCE="$(touch stolen)", CANDIDATE="--help; `touch stolen`",
            CORPUS="a b.txt\n\n\"; touch stolen; \"\n", GATES="kl <= 1\ntop1_agreement>=98%\n",
            ARGUMENTS="--context\n64\n--adapter=$HOME\n",
        )  # fmt: skip
        given = (tmp_path / "arguments").read_text().split("\0")[:-1]
        assert code == 3
        assert not [*tmp_path.rglob("stolen")]
        assert given[:6] == ["compare", "--context", "64", "--adapter=$HOME", "--gate=kl <= 1",
                             "--gate=top1_agreement>=98%"]  # fmt: skip
        assert given[given.index("--") + 1 :] == [
            "$(touch stolen)", "--help; `touch stolen`", "a b.txt", '"; touch stolen; "',
        ]  # fmt: skip

    def test_commands_are_stopped_while_klcli_runs(self, tmp_path: Path, fake: str) -> None:
        _, printed, outputs = run_compare(tmp_path, fake, REFERENCE="a", CANDIDATE="b")
        stop, said, resume, annotation = printed
        assert stop == f"::stop-commands::{resume.strip(':')}"
        assert re.fullmatch(r"::[0-9a-f]{32}::", resume)
        assert said == "::set-output name=verdict::pass"
        assert annotation == "::error title=klcli::a gate failed"
        assert outputs == {"exit-code": "3", "verdict": "error"}

    def test_a_failed_gate_is_in_the_outputs_and_files(
        self, tmp_path: Path, fixtures: Path
    ) -> None:
        code, printed, outputs = run_compare(
            tmp_path, REAL,
            REFERENCE=str(fixtures / "logits/reference.npz"),
            CANDIDATE=str(fixtures / "logits/candidate.npz"),
            GATES="kl<=1e-6\ntop1_agreement>=0.5", ARGUMENTS="--outliers=1",
            GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"),
        )  # fmt: skip
        assert (code, outputs["exit-code"], outputs["verdict"]) == (3, "3", "fail")
        assert set(outputs) == set(action()["outputs"])
        assert float(outputs["kl"]) == pytest.approx(0.001014, rel=1e-2)
        assert any(line.startswith("::error title=klcli FAIL kl<=1e-6::") for line in printed)
        assert json.loads(Path(outputs["report"]).read_text())["verdict"] == "fail"
        assert ElementTree.parse(outputs["junit"]).getroot().get("failures") == "1"
        assert (tmp_path / "summary.md").read_text().startswith("## FAIL: candidate.npz differs")


def examples(page: Path) -> list[Any]:
    """The YAML of a page."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [yaml.safe_load(block) for block in blocks]


def test_the_example_for_github_gives_what_the_action_takes() -> None:
    workflow, _ = examples(ROOT / "docs" / "ci.md")
    (step,) = [s for s in workflow["jobs"]["compare"]["steps"] if s.get("id") == "klcli"]
    inputs = action()["inputs"]
    assert set(step["with"]) <= set(inputs)
    assert {name for name, one in inputs.items() if one.get("required")} <= set(step["with"])


def test_the_example_for_gitlab_runs(tmp_path: Path, fixtures: Path) -> None:
    _, pipeline = examples(ROOT / "docs" / "ci.md")
    job = pipeline["same predictions"]
    for name, path in (("model", "models/reference"), ("model-4bit", "models/candidate"),
                       ("corpus.txt", "corpus.txt")):  # fmt: skip
        (tmp_path / name).symlink_to(fixtures / path)
    done = bash("\n".join(job["script"]), tmp_path, REAL, job["variables"])
    assert done.returncode == 0, done.stderr
    junit = ElementTree.parse(tmp_path / job["artifacts"]["reports"]["junit"])
    assert junit.getroot().get("failures") == "0"
    assert all((tmp_path / path).is_file() for path in job["artifacts"]["paths"])


class TestFormats:
    def test_annotations_have_the_warnings_and_stderr_has_not(
        self, klcli: Run, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
        logits = fixtures / "logits" / "reference.npz"
        done = klcli("compare", logits, logits, "--limit", "1", "--format", "github")
        assert done.code == 0
        assert all(line.startswith(("::notice ", "::warning ")) for line in done.out.splitlines())
        assert "Warning" not in done.err
        assert (tmp_path / "summary.md").is_file()

    def test_other_formats_leave_the_summary_alone(
        self, klcli: Run, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
        logits = fixtures / "logits" / "reference.npz"
        klcli("compare", logits, logits, "--format", "markdown", *LIMIT)
        assert not (tmp_path / "summary.md").exists()

    @pytest.mark.parametrize("place", [".", "no/summary.md"])
    def test_a_summary_that_cannot_be_written_is_found_before_the_work(
        self, klcli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / place))
        done = klcli("compare", "missing.npz", "missing.npz", "--format", "github")
        assert (done.code, done.out) == (1, "")
        assert "cannot write the summary of the step" in done.err
        assert "missing.npz" not in done.err

    def test_a_summary_that_turns_out_unwritable_is_an_error(
        self, klcli: Run, fixtures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/dev/full")
        logits = fixtures / "logits" / "reference.npz"
        done = klcli("compare", logits, logits, "--format", "github", *LIMIT)
        assert (done.code, done.out) == (1, "")
        assert "cannot write the summary of the step" in done.err

    def test_an_error_writes_nothing(self, klcli: Run, tmp_path: Path) -> None:
        files = [tmp_path / name for name in ("gates.xml", "kl.badge.json", "card.yaml")]
        outputs = [argument for file in files for argument in ("--output", file)]
        done = klcli("compare", tmp_path / "a.npz", tmp_path / "b.npz", "--format", "github",
                     *outputs)  # fmt: skip
        assert (done.code, done.out) == (1, "")
        assert not [file for file in files if file.exists()]
