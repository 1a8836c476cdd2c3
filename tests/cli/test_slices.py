"""Slices on the command line: by part, and by regular expressions, also of a kept run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.running import Run

NUMBERS, NAMES = "dots=[.]", "the=the"


def regex_rows(printed: str) -> dict[str, dict[str, Any]]:
    rows = json.loads(printed)["slices"]
    return {row["slice"]: row for row in rows if row["by"] == "regex"}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Prompts and completions in words that the fixture's models know."""
    lines = [
        {"prompt": "The small cat sees", "completion": " the red dogs and the house."},
        {"prompt": "A farmer", "completion": " sings behind the red boats."},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_patterns_are_rows_of_the_table_and_of_the_json(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    arguments = ("compare", reference, candidate, corpus, "--limit", "2", "--quiet",
                 "--slice-regex", NUMBERS, "--slice-regex", NAMES)  # fmt: skip
    shown = klcli(*arguments)
    assert shown.code == 0
    assert "matches of" in shown.out
    rows = regex_rows(klcli(*arguments, "--format", "json").out)
    assert rows.keys() == {"dots", "the"}
    assert 0 < rows["dots"]["share"] < 1
    assert rows["dots"]["tokens"] > 0


@pytest.mark.parametrize("given", ["no-name", "a=(", "=b", "a=$"])
def test_a_bad_pattern_exits_2_before_any_work(klcli: Run, given: str) -> None:
    done = klcli("compare", "no-such-model", "none", "none.txt", "--slice-regex", given)
    assert done.code == 2
    assert f"--slice-regex {given!r}" in done.err


def test_a_kept_run_keeps_its_patterns_and_takes_others(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "kept.run"
    made = klcli(
        "compare", reference, candidate, corpus, "--limit", "2", "--quiet", "--run", run,
        "--slice-regex", NUMBERS, "--format", "json",
    )  # fmt: skip
    again = klcli("report", run, "--format", "json")
    assert regex_rows(again.out) == regex_rows(made.out) != {}
    other = klcli("report", run, "--format", "json", "--slice-regex", NAMES)
    assert regex_rows(other.out).keys() == {"the"}
    assert klcli("report", run, "--slice-regex", "a=(").code == 2


def test_a_run_that_goes_on_is_sliced_as_it_is_asked_for_now(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "kept.run"
    arguments = ("compare", reference, candidate, corpus, "--limit", "2", "--quiet", "--run", run)
    klcli(*arguments)
    klcli(*arguments, "--slice-regex", NAMES)
    assert regex_rows(klcli("report", run, "--format", "json").out).keys() == {"the"}


def test_shards_are_sliced_when_they_are_joined(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    parts = [tmp_path / f"{n}.run" for n in (1, 2)]
    for n, part in enumerate(parts, 1):
        klcli("compare", reference, candidate, corpus, "--limit", "4", "--shard", f"{n}/2",
              "--batch-tokens", "128", "--run", part, "--slice-regex", NUMBERS)  # fmt: skip
    kept = klcli("merge", *parts, "-o", tmp_path / "whole.run", "--format", "json")
    assert regex_rows(kept.out).keys() == {"dots"}
    other = klcli(
        "merge", *parts, "-o", tmp_path / "other.run", "--format", "json", "--slice-regex", NAMES
    )
    assert regex_rows(other.out).keys() == {"the"}


def test_a_report_has_no_tokens_to_slice(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    klcli("compare", reference, candidate, corpus, "--limit", "1", "--output", path)
    done = klcli("report", path, "--slice-regex", NAMES)
    assert done.code == 2
    assert "give the run's folder" in done.err


def test_the_first_screen_says_whose_tokens_carry_the_kl(
    klcli: Run, reference: Path, candidate: Path, pairs: Path
) -> None:
    done = klcli("compare", reference, candidate, pairs, "--score", "all", "--quiet")
    assert "kl by role" in done.out
    assert "completion" in done.out
    alone = klcli("compare", reference, candidate, pairs, "--quiet", "--slice", "role",
                  "--slice", "turn", "--slice", "generated")  # fmt: skip
    assert "kl by role" not in alone.out
    assert "place in the answer" in alone.out


def test_slices_that_a_text_has_not_are_said_to_be_missing(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    done = klcli("compare", reference, candidate, corpus, "--limit", "1", "--quiet",
                 "--slice", "role", "--slice", "regex")  # fmt: skip
    said = " ".join(done.out.split())
    assert "--slice role shows nothing: no text is a conversation or has a prompt" in said
    assert "--slice regex shows nothing: give --slice-regex" in said


@pytest.mark.parametrize("ending", ["md", "html", "json"])
def test_names_of_patterns_reach_no_file_as_markup(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"report.{ending}"
    done = klcli("compare", reference, candidate, corpus, "--limit", "1", "--output", path,
                 "--slice-regex", "<b>\x1b[31m=the")  # fmt: skip
    assert done.code == 0
    assert "\x1b" not in done.out + path.read_text()
    if ending != "json":
        assert "<b>" not in path.read_text()
