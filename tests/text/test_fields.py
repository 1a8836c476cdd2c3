"""What the records of a data set are, by their fields, and what is wrong with them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from klcli.errors import CorpusError, UsageError
from klcli.text.corpus import Document, Part, is_text
from klcli.text.datasets import read_dataset
from klcli.text.examples import Answer, Conversation, Dataset
from klcli.text.scope import Fields

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
FINGERPRINT = "0" * 64


def read(folder: Path, *records: Any, fields: Mapping[str, str] = {}) -> Dataset:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_dataset(str(path), fields=Fields(**fields))


def texts(found: Dataset) -> list[str]:
    return [one.text for one in found.examples if isinstance(one, Document)]


def only_pair(found: Dataset) -> tuple[str, str]:
    """The prompt and the completion of the only example."""
    (document,) = found.examples
    assert isinstance(document, Document)
    given, scored = document.parts
    assert (given.role, given.is_scored) == ("prompt", False)
    assert (scored.role, scored.is_scored, scored.stop) == (
        "completion", True, len(document.content),
    )  # fmt: skip
    border = given.stop
    assert border == scored.start
    return document.content[:border].decode(), document.content[border:].decode()


@pytest.mark.parametrize("field", ["messages", "conversations"])
@pytest.mark.parametrize("messages", [CHAT, SHAREGPT, json.dumps(CHAT)])
def test_messages_are_a_conversation(tmp_path: Path, field: str, messages: Any) -> None:
    (found,) = read(tmp_path, {field: messages}).examples
    assert isinstance(found, Conversation)
    assert [dict(message) for message in found.messages] == CHAT


def test_a_prompt_and_a_completion_of_messages_are_a_conversation_with_a_given_part(
    tmp_path: Path,
) -> None:
    (found,) = read(tmp_path, {"prompt": CHAT[:1], "completion": CHAT[1:]}).examples
    assert isinstance(found, Conversation)
    assert ([*found.messages], found.given) == (CHAT, 1)


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name": "f"}]'])
def test_tools_go_with_a_conversation(tmp_path: Path, tools: Any) -> None:
    (found,) = read(tmp_path, {"messages": CHAT, "tools": tools}).examples
    assert isinstance(found, Conversation)
    assert found.tools == ({"name": "f"},)


def test_content_in_pieces_is_joined_and_none_is_empty(tmp_path: Path) -> None:
    pieces = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    chat = [{"role": "user", "content": pieces}, call]
    (found,) = read(tmp_path, {"messages": chat}).examples
    assert isinstance(found, Conversation)
    assert [message["content"] for message in found.messages] == ["Hello", ""]
    assert found.messages[1]["tool_calls"] == [{"name": "f"}]


@pytest.mark.parametrize(
    ("record", "prompt", "completion"),
    [
        pytest.param({"prompt": "a b", "completion": "c"}, "a b", "c", id="as they are"),
        pytest.param({"instruction": "Do", "output": "done"}, "Do\n", "done", id="a line break"),
        pytest.param(
            {"instruction": "Do", "input": "this", "output": "done"}, "Do\n\nthis\n", "done",
            id="Alpaca's input",
        ),
        pytest.param({"question": "Why? ", "answer": "So"}, "Why? ", "So", id="a blank is there"),
        pytest.param({"input": "x", "target": " y"}, "x", " y", id="a blank begins it"),
    ],
)  # fmt: skip
def test_pairs_are_found(
    tmp_path: Path, record: Mapping[str, str], prompt: str, completion: str
) -> None:
    found = read(tmp_path, record)
    assert only_pair(found) == (prompt, completion)
    (notice,) = found.notices
    assert (notice.code, notice.is_warning) == ("fields_read", False)


def test_a_text_goes_before_a_pair_and_the_way_to_the_pair_is_said(tmp_path: Path) -> None:
    found = read(tmp_path, {"text": "all", "instruction": "a", "output": "b"})
    assert texts(found) == ["all"]
    assert "--prompt-field instruction --completion-field output" in found.notices[0].message


def test_named_fields_go_before_those_that_are_found(tmp_path: Path) -> None:
    record = {"text": "t", "body": "b", "q": "Q ", "a": "A", "turns": CHAT}
    assert texts(read(tmp_path, record, fields={"text_field": "body"})) == ["b"]
    pair = {"prompt_field": "q", "completion_field": "a"}
    assert only_pair(read(tmp_path, record, fields=pair)) == ("Q ", "A")
    (found,) = read(tmp_path, record, fields={"text_field": "turns"}).examples
    assert isinstance(found, Conversation)


def answer(**changes: Any) -> dict[str, Any]:
    return {
        "prompt_ids": [1, 2], "answer_ids": [3], "answer": "x", "vocabulary": FINGERPRINT,
        "temperature": 0.0,
    } | changes  # fmt: skip


@pytest.mark.parametrize(("temperature", "greedy"), [(0.0, True), (0, True), (0.7, False)])
def test_answers_have_their_ids(tmp_path: Path, temperature: float, greedy: bool) -> None:
    (found,) = read(tmp_path, answer(temperature=temperature)).examples
    assert isinstance(found, Answer)
    assert (found.prompt_ids.tolist(), found.answer_ids.tolist()) == ([1, 2], [3])
    assert found.is_greedy == greedy


def test_groups_are_the_values_of_a_field(tmp_path: Path) -> None:
    records = [{"text": "a", "lang": "de"}, {"text": "b", "lang": None}, {"text": "c", "lang": 7}]
    found = read(tmp_path, *records, fields={"group_by": "lang"})
    assert [one.group for one in found.examples] == ["de", "null", "7"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        pytest.param([{"body": "x"}], r"line 1 has none of the fields.*its fields are body",
                     id="no known field"),
        pytest.param([{"messages": CHAT}, {"text": "x"}],
                     r"line 2 has no 'messages', as line 1 has; its fields are text", id="mixed"),
        pytest.param([{"text": "x"}, {"text": 5}], r"line 2: 'text' is not a string: 5",
                     id="a number"),
        pytest.param([{"messages": []}], r"line 1: messages is not a list of messages",
                     id="no message"),
        pytest.param([{"messages": "hello"}], r"messages is not a list", id="a string"),
        pytest.param([{"messages": ["hello"]}], r"message 1 of messages is not an object",
                     id="strings"),
        pytest.param([{"messages": [{"content": "x"}]}], r"message 1 of messages has no role",
                     id="no role"),
        pytest.param([{"messages": [{"role": 5, "content": "x"}]}], r"has no role",
                     id="a number as role"),
        pytest.param([{"messages": [{"role": "user", "content": 5}]}],
                     r"the content of message 1 of messages is not a string", id="content"),
        pytest.param(
            [{"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}],
            r"message 1 of messages holds 'image': klcli reads texts only", id="an image",
        ),
        pytest.param([{"messages": [{"role": "user", "content": "\ud800"}]}], r"not Unicode",
                     id="half a surrogate pair"),
        pytest.param([{"conversations": [{"from": ["a"], "value": "x"}]}], r"has no role",
                     id="a list as role"),
        pytest.param([{"messages": CHAT, "tools": 5}], r"tools is not a list", id="tools"),
        pytest.param([answer(answer_ids=[-1])], r"answer_ids is not a list of token ids",
                     id="a negative id"),
        pytest.param([answer(answer_ids=[1.5])], r"answer_ids is not", id="half an id"),
        pytest.param([answer(prompt_ids=[2**40])], r"prompt_ids is not", id="an id too large"),
        pytest.param([answer(prompt_ids="12")], r"prompt_ids is not", id="ids as text"),
        pytest.param([{"prompt": "x", "completion": " "}],
                     r"is empty.*1 left out, for the completion is empty", id="only empty ones"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, records: Sequence[Any], message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        read(tmp_path, *records)


def test_empty_completions_are_left_out_counted_and_named(tmp_path: Path) -> None:
    records = [{"prompt": "a ", "completion": c} for c in ("b", "", " ", "d")]
    found = read(tmp_path, *records)
    assert len(found.examples) == 2
    (message,) = [one.message for one in found.notices if one.code == "left_out"]
    assert message.startswith("2 left out, for the completion is empty: ")
    assert "data.jsonl#2" in message


@pytest.mark.parametrize(
    "fields", [{"prompt_field": "a"}, {"completion_field": "a"},
               {"text_field": "a", "prompt_field": "b", "completion_field": "c"}],
)  # fmt: skip
def test_fields_that_contradict_each_other_are_refused(fields: Mapping[str, str]) -> None:
    with pytest.raises(UsageError):
        Fields(**fields)


def test_a_field_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"line 1 has no 'body'; its fields are text, n"):
        read(tmp_path, {"text": "x", "n": 1}, fields={"text_field": "body"})
    with pytest.raises(CorpusError, match=r"line 1 has no 'lang'"):
        read(tmp_path, {"text": "x"}, fields={"group_by": "lang"})


def test_a_group_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"line 1: .* is not Unicode"):
        read(tmp_path, {"text": "x", "g": "\ud800"}, fields={"group_by": "g"})


class TestCsv:
    def read(self, folder: Path, content: str) -> Dataset:
        path = folder / "data.csv"
        path.write_text(content, newline="")
        return read_dataset(str(path))

    def test_quoted_cells_keep_line_breaks_and_commas(self, tmp_path: Path) -> None:
        found = self.read(tmp_path, 'text,n\r\n"a, ""b""\nc",1\r\n\r\nd,2\r\n')
        assert texts(found) == ['a, "b"\nc', "d"]

    def test_a_long_cell_is_read(self, tmp_path: Path) -> None:
        assert texts(self.read(tmp_path, f"text\n{'x' * 200_000}\n")) == ["x" * 200_000]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            pytest.param(
                "text,n\na\n", r"line 2 has 1 cells, and the first line 2 fields", id="few"
            ),
            pytest.param("text\na,b\n", r"line 2 has 2 cells", id="many"),
            pytest.param("text,text\na,b\n", r"names the field 'text' twice", id="twice"),
            pytest.param('text\n"a\n', r"line 2: not CSV", id="an open quote"),
            pytest.param("body\na\n", r"its fields are body", id="no known field"),
            pytest.param("", r"is empty", id="nothing"),
            pytest.param("text\n", r"is empty", id="only a head"),
        ],
    )
    def test_what_is_wrong(self, tmp_path: Path, content: str, message: str) -> None:
        with pytest.raises(CorpusError, match=message):
            self.read(tmp_path, content)


class TestParquet:
    def test_records_are_those_of_the_columns(self, tmp_path: Path) -> None:
        path = tmp_path / "data.parquet"
        pq.write_table(pa.table({"messages": [CHAT, CHAT], "other": [1, 2]}), path)
        found = read_dataset(str(path))
        assert [one.name[-2:] for one in found.examples] == ["#1", "#2"]
        assert all(isinstance(one, Conversation) for one in found.examples)

    def test_fields_are_listed_where_none_is_known(self, tmp_path: Path) -> None:
        path = tmp_path / "data.parquet"
        pq.write_table(pa.table({"body": ["x"], "n": [1]}), path)
        with pytest.raises(CorpusError, match=r"its fields are body, n"):
            read_dataset(str(path))
        assert texts(read_dataset(str(path), fields=Fields(text_field="body"))) == ["x"]
        with pytest.raises(CorpusError, match=r"has no 'lang'; its fields are body, n"):
            read_dataset(str(path), fields=Fields(text_field="body", group_by="lang"))


class TestFolder:
    def test_files_come_in_natural_order_and_others_are_counted(self, tmp_path: Path) -> None:
        for name in ("part-10.txt", "part-2.txt", "sub/part-1.md", ".hidden.txt", "a.png"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"text of {name}")
        found = read_dataset(str(tmp_path))
        assert [Path(one.name).name for one in found.examples] == [
            "part-2.txt", "part-10.txt", "part-1.md",
        ]  # fmt: skip
        assert [one.code for one in found.notices] == ["files_not_read"]

    def test_files_of_two_kinds_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("text")
        read(tmp_path, {"messages": CHAT})
        with pytest.raises(CorpusError, match="give files of one kind"):
            read_dataset(str(tmp_path))

    def test_an_empty_file_does_not_matter(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("")
        with pytest.raises(CorpusError, match="is empty"):
            read_dataset(str(tmp_path))
        (tmp_path / "b.txt").write_text("text")
        assert texts(read_dataset(str(tmp_path))) == ["text"]

    def test_the_digest_changes_with_a_text_and_with_a_name(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        digests = set()
        for name, text in (("a.txt", "one"), ("a.txt", "two"), ("b.txt", "two")):
            path.unlink(missing_ok=True)
            path = tmp_path / name
            path.write_text(text)
            digests.add(read_dataset(str(tmp_path)).sha256)
        assert len(digests) == 3


class TestUrl:
    def test_a_file_is_read_from_any_file_system_of_fsspec(self) -> None:
        with fsspec.open("memory://data/chat.jsonl", "w") as file:
            file.write(json.dumps({"messages": CHAT}) + "\n")
        (found,) = read_dataset("memory://data/chat.jsonl").examples
        assert isinstance(found, Conversation)

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("memory://data/none.jsonl", r"no corpus at 'memory://data/none\.jsonl'"),
            ("nosuch://x/y.txt", r"cannot read nosuch://x/y\.txt: .*nosuch"),
        ],
    )
    def test_what_cannot_be_read_is_one_message(self, url: str, message: str) -> None:
        with pytest.raises(CorpusError, match=message):
            read_dataset(url)

    def test_a_url_is_not_a_text(self) -> None:
        assert not is_text("hf://datasets/a/b c.txt")
        assert is_text("See https://example.org for more.")


def test_a_part_of_a_prompt_that_is_empty_is_left_away(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"prompt": "", "completion": "x"}).examples
    assert isinstance(found, Document)
    assert found.parts == (Part(start=0, stop=1, role="completion", turn=1, is_scored=True),)
