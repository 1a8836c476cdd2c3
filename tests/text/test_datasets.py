"""Texts become documents, byte for byte, or one clear error."""

import gzip
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from klcli.choices import DocumentSplit
from klcli.errors import CorpusError
from klcli.text import opening
from klcli.text.corpus import Document
from klcli.text.datasets import read_dataset

TEXT = "The cat sleeps.\r\nNaïve 東京 🙂\n"


def write(folder: Path, name: str, content: str | bytes) -> str:
    """The path of a new file, gzipped if its name says so."""
    raw = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return str(path)


def json_lines(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def texts_of(path: str, split: DocumentSplit = "file") -> list[str]:
    return [document.text for document in documents_of(path, split)]


def documents_of(path: str, split: DocumentSplit = "file") -> list[Document]:
    examples = read_dataset(path, split).examples
    return [example for example in examples if isinstance(example, Document)]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put bytes on stdin."""

    def put(raw: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="ascii"))

    return put


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a", "a.txt.gz", "a.gz"])
def test_a_text_file_is_one_document_and_keeps_every_character(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, TEXT)
    corpus = read_dataset(path)
    assert corpus.examples == (Document(name=path, content=TEXT.encode()),)
    assert corpus.name == path


def test_crlf_is_kept(tmp_path: Path) -> None:
    assert texts_of(write(tmp_path, "a.txt", b"one\r\ntwo\r\n")) == ["one\r\ntwo\r\n"]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    corpus = read_dataset(write(tmp_path, "a.txt", b"\xef\xbb\xbf" + TEXT.encode()))
    assert corpus.examples == (Document(name=corpus.name, content=TEXT.encode()),)
    assert corpus.sha256 == sha256(TEXT)


def test_a_byte_order_mark_does_not_spoil_the_first_json_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + json_lines("one").encode())
    assert texts_of(path) == ["one"]


@pytest.mark.parametrize("name", ["a.txt", "other.txt", "a.txt.gz", "bom.txt"])
def test_the_sha256_is_that_of_the_text_however_it_is_stored(tmp_path: Path, name: str) -> None:
    mark = "\ufeff" if name == "bom.txt" else ""
    assert read_dataset(write(tmp_path, name, mark + TEXT)).sha256 == sha256(TEXT)


@pytest.mark.parametrize("split", ["file", "line", "blank"])
def test_the_sha256_does_not_depend_on_the_splitting(tmp_path: Path, split: DocumentSplit) -> None:
    assert read_dataset(write(tmp_path, "a.txt", TEXT), split).sha256 == sha256(TEXT)


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        pytest.param("a b\nc\n", ["a b", "c"], id="final newline"),
        pytest.param("a b\nc", ["a b", "c"], id="no final newline"),
        pytest.param("\n\na\n \t\nb\n\n", ["a", "b"], id="blank lines are no documents"),
        pytest.param("  a \nb", ["  a ", "b"], id="spaces at the ends of a line stay"),
        pytest.param("a\u2028b\x0cc\n", ["a\u2028b\x0cc"], id="only newlines end a line"),
    ],
)
def test_each_line_can_be_a_document(tmp_path: Path, text: str, documents: list[str]) -> None:
    assert texts_of(write(tmp_path, "a.txt", text), "line") == documents


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        pytest.param("a\nb\n\nc\n", ["a\nb", "c\n"], id="one blank line"),
        pytest.param("a\n\n\n\nb", ["a", "b"], id="many blank lines"),
        pytest.param("a\n \t\nb", ["a", "b"], id="a line of spaces is blank"),
        pytest.param("\n\na\n\n", ["a"], id="blank at both ends"),
        pytest.param("a\r\n\r\nb", ["a", "b"], id="CRLF"),
        pytest.param("a\nb", ["a\nb"], id="no blank line"),
    ],
)
def test_each_paragraph_can_be_a_document(tmp_path: Path, text: str, documents: list[str]) -> None:
    assert texts_of(write(tmp_path, "a.txt", text), "blank") == documents


def test_a_document_is_named_after_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "one\n\nthree\n")
    names = [document.name for document in read_dataset(path, "line").examples]
    assert names == [f"{path}#1", f"{path}#3"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("split", ["file", "line", "blank"])
def test_each_json_line_is_a_document_whatever_the_splitting(
    tmp_path: Path, name: str, split: DocumentSplit
) -> None:
    path = write(tmp_path, name, json_lines("one\n\ntwo\nthree", "🙂\r\n"))
    assert texts_of(path, split) == ["one\n\ntwo\nthree", "🙂\r\n"]


def test_json_lines_may_be_blank_and_hold_other_keys_and_any_character(tmp_path: Path) -> None:
    lines = '{"id": 7, "text": "a\u2028b"}\r\n\n{"text": "\\ud83d\\ude42"}'
    corpus = read_dataset(write(tmp_path, "a.jsonl", lines))
    assert [document.text for document in documents_of(corpus.name)] == ["a\u2028b", "🙂"]
    assert [document.name[-2:] for document in corpus.examples] == ["#1", "#3"]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("{oops", id="no JSON"),
        pytest.param('{"text": "cut off', id="cut off"),
        pytest.param('["text"]', id="a list"),
        pytest.param("17", id="a number"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="no text"),
        pytest.param('{"content": "x"}', id="another key"),
        pytest.param('{"text": 5}', id="a number as text"),
        pytest.param('{"text": null}', id="null as text"),
        pytest.param('{"text": ["x"]}', id="a list as text"),
        pytest.param('{"text": "a \\ud800 b"}', id="half a surrogate pair is no character"),
        pytest.param('{"text": "x", "n": ' + "1" * 5000 + "}", id="a number too long to read"),
        pytest.param("[" * 100_000, id="nested too deep to read"),
    ],
)
def test_a_bad_json_line_is_an_error_that_gives_its_number(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, "a.jsonl", json_lines("good", "good") + "\n" + line + "\n")
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 4\b"):
        read_dataset(path)


def test_a_dash_reads_stdin_as_utf_8_whatever_the_locale(pipe: Callable[[bytes], None]) -> None:
    pipe(b"\xef\xbb\xbf" + TEXT.encode())
    corpus = read_dataset("-")
    assert corpus.examples == (Document(name="<stdin>", content=TEXT.encode()),)
    assert corpus.name == "<stdin>"
    assert corpus.sha256 == sha256(TEXT)


def test_stdin_can_be_split_into_lines(pipe: Callable[[bytes], None]) -> None:
    pipe(b"one\ntwo\n")
    documents = documents_of("-", "line")
    assert [(d.name, d.text) for d in documents] == [("<stdin>#1", "one"), ("<stdin>#2", "two")]


def test_a_closed_stdin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CorpusError, match="stdin is closed"):
        read_dataset("-")


def test_a_stdin_closed_by_python_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"text"))
    stdin.close()
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(CorpusError, match="stdin is closed"):
        read_dataset("-")


class _Broken(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, _buffer: object) -> int:
        raise OSError(5, "Input/output error")


def test_a_stdin_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(cast("io.BufferedReader", io.BufferedReader(_Broken())))
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(CorpusError, match=r"cannot read stdin: .*Input/output error"):
        read_dataset("-")


@pytest.mark.parametrize("raw", [b"", b" \n", b"\xef\xbb\xbf"], ids=["empty", "blank", "BOM"])
def test_an_empty_stdin_is_an_error(pipe: Callable[[bytes], None], raw: bytes) -> None:
    pipe(raw)
    with pytest.raises(CorpusError, match=r"<stdin> is empty: there is no text to score"):
        read_dataset("-")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.txt", b"", id="no byte"),
        pytest.param("a.txt", b"\xef\xbb\xbf", id="only a byte order mark"),
        pytest.param("a.txt", b" \t\r\n\n", id="only white space"),
        pytest.param("a.txt.gz", b"", id="nothing, gzipped"),
        pytest.param("a.jsonl", b"", id="no line"),
        pytest.param("a.jsonl", b"\n \n", id="only blank lines"),
        pytest.param("a.jsonl", b'{"text": ""}\n', id="only an empty document"),
        pytest.param("a.jsonl", b'{"text": " \\n"}\n', id="only a blank document"),
    ],
)
@pytest.mark.parametrize("split", ["file", "line", "blank"])
def test_a_file_without_text_is_an_error(
    tmp_path: Path, name: str, content: bytes, split: DocumentSplit
) -> None:
    with pytest.raises(CorpusError, match=r"a\.\S+ is empty: there is no text to score"):
        read_dataset(write(tmp_path, name, content), split)


def damaged_gzip() -> bytes:
    """A gzip file whose first block has a type that does not exist."""
    whole = bytearray(gzip.compress(b"The cat sleeps. " * 50))
    whole[10] |= 0b110
    return bytes(whole)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        pytest.param("a.txt", b"abc\0def", r"a\.txt is not text: byte 3 is zero", id="NUL"),
        pytest.param(
            "a.txt", "text".encode("utf-16"), r"is not text: byte \d is zero", id="UTF-16"
        ),
        pytest.param("a.txt", b"caf\xe9", r"is not UTF-8 text: byte 3 is 0xe9", id="Latin-1"),
        pytest.param(
            "a.txt", b"ab\xf0\x9f\x99", r"is not UTF-8 text: byte 2 is 0xf0", id="cut off"
        ),
        pytest.param("a.jsonl", b'{"text": "\xff"}', r"is not UTF-8 text: byte 10", id="in JSON"),
        pytest.param("a.gz", b"plain text", r"cannot read .*a\.gz: Not a gzipped", id="no gzip"),
        pytest.param(
            "a.gz", gzip.compress(b"text" * 9)[:-12], r"cannot read .*a\.gz: ", id="gzip cut off"
        ),
        pytest.param(
            "a.gz", gzip.compress(b"text")[:-8] + bytes(8), r"cannot read .*CRC", id="gzip altered"
        ),
        pytest.param("a.gz", damaged_gzip(), r"cannot read .*a\.gz: ", id="gzip damaged"),
        pytest.param("a.gz", gzip.compress(b"a\0"), r"is not text: byte 1", id="gzip of no text"),
        pytest.param("a.parquet", b"PAR1", r"is not a Parquet file that can be read", id="parquet"),
        pytest.param("a.parquet.gz", b"", r"is not a Parquet file", id="parquet, gzipped"),
    ],
)
def test_what_is_no_text_is_one_clear_error(
    tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(CorpusError, match=message):
        read_dataset(str(tmp_path / name))


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no corpus at '.*nowhere\.txt': check the path"):
        read_dataset(str(tmp_path / "nowhere.txt"))


def test_a_folder_without_texts_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"is a folder without a file that can be read: \.txt"):
        read_dataset(str(tmp_path))


def test_a_bomb_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "ENOUGH_UNPACKED", 1000)
    bomb, honest = tmp_path / "bomb.txt.gz", tmp_path / "honest.txt.gz"
    bomb.write_bytes(gzip.compress(b"a " * 2**20))
    honest.write_bytes(gzip.compress(" ".join(map(str, range(20_000))).encode()))
    with pytest.raises(CorpusError, match="more than 100 times its size"):
        read_dataset(str(bomb))
    assert documents_of(str(honest))[0].text.endswith("19999")


def test_records_on_stdin_are_read_as_records(pipe: Callable[[bytes], None]) -> None:
    pipe(b'\n{"text": "one"}\n{"text": "two"}\n')
    assert [one.text for one in documents_of("-")] == ["one", "two"]
    pipe(b'{"a": 1} is no record\n')
    assert [one.text for one in documents_of("-")] == ['{"a": 1} is no record\n']
