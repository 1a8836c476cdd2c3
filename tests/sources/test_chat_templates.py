"""A vocabulary has the chat templates of its tokenizer, wherever that keeps them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from klcli.sources.hf.tokenizer import load_tokenizer
from klcli.sources.options import LoadOptions
from klcli.text.templates import ChatTemplate
from klcli.text.vocabulary import Vocabulary
from tests.text.chat_templates import CHATML, SMOLLM_2, TOOLS


@pytest.fixture
def model(reference: Path, tmp_path: Path) -> Path:
    """A copy of the tokenizer of the tiny model, to be changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference / name, folder)
    return folder


def vocabulary(folder: Path) -> Vocabulary:
    return load_tokenizer(str(folder), LoadOptions())


def template(folder: Path) -> ChatTemplate:
    found = vocabulary(folder).chat
    assert found is not None
    return found


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_base_model_has_none(model: Path) -> None:
    assert vocabulary(model).chat is None


def test_a_template_in_the_configuration_is_found_and_named_for_its_model(model: Path) -> None:
    configure(model, chat_template=CHATML)
    assert template(model).sources == {"default": CHATML}
    assert template(model).name == str(model)


def test_a_file_beside_the_tokenizer_is_found(model: Path) -> None:
    (model / "chat_template.jinja").write_text(CHATML)
    assert template(model).sources == {"default": CHATML}


def test_several_templates_keep_their_names(model: Path) -> None:
    (model / "chat_template.jinja").write_text(CHATML)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS)
    assert template(model).sources == {"default": CHATML, "tool_use": TOOLS}


def test_special_tokens_are_strings(model: Path) -> None:
    token = {"content": "<unk>", "lstrip": False, "__type": "AddedToken"}
    configure(
        model, chat_template=CHATML, pad_token=token, additional_special_tokens=["<unk>"]
    )  # fmt: skip
    found = template(model).special_tokens
    assert found["eos_token"] == "<|endoftext|>"
    assert found["pad_token"] == "<unk>"
    assert all(type(one) is str for one in found.values())


def test_a_template_changes_nothing_of_the_vocabulary(model: Path) -> None:
    before = vocabulary(model)
    configure(model, chat_template=CHATML)
    after = vocabulary(model)
    assert after.fingerprint == before.fingerprint
    assert after.to_json() == before.to_json()


def test_the_same_sources_have_the_same_sum(model: Path) -> None:
    configure(model, chat_template=CHATML)
    before = template(model).sha256
    assert template(model).sha256 == before
    configure(model, chat_template=TOOLS)
    assert template(model).sha256 != before


@pytest.mark.real
def test_a_gguf_file_has_its_own(smollm2_file: Path) -> None:
    found = load_tokenizer(str(smollm2_file), LoadOptions()).chat
    assert found is not None
    assert found.sources == {"default": SMOLLM_2}
    assert found.special_tokens["eos_token"] == "<|im_end|>"
