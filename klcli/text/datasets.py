"""Data sets: files, folders, stdin and texts in memory, read as examples."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from klcli.choices import DocumentSplit
from klcli.errors import CorpusError, Notice
from klcli.text.corpus import STDIN, Document, Texts
from klcli.text.examples import Conversation, Dataset, Example
from klcli.text.fields import examples_of, looks_like_records, wanted_fields
from klcli.text.opening import decode, ending_of, is_url, read_bytes, read_text
from klcli.text.order import natural
from klcli.text.scope import Fields
from klcli.text.tables import READERS

ANY = Fields()
"""Fields that are found by themselves."""
TEXT_ENDINGS = (".txt", ".md", ".text", ".raw", ".rst")
"""What is read as plain text in a folder."""


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
    _check_any(documents, name)
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
    """Read one data set: a file, a folder of files, a URL, or stdin for ``-``.

    Plain text is UTF-8 and one document, or one for every ``line`` or for every paragraph between
    ``blank`` lines. A line of ``.jsonl``, ``.csv`` or ``.parquet`` is an example whatever ``split``
    says; what it is, its ``fields`` say. ``.gz`` of any is unpacked.

    Raises:
        CorpusError: it is missing, unreadable, not text, or has nothing in it.
    """
    if path != STDIN and not is_url(path) and Path(path).is_dir():
        return _read_folder(Path(path), split, fields)
    return _read_file(path, split, fields)


def read_lines(path: str) -> list[tuple[int, str]]:
    """The lines of a text file with their numbers from 0 on, empty ones at its end left out.

    Raises:
        CorpusError: it is missing, unreadable or not text.
    """
    return list(enumerate(read_text(path).rstrip().split("\n")))


def _read_file(
    path: str, split: DocumentSplit, fields: Fields, *, may_be_empty: bool = False
) -> Dataset:
    name, raw = "<stdin>" if path == STDIN else path, read_bytes(path)
    ending = ending_of(path)
    if path == STDIN and looks_like_records(raw.decode(errors="replace")):
        ending = ".jsonl"
    notices: list[Notice] = []
    examples: list[Example]
    if ending in READERS:
        rows = READERS[ending](raw, name, partial(wanted_fields, fields=fields))
        examples, notices = examples_of(rows, name, fields)
        examples = [one for one in examples if not _is_blank(one)]
    else:
        examples = list(_documents(decode(raw, name), name, split))
    if ending != ".parquet":
        raw = decode(raw, name).encode()  # the text alone counts, not a mark before it
    if not may_be_empty:
        _check_any(examples, name, notices)
    return Dataset(
        name=name,
        sha256=hashlib.sha256(raw).hexdigest(),
        examples=tuple(examples),
        notices=tuple(notices),
        group_by=fields.group_by if ending in READERS else None,
    )


def _is_blank(example: Example) -> bool:
    return isinstance(example, Document) and not example.content.strip()


def _check_any(examples: Sequence[Example], name: str, notices: Sequence[Notice] = ()) -> None:
    if not examples:
        why = "".join(f" ({one.message})" for one in notices if one.code == "left_out")
        raise CorpusError(f"{name} is empty: there is no text to score{why}")


def _documents(text: str, name: str, split: DocumentSplit) -> Iterator[Document]:
    if split == "file":
        pieces = {name: text}
    else:
        border = r"\r?\n" if split == "line" else r"\r?\n(?:[ \t\r]*\n)+"
        pieces = {f"{name}#{n}": one for n, one in enumerate(re.split(border, text), start=1)}
    for own, piece in pieces.items():
        if piece.strip():
            yield Document(name=own, content=piece.encode())


def _read_folder(folder: Path, split: DocumentSplit, fields: Fields) -> Dataset:
    """All files of a folder that can be read, as one data set, in natural order.

    Raises:
        CorpusError: there is none, or they hold examples of several kinds.
    """
    files, others = _files_in(folder)
    if not files:
        known = " ".join((*TEXT_ENDINGS, *READERS))
        raise CorpusError(f"{folder} is a folder without a file that can be read: {known}")
    parts = [_read_file(str(path), split, fields, may_be_empty=True) for path in files]
    _check_any([example for part in parts for example in part.examples], str(folder))
    kinds = {_kind(example): one.name for one in parts for example in one.examples[:1]}
    if len(kinds) > 1:
        (first, one), (second, other) = list(kinds.items())[:2]
        raise CorpusError(f"{one} holds {first} and {other} {second}: give files of one kind")
    digest = hashlib.sha256()
    for path, part in zip(files, parts, strict=True):
        digest.update(f"{path.relative_to(folder).as_posix()}\n{part.sha256}\n".encode())
    notices = [notice for part in parts for notice in part.notices]
    if others:
        message = f"{others} files of {folder} are not read: their names end otherwise"
        notices.append(Notice(code="files_not_read", message=message))
    return Dataset(
        name=str(folder),
        sha256=digest.hexdigest(),
        examples=tuple(example for part in parts for example in part.examples),
        notices=tuple(notices),
        group_by=next((part.group_by for part in parts if part.group_by), None),
    )


def _files_in(folder: Path) -> tuple[list[Path], int]:
    """The files that can be read, and how many others there are; hidden ones do not count."""
    visible = [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    visible.sort(key=lambda path: natural(path.relative_to(folder).as_posix()))
    known = (*TEXT_ENDINGS, *READERS)
    files = [path for path in visible if ending_of(path.name) in known]
    return files, len(visible) - len(files)


def _kind(example: Example) -> str:
    if isinstance(example, Document):
        return "prompts with completions" if example.parts else "texts"
    return "conversations" if isinstance(example, Conversation) else "answers"
