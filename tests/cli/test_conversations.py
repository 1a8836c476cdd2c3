"""Conversations on the command line: whose template it is, and what cannot be scored."""

import json
import shutil
from pathlib import Path

import pytest

from tests.running import Run

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sleeps"},
    {"role": "user", "content": "the dog"},
    {"role": "assistant", "content": "runs"},
]


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """One conversation."""
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": CHAT}) + "\n")
    return path


@pytest.fixture
def instruct(candidate: Path, tmp_path: Path) -> Path:
    """The candidate with a chat template."""
    folder = tmp_path / "instruct"
    shutil.copytree(candidate, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A template in a file."""
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATE.replace("[user]", "[you]"))
    return path


def test_a_base_model_is_asked_for_a_template(klcli: Run, reference: Path, chat: Path) -> None:
    done = klcli("perplexity", reference, chat)
    assert done.code == 1
    assert "has no chat template to render conversations with: give --chat-template" in done.err
    assert done.err.count("\n") == 1


def test_the_template_of_a_file_goes_before_a_model_s(
    klcli: Run, instruct: Path, chat: Path, file: Path
) -> None:
    done = klcli("perplexity", instruct, chat, "--chat-template", file, "--format", "json")
    assert done.code == 0, done.err
    assert f"rendered by the chat template of {file}" in done.out


def test_a_base_model_is_read_with_the_candidate_s(
    klcli: Run, reference: Path, instruct: Path, chat: Path
) -> None:
    done = klcli("compare", reference, instruct, chat, "--format", "json")
    assert done.code == 0, done.err
    assert f"2 answers in 1 conversation rendered by the chat template of {instruct}" in done.out
    assert f"{reference} has no chat template: both models read what that of" in done.out


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('No\x1b[31m [bold]chat') }}", "No\\x1b[31m [bold]chat"),
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
        ("{% for m in", "unexpected 'end of template'"),
    ],
)
def test_a_template_that_fails_on_all_stops_the_run_with_its_words(
    klcli: Run, reference: Path, chat: Path, file: Path, source: str, why: str
) -> None:
    file.write_text(source)
    done = klcli("perplexity", reference, chat, "--chat-template", file)
    assert done.code == 1
    assert "nothing to score: 1 left out, for its chat template fails: " in done.err
    assert why in done.err
    assert "\x1b" not in done.err


def test_a_file_that_is_not_there(klcli: Run, reference: Path, chat: Path, tmp_path: Path) -> None:
    done = klcli("perplexity", reference, chat, "--chat-template", tmp_path / "none.jinja")
    assert done.code != 0
    assert "none.jinja" in done.err
