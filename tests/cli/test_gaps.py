"""Conversations, of which some rows are scored: the same numbers whichever way they are had."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.running import Run, timeless

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SENTENCES = (
    "The cat sleeps on a warm mat.", "A dog runs to the old house.",
    "The red ball is in the garden.", "A hungry cat eats with the dog.", "The house is old.",
)  # fmt: skip


@pytest.fixture
def chat(tmp_path: Path) -> tuple[str | Path, ...]:
    """A file of conversations of two or four messages each, and what their template is."""
    path, template = tmp_path / "chat.jsonl", tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    lines = []
    for number in range(12):
        said = [SENTENCES[(number + n) % len(SENTENCES)] for n in range(2 + 2 * (number % 2))]
        messages = [
            {"role": "assistant" if n % 2 else "user", "content": one} for n, one in enumerate(said)
        ]
        lines.append({"messages": messages, "lang": "de" if number % 3 else "en"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, "--chat-template", template


def report_of(klcli: Run, *arguments: str | Path) -> dict[str, Any]:
    done = klcli(*arguments, "--format", "json", "--quiet")
    assert done.code == 0, done.err
    return timeless(done.out)


@pytest.fixture
def live(
    klcli: Run, reference: Path, candidate: Path, chat: tuple[str | Path, ...]
) -> dict[str, Any]:
    return report_of(klcli, "compare", reference, candidate, *chat)


def test_several_turns_are_scored_in_one_document_with_gaps(live: dict[str, Any]) -> None:
    assert live["counts"]["documents"] == live["counts"]["windows"] == 12
    assert {one["slice"] for one in live["slices"] if one["by"] == "turn"} == {"1", "2"}


def test_a_recording_gives_the_same_numbers(
    klcli: Run, reference: Path, candidate: Path, chat: tuple[str | Path, ...], tmp_path: Path,
    live: dict[str, Any],
) -> None:  # fmt: skip
    recording = tmp_path / "chat.rec"
    done = klcli("record", reference, *chat, "-o", recording)
    assert done.code == 0, done.err
    assert json.loads((recording / "manifest.json").read_text())["format_version"] == 3
    for more in ((), chat):
        found = report_of(klcli, "compare", recording, candidate, *more)
        for part in ("metrics", "slices", "along", "distribution", "protocol"):
            assert found[part] == live[part], part


def test_a_text_that_was_not_recorded_is_refused(
    klcli: Run, reference: Path, candidate: Path, chat: tuple[str | Path, ...], tmp_path: Path
) -> None:
    recording = tmp_path / "chat.rec"
    assert klcli("record", reference, *chat, "-o", recording).code == 0
    path = Path(chat[0])
    path.write_text(path.read_text().replace("cat", "dog"))
    done = klcli("compare", recording, candidate, *chat)
    assert done.code == 1
    assert "give the text that the file was made from" in done.err


def test_a_kept_run_shows_the_same_report(
    klcli: Run, reference: Path, candidate: Path, chat: tuple[str | Path, ...], tmp_path: Path,
    live: dict[str, Any],
) -> None:  # fmt: skip
    kept = tmp_path / "chat.run"
    assert report_of(klcli, "compare", reference, candidate, *chat, "--run", kept) == live
    assert json.loads((kept / "manifest.json").read_text())["format_version"] == 2
    assert report_of(klcli, "report", kept) == live


def test_shards_are_joined_to_the_same_report(
    klcli: Run, reference: Path, candidate: Path, chat: tuple[str | Path, ...], tmp_path: Path,
    live: dict[str, Any],
) -> None:  # fmt: skip
    parts = [tmp_path / f"part{n}.run" for n in (1, 2)]
    for number, part in enumerate(parts, 1):
        shard = ("--shard", f"{number}/2", "--run", part)
        report_of(klcli, "compare", reference, candidate, *chat, *shard)
    whole = report_of(klcli, "merge", *parts, "-o", tmp_path / "whole.run")
    assert whole["metrics"] == live["metrics"]
    assert whole["slices"] == live["slices"]


@pytest.mark.parametrize("option", [("--one-at-a-time",), ("--batch-tokens", "40")])
def test_options_of_memory_change_nothing(
    klcli: Run, reference: Path, candidate: Path, chat: tuple[str | Path, ...],
    live: dict[str, Any], option: tuple[str, ...],
) -> None:  # fmt: skip
    found = report_of(klcli, "compare", reference, candidate, *chat, *option)
    kl, expected = found["metrics"]["kl"]["mean"], live["metrics"]["kl"]["mean"]
    assert kl == pytest.approx(expected, rel=1e-6)


def test_a_ranking_has_the_same_kl(
    klcli: Run, reference: Path, candidate: Path, fixtures: Path, chat: tuple[str | Path, ...],
    live: dict[str, Any],
) -> None:  # fmt: skip
    others = (candidate, fixtures / "models" / "undertrained")
    path, *template = chat
    done = klcli(
        "rank", reference, *others, "--corpus", path, *template, "--format", "json", "--quiet"
    )
    assert done.code == 0, done.err
    (found,) = [
        one for one in json.loads(done.out)["candidates"] if one["source"] == str(candidate)
    ]
    assert found["metrics"]["kl"]["mean"] == live["metrics"]["kl"]["mean"]


def test_layers_are_compared_at_the_scored_tokens(
    klcli: Run, reference: Path, candidate: Path, chat: tuple[str | Path, ...],
    live: dict[str, Any],
) -> None:  # fmt: skip
    done = klcli("layers", reference, candidate, *chat, "--format", "json", "--quiet")
    assert done.code == 0, done.err
    assert json.loads(done.out)["counts"]["tokens"] == live["counts"]["tokens"]


def test_a_base_file_of_llama_cpp_cannot_hold_them(
    klcli: Run, reference: Path, chat: tuple[str | Path, ...], tmp_path: Path
) -> None:
    done = klcli("record", reference, *chat, "-o", tmp_path / "chat.kld")
    assert done.code == 2
    assert "--protocol" in done.err
    assert not (tmp_path / "chat.kld").exists()


def test_a_masked_model_takes_no_conversation(
    klcli: Run, fixtures: Path, chat: tuple[str | Path, ...]
) -> None:
    done = klcli("perplexity", fixtures / "models" / "masked-reference", *chat)
    assert done.code == 2
    assert "is a masked model" in done.err


def test_a_short_context_cuts_conversations_and_says_so(
    klcli: Run, reference: Path, candidate: Path, chat: tuple[str | Path, ...],
    live: dict[str, Any],
) -> None:  # fmt: skip
    found = report_of(klcli, "compare", reference, candidate, *chat, "--context", "24")
    assert found["counts"]["tokens"] == live["counts"]["tokens"]
    (message,) = [w["message"] for w in found["warnings"] if w["code"] == "documents_split"]
    assert "longer than the 24 tokens that are read at once" in message


def test_documents_are_drawn_until_there_are_enough_tokens(
    klcli: Run, reference: Path, candidate: Path, chat: tuple[str | Path, ...],
    live: dict[str, Any],
) -> None:  # fmt: skip
    found = report_of(klcli, "compare", reference, candidate, *chat, "--max-tokens", "30")
    assert 30 <= found["counts"]["tokens"] < live["counts"]["tokens"]
    assert found["counts"]["documents"] < 12
    assert "max_tokens:30|seed:0" in found["signature"]
    (message,) = [w["message"] for w in found["warnings"] if w["code"] == "documents_drawn"]
    drawn = found["counts"]["documents"]
    assert message.startswith(f"{drawn} documents were drawn at random from 12: --max-tokens 30")


def test_the_plain_text_beside_a_conversation_is_read_as_ever(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, chat: tuple[str | Path, ...]
) -> None:
    both = report_of(klcli, "compare", reference, candidate, corpus, *chat)
    alone = report_of(klcli, "compare", reference, candidate, corpus)
    assert both["corpora"][0]["metrics"]["kl"]["mean"] == alone["metrics"]["kl"]["mean"]


def test_copies_and_calibration_text_are_warned_of(
    klcli: Run, reference: Path, candidate: Path, chat: tuple[str | Path, ...], fixtures: Path
) -> None:
    path, *template = chat
    calibration = ("--calibration", path)
    found = report_of(klcli, "compare", reference, candidate, *chat, *calibration)
    codes = {one["code"]: one["message"] for one in found["warnings"]}
    assert "12 documents share 10% or more" in codes["calibration_overlap"]
    assert "copies of another, of 12" in codes["duplicate_documents"]
    others = (candidate, fixtures / "models" / "undertrained")
    ranked = klcli(
        "rank", reference, *others, "--corpus", path, *template, *calibration, "--format", "json",
        "--quiet",
    )  # fmt: skip
    assert {one["code"] for one in json.loads(ranked.out)["warnings"]} >= {*codes}


def test_documents_of_which_nothing_is_scored_are_counted(
    klcli: Run, reference: Path, tmp_path: Path
) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("The cat sleeps.\n.\nA dog runs.\n.\n")
    found = report_of(klcli, "perplexity", reference, path, "--documents", "line")
    (message,) = [w["message"] for w in found["warnings"] if w["code"] == "documents_not_scored"]
    assert message.startswith("nothing is scored of 2 of 4 documents")


def test_a_text_of_which_nothing_was_drawn_has_a_row_and_fails_its_gate(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, chat: tuple[str | Path, ...]
) -> None:
    gate = ("--gate", f"{corpus.name}:kl<1")
    for seed in range(4):
        drawn = ("--max-tokens", "10", "--seed", str(seed))
        done = klcli(
            "compare", reference, candidate, corpus, *chat, *drawn, *gate, "--format", "json"
        )
        tokens = json.loads(done.out)["corpora"][0]["counts"]["tokens"]
        assert done.code == (0 if tokens else 3), done.err
        if not tokens:
            return
    pytest.fail("every seed drew the long text")
