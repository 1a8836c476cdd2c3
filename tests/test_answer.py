"""``klcli answer``: what a model says to prompts, kept token by token."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from klcli import answer, compare
from klcli.errors import OutputError, SourceError
from klcli.sources.hf.generating import Generator
from klcli.sources.hf.loading import load_model
from klcli.sources.options import LoadOptions
from klcli.text.vocabulary import IntArray
from tests.running import Run

PROMPTS = ("The cat", "The dog runs to the", "A", "The old house", "In the garden", "The red ball")
MOST = 12


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in PROMPTS))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def said(model: Any, prompt: Sequence[int], ends: int) -> list[int]:
    """The greedy answer, by a loop of its own."""
    ids = list(prompt)
    while len(ids) < len(prompt) + MOST and (ids[-1] != ends or len(ids) == len(prompt)):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_answers_are_those_of_a_straight_greedy_loop(
    klcli: Run, reference: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    done = klcli("answer", reference, prompts, "-o", output, "--max-new-tokens", str(MOST))
    assert done.code == 0, done.err
    assert "6 answers (6 new)" in done.err
    source = load_model(str(reference), LoadOptions())
    found = lines_of(output)
    assert [line["prompt"] for line in found] == [*PROMPTS]
    for line in found:
        ids = source.vocabulary.encode(line["prompt"]).ids.tolist()
        assert line["prompt_ids"][-len(ids) :] == ids
        expected = said(source.model, line["prompt_ids"], source.vocabulary.eos_id or 0)
        assert line["answer_ids"] == expected
        ended = expected[-1] == source.vocabulary.eos_id
        assert line["finish"] == ("stop" if ended else "length")


def test_a_model_agrees_with_its_own_greedy_answers(
    reference: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    answer(reference, prompts, output, max_new_tokens=MOST)
    found = compare(reference, reference, output).answers
    assert found is not None
    assert (found.greedy, found.count, found.agreeing["value"]) == (True, len(PROMPTS), 1.0)
    assert {point.share for point in found.survival} == {1.0}


def test_where_the_candidate_parts_is_where_its_own_answer_does(
    reference: Path, candidate: Path, prompts: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    answer(reference, prompts, ours, max_new_tokens=MOST)
    answer(candidate, prompts, theirs, max_new_tokens=MOST)
    found = compare(reference, candidate, ours).answers
    assert found is not None
    for one, a, b in zip(found.answers, lines_of(ours), lines_of(theirs), strict=True):
        pairs = zip(a["answer_ids"], b["answer_ids"], strict=False)
        assert one.first == next((n for n, (x, y) in enumerate(pairs) if x != y), None)
        assert one.tokens == len(a["answer_ids"])


class Killed(BaseException):
    """What a signal does, for a test."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a process die in its second batch; the list has the sizes of batches that were made."""
    made: list[int] = []
    whole = Generator.answers

    def answers(self: Generator, given: Sequence[IntArray], seed: int) -> Iterator[list[int]]:
        if len(made) == 1:
            made.append(0)
            raise Killed
        made.append(len(given))
        return whole(self, given, seed)

    monkeypatch.setattr(Generator, "answers", answers)
    return made


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_what_was_killed_goes_on_and_generates_nothing_twice(
    reference: Path, prompts: Path, tmp_path: Path, dying: list[int], temperature: float
) -> None:
    settings = {"max_new_tokens": MOST, "temperature": temperature, "batch_tokens": 16, "seed": 3}
    broken, whole = tmp_path / "broken.jsonl", tmp_path / "whole.jsonl"
    with pytest.raises(Killed):
        answer(reference, prompts, broken, **settings)  # type: ignore[arg-type]
    assert not broken.exists()
    done = answer(reference, prompts, broken, **settings)  # type: ignore[arg-type]
    assert (done.answers, done.new) == (len(PROMPTS), len(PROMPTS) - dying[0])
    answer(reference, prompts, whole, **settings)  # type: ignore[arg-type]
    assert broken.read_bytes() == whole.read_bytes()
    assert [*tmp_path.glob("*.partial")] == []


@pytest.mark.parametrize("left", [b"", "…".encode()[:1]])
def test_a_line_that_was_not_finished_is_made_again(
    reference: Path, prompts: Path, tmp_path: Path, dying: list[int], left: bytes
) -> None:
    output = tmp_path / "answers.jsonl"
    with pytest.raises(Killed):
        answer(reference, prompts, output, max_new_tokens=MOST, batch_tokens=16)
    partial = tmp_path / "answers.jsonl.partial"
    partial.write_bytes(partial.read_bytes()[:-7] + left)
    done = answer(reference, prompts, output, max_new_tokens=MOST, batch_tokens=16)
    assert done.new == len(PROMPTS) - dying[0] + 1
    assert len(lines_of(output)) == len(PROMPTS)


@pytest.mark.parametrize("content", [b"", b'{"klcli.ans'])
def test_a_file_of_which_not_a_line_was_written_is_begun_again(
    reference: Path, prompts: Path, tmp_path: Path, content: bytes
) -> None:
    output = tmp_path / "answers.jsonl"
    (tmp_path / "answers.jsonl.partial").write_bytes(content)
    assert answer(reference, prompts, output, max_new_tokens=3).new == len(PROMPTS)


def test_damaged_answers_are_one_message(
    reference: Path, prompts: Path, tmp_path: Path, dying: list[int]
) -> None:
    output, partial = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.partial"
    with pytest.raises(Killed):
        answer(reference, prompts, output, max_new_tokens=MOST, batch_tokens=16)
    content = partial.read_bytes()
    partial.write_bytes(content.replace(b'"answer_ids"', b'"answer_ids', 1))
    with pytest.raises(OutputError, match=r"partial, line 2, is damaged"):
        answer(reference, prompts, output, max_new_tokens=MOST, batch_tokens=16)
    partial.unlink()
    answer(reference, prompts, output, max_new_tokens=3)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(OutputError, match=r"has 2 answers to 6 prompts"):
        answer(reference, prompts, output, max_new_tokens=3)


def test_a_field_is_kept_to_group_answers_by_it(
    reference: Path, candidate: Path, tmp_path: Path
) -> None:
    prompts, output = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    lines = [{"text": prompt, "lang": "de" if n % 2 else "en"} for n, prompt in enumerate(PROMPTS)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer(reference, prompts, output, max_new_tokens=4, group_by="lang")
    found = compare(reference, candidate, output, group_by="lang").groups
    assert found is not None
    assert [group.name for group in found.groups] == ["en", "de"]


def test_another_request_does_not_go_on_there(
    reference: Path, prompts: Path, tmp_path: Path, dying: list[int]
) -> None:
    output = tmp_path / "answers.jsonl"
    with pytest.raises(Killed):
        answer(reference, prompts, output, max_new_tokens=MOST, batch_tokens=16)
    with pytest.raises(OutputError, match=r"max_new_tokens was 12 and is 5"):
        answer(reference, prompts, output, max_new_tokens=5, batch_tokens=16)


def test_complete_answers_are_left_untouched(
    klcli: Run, reference: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    command = ("answer", reference, prompts, "-o", output, "--max-new-tokens", "3")
    assert klcli(*command).code == 0
    before = output.stat().st_mtime_ns
    done = klcli(*command)
    assert (done.code, output.stat().st_mtime_ns) == (0, before)
    assert "6 answers (0 new)" in done.err


def test_something_else_is_never_overwritten(
    klcli: Run, reference: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "notes.jsonl"
    output.write_text('{"note": "mine"}\n')
    done = klcli("answer", reference, prompts, "-o", output)
    assert (done.code, output.read_text()) == (1, '{"note": "mine"}\n')
    assert "is there and holds no answers" in done.err


def test_answers_of_other_arguments_are_not_overwritten(
    klcli: Run, reference: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    assert klcli("answer", reference, prompts, "-o", output, "--max-new-tokens", "3").code == 0
    before = output.read_bytes()
    done = klcli("answer", reference, prompts, "-o", output, "--max-new-tokens", "4")
    assert (done.code, output.read_bytes()) == (1, before)


def test_what_the_checkpoint_says_of_generation_is_not_followed(
    reference: Path, prompts: Path, tmp_path: Path
) -> None:
    source = load_model(str(reference), LoadOptions())
    ids = [source.vocabulary.encode(prompt).ids for prompt in PROMPTS[:2]]
    plain = [*Generator(source, most=MOST, temperature=0.0).answers(ids, 0)]
    source.model.generation_config.repetition_penalty = 5.0
    source.model.generation_config.do_sample = True
    assert [*Generator(source, most=MOST, temperature=0.0).answers(ids, 0)] == plain
    assert source.model.generation_config.repetition_penalty == 5.0


def test_answers_of_another_vocabulary_are_refused(
    klcli: Run, reference: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    assert klcli("answer", reference, prompts, "-o", output, "--max-new-tokens", "3").code == 0
    lines = [line | {"vocabulary": "0" * 64} for line in lines_of(output)]
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = klcli("compare", reference, reference, output)
    assert done.code == 1
    assert "has the token ids of another vocabulary than" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(("--temperature", "-1"), 2, "-1", id="a negative temperature"),
        pytest.param(("--max-new-tokens", "0"), 2, "0", id="no tokens"),
        pytest.param(("--max-new-tokens", "4000"), 1, "leave no room", id="no room"),
    ],
)
def test_wrong_arguments_are_one_message(
    klcli: Run, reference: Path, prompts: Path, tmp_path: Path,
    arguments: Sequence[str], code: int, message: str,
) -> None:  # fmt: skip
    done = klcli("answer", reference, prompts, "-o", tmp_path / "a.jsonl", *arguments)
    assert done.code == code
    assert message in done.err


def test_a_masked_model_does_not_answer(fixtures: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="masked model"):
        answer(fixtures / "models" / "masked-reference", prompts, tmp_path / "a.jsonl")


def test_conversations_without_a_chat_template_are_refused(
    klcli: Run, reference: Path, tmp_path: Path
) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    done = klcli("answer", reference, chat, "-o", tmp_path / "a.jsonl")
    assert done.code == 1
    assert "has no chat template" in done.err
