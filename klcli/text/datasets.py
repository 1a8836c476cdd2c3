"""Data sets: text files, stdin and texts in memory, read as examples."""

import gzip
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from klcli.choices import DocumentSplit
from klcli.errors import CorpusError
from klcli.text.corpus import STDIN, Document, Texts
from klcli.text.examples import Dataset
from klcli.text.scope import Fields

ANY = Fields()
"""Fields that are found by themselves."""


def dataset_of(given: Texts) -> Dataset:
    """A data set of texts that a caller has in memory.

    Raises:
        CorpusError: there is nothing in them.
    """
    name = "<text>" if len(given.texts) == 1 else "<texts>"
    digest = hashlib.sha256()
    for text in given.texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    documents = [
        Document(name=name if len(given.texts) == 1 else f"{name}#{number}", content=text.encode())
        for number, text in enumerate(given.texts, start=1)
        if text.strip()
    ]
    if not documents:
        raise CorpusError(f"{name} is empty: there is no text to score")
    return Dataset(name=name, sha256=digest.hexdigest(), examples=tuple(documents))


def read_datasets(
    given: Sequence[str | Texts], split: DocumentSplit, fields: Fields
) -> list[Dataset]:
    """Read the data sets that a user named, or gave.

    Raises:
        CorpusError: as ``read_dataset``.
    """
    return [
        dataset_of(one) if isinstance(one, Texts) else read_dataset(one, split, fields)
        for one in given
    ]


def read_dataset(path: str, split: DocumentSplit = "file", fields: Fields = ANY) -> Dataset:
    """Read one data set: a file, or stdin for ``-``.

    Plain text is UTF-8 and one document, or one for every ``line`` or for every paragraph between
    ``blank`` lines. A ``.jsonl`` file holds one object with a ``"text"`` on each line, each a
    document whatever ``split`` says. ``.gz`` of either is unpacked.

    Raises:
        CorpusError: the file is missing, unreadable, not text, or has nothing in it.
    """
    name = "<stdin>" if path == STDIN else path
    text = _decode(_read_bytes(path), name)
    documents = (
        _jsonl_documents(text, name)
        if path.lower().removesuffix(".gz").endswith(".jsonl")
        else _text_documents(text, name, split)
    )
    if not documents:
        raise CorpusError(f"{name} is empty: there is no text to score")
    return Dataset(
        name=name, sha256=hashlib.sha256(text.encode()).hexdigest(), examples=tuple(documents)
    )


def read_lines(path: str) -> list[tuple[int, str]]:
    """The lines of a text file with their numbers from 0 on, empty ones at its end left out.

    Raises:
        CorpusError: as ``read_dataset``.
    """
    return list(enumerate(_decode(_read_bytes(path), path).rstrip().split("\n")))


def _read_bytes(path: str) -> bytes:
    if path == STDIN:
        return _read_stdin()
    if path.lower().removesuffix(".gz").endswith(".parquet"):
        raise CorpusError(f"{path}: Parquet is not read; convert it to .jsonl with a 'text' field")
    try:
        return _unpacked(path) if path.lower().endswith(".gz") else Path(path).read_bytes()
    except FileNotFoundError:
        raise CorpusError(f"no corpus at {path!r}: check the path (- reads stdin)") from None
    except IsADirectoryError:
        raise CorpusError(f"{path} is a folder: name the text files in it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error


MOST_UNPACKED = 100
"""How many times its size text may unpack to; prose does to 3 times, repetitive logs to 30."""
ENOUGH_UNPACKED = 16 * 2**20
"""Bytes up to which nobody minds."""


def _unpacked(path: str) -> bytes:
    """What a ``.gz`` holds, piece by piece, so that one made to fill the memory does not.

    Raises:
        CorpusError: it is far larger than text would be.
    """
    most = max(ENOUGH_UNPACKED, MOST_UNPACKED * Path(path).stat().st_size)
    with gzip.open(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise CorpusError(
            f"{path} unpacks to more than {MOST_UNPACKED} times its size, as text does not: if it "
            "is to be read all the same, unpack it first"
        )
    return content


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        raise CorpusError("stdin is closed: pipe a text into klcli, or name a file instead of -")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise CorpusError(f"cannot read stdin: {error}") from error


def _decode(raw: bytes, name: str) -> str:
    if (nul := raw.find(b"\0")) >= 0:
        raise CorpusError(f"{name} is not text: byte {nul} is zero; give UTF-8 text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{name} is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}; "
            "convert it to UTF-8"
        ) from None


def _text_documents(text: str, name: str, split: DocumentSplit) -> list[Document]:
    if split == "file":
        return [Document(name=name, content=text.encode())] if text.strip() else []
    border = r"\r?\n" if split == "line" else r"\r?\n(?:[ \t\r]*\n)+"
    pieces = re.split(border, text)
    return [
        Document(name=f"{name}#{number}", content=piece.encode())
        for number, piece in enumerate(pieces, start=1)
        if piece.strip()
    ]


def _jsonl_documents(text: str, name: str) -> list[Document]:
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        content = _text_of(line, f"{name}, line {number}")
        if content.strip():
            documents.append(Document(name=f"{name}#{number}", content=content.encode()))
    return documents


def _text_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: not JSON ({error})") from None
    content = record.get("text") if isinstance(record, dict) else None
    if not isinstance(content, str):
        raise CorpusError(f"{where}: no string under the key 'text'")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"{where}: the text is not Unicode ({error.reason})") from None
    return content
