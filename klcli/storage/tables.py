"""Window tables as files: the tokens of the texts, and the windows cut from them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from klcli.errors import SourceError
from klcli.storage.files import read_checked
from klcli.storage.manifest import TOKENIZER, WINDOWS
from klcli.text.backend import Backend
from klcli.text.corpus import Corpus, Part
from klcli.text.vocabulary import Encoding, IntArray, Vocabulary
from klcli.text.windows import Masking, TokenizedDocument, Window, WindowTable

Arrays = Mapping[str, IntArray]


def windows_to_bytes(table: WindowTable) -> bytes:
    """A window table as a safetensors file, of which ``read_windows`` makes the table again.

    What a report shows of it is not in there: see ``describe``.
    """
    return safetensors.numpy.save(dict(_arrays(table)))


def windows_digest(table: WindowTable) -> str:
    """sha256 of the tokens and windows of a table: runs in which it is equal pair by token."""
    return hashlib.sha256(windows_to_bytes(table)).hexdigest()


def describe(table: WindowTable) -> dict[str, Any]:
    """What a manifest says of a table beside its arrays and its masking."""
    return {
        "protocol": table.protocol,
        "corpora": [{"name": c.name, "sha256": c.sha256} for c in table.corpora],
        "documents": [document.name for document in table.documents],
        **_groups(table.documents),
        **({"roles": list(_roles(table.documents))} if table.has_parts else {}),
    }


def _groups(documents: Sequence[TokenizedDocument]) -> dict[str, Any]:
    groups = [document.group for document in documents]
    return {} if groups == [None] * len(groups) else {"groups": groups}


def _roles(documents: Sequence[TokenizedDocument]) -> dict[str, int]:
    """The roles that occur, each with its number."""
    roles = sorted({part.role for document in documents for part in document.parts})
    return {role: number for number, role in enumerate(roles)}


def special_ids(vocabulary: Vocabulary) -> dict[str, int | None]:
    """The special ids of a vocabulary, which its tokenizer file does not name."""
    return {
        "bos_id": vocabulary.bos_id,
        "eos_id": vocabulary.eos_id,
        "mask_id": vocabulary.mask_id,
        "unknown_id": vocabulary.unknown_id,
    }


def read_vocabulary(
    folder: Path,
    files: Mapping[str, Any],
    ids: Mapping[str, int | None],
    read_backend: Callable[[str], Backend],
) -> Vocabulary:
    """The tokenizer of a folder, with the ids that ``special_ids`` gave.

    ``files`` has the entries of the folder's files; ``read_backend`` reads a tokenizer's file.

    Raises:
        SourceError: it is missing, truncated or altered.
    """
    content = read_checked(folder / TOKENIZER, files[TOKENIZER])
    return Vocabulary(
        read_backend(content.decode()),
        bos_id=ids["bos_id"],
        eos_id=ids["eos_id"],
        mask_id=ids.get("mask_id"),
        unknown_id=ids.get("unknown_id"),
    )


def _arrays(table: WindowTable) -> Arrays:
    documents, windows = table.documents, table.windows
    texts = [document.encoding for document in documents]
    has_text = all(text is not None for text in texts)
    hidden = [window.masking.ends for window in windows if window.masking is not None]
    return {
        "ids": _joined([document.ids for document in documents]),
        "document_ends": _ends([document.ids for document in documents]),
        "document_corpus": np.array([document.corpus for document in documents]),
        "inputs": _joined([window.inputs for window in windows]),
        "input_ends": _ends([window.inputs for window in windows]),
        "targets": _joined([window.targets for window in windows]),
        "target_ends": _ends([window.targets for window in windows]),
        "document": np.array([window.document for window in windows]),
        "score_from": np.array([window.score_from for window in windows]),
        "position": np.array([window.position for window in windows]),
        **(
            {
                "byte_ends": _joined([t.ends for t in texts if t is not None]),
                "words": _joined([t.words.astype(np.int32) for t in texts if t is not None]),
            }
            if has_text
            else {}
        ),
        **({"mask_ends": _joined(hidden)} if hidden else {}),
        **(_parts_arrays(table) if table.has_parts else {}),
    }


def _parts_arrays(table: WindowTable) -> Arrays:
    """The scored rows of all windows, and of all parts their numbers, a row each."""
    roles = _roles(table.documents)
    parts = [
        (one.start, one.stop, roles[one.role], one.turn, one.is_scored, one.is_answer)
        for document in table.documents
        for one in document.parts
    ]
    return {
        "rows": _joined([window.rows for window in table.windows]),
        "parts": np.array(parts, dtype=np.int64).reshape(-1, 6),
        "part_ends": np.cumsum([len(document.parts) for document in table.documents]),
    }


def read_windows(folder: Path, manifest: Mapping[str, Any]) -> WindowTable:
    """The window table of a folder.

    Raises:
        SourceError: its file is missing, truncated or altered, or not one of safetensors.
    """
    arrays = _read(folder / WINDOWS, manifest["files"][WINDOWS])
    documents = _documents(arrays, manifest)
    ids = [document.ids for document in documents]
    return WindowTable(
        documents=documents,
        windows=tuple(_windows(arrays, ids, _maskings(arrays, manifest.get("masking")))),
        protocol=manifest["protocol"],
        corpora=tuple(
            Corpus(name=corpus["name"], sha256=corpus["sha256"], documents=())
            for corpus in manifest["corpora"]
        ),
    )


def _read(path: Path, entry: Mapping[str, Any]) -> Arrays:
    content = read_checked(path, entry)
    try:
        return safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise SourceError(f"cannot read {path}: {error}") from error


def _documents(arrays: Arrays, manifest: Mapping[str, Any]) -> tuple[TokenizedDocument, ...]:
    names = manifest["documents"]
    groups = manifest.get("groups") or [None] * len(names)
    parts = _parts(arrays, manifest.get("roles", ())) or [()] * len(names)
    ids = _split(arrays["ids"], arrays["document_ends"])
    texts: list[Encoding | None] = [None] * len(names)
    if "byte_ends" in arrays:
        ends = _split(arrays["byte_ends"], arrays["document_ends"])
        words = _split(arrays["words"], arrays["document_ends"])
        texts = [Encoding(ids=i, ends=e, words=w) for i, e, w in zip(ids, ends, words, strict=True)]
    return tuple(
        TokenizedDocument(
            corpus=int(corpus), name=name, ids=own, encoding=text, parts=parts, group=group
        )
        for corpus, name, own, text, parts, group in zip(
            arrays["document_corpus"], names, ids, texts, parts, groups, strict=True
        )
    )


def _parts(arrays: Arrays, roles: Sequence[str]) -> list[tuple[Part, ...]]:
    """The parts of every document; none where the table has no parts."""
    if "parts" not in arrays:
        return []
    return [
        tuple(
            Part(
                start=start, stop=stop, role=roles[role], turn=turn, is_scored=bool(scored),
                is_answer=bool(answer),
            )
            for start, stop, role, turn, scored, answer in own.tolist()
        )
        for own in _split(arrays["parts"], arrays["part_ends"])
    ]  # fmt: skip


def _windows(
    arrays: Arrays, ids: Sequence[IntArray], maskings: Sequence[Masking] | None
) -> Iterator[Window]:
    inputs = _split(arrays["inputs"], arrays["input_ends"])
    targets = _split(arrays["targets"], arrays["target_ends"])
    rows = _split(arrays["rows"], arrays["target_ends"]) if "rows" in arrays else None
    for number, (read, aims) in enumerate(zip(inputs, targets, strict=True)):
        document, first, position = (
            int(arrays[name][number]) for name in ("document", "score_from", "position")
        )
        yield Window(
            number=number,
            document=document,
            inputs=_view(read, ids[document], position - 1 - first),
            masking=maskings[number] if maskings else None,
            score_from=first,
            targets=_view(aims, ids[document], position),
            position=position,
            steps=None if rows is None else _steps(rows[number]),
        )


def _steps(rows: IntArray) -> IntArray | None:
    """How far each scored row stands behind the first; None without a gap."""
    steps = rows - rows[0]
    return None if int(steps[-1]) == len(rows) - 1 else steps


def _maskings(arrays: Arrays, masking: Mapping[str, int | None] | None) -> list[Masking] | None:
    if not masking or masking["mask_id"] is None:
        return None
    return [
        Masking(mask_id=masking["mask_id"], ends=ends, every=masking["every"])
        for ends in _split(arrays["mask_ends"], arrays["target_ends"])
    ]


def _joined(arrays: Sequence[IntArray]) -> IntArray:
    joined = np.concatenate(arrays)
    return joined.astype(np.int32) if _fits(joined) else joined


def _fits(array: IntArray) -> bool:
    return len(array) == 0 or int(array.max()) <= np.iinfo(np.int32).max


def _ends(arrays: Sequence[IntArray]) -> IntArray:
    return np.cumsum([len(array) for array in arrays])


def _split(joined: IntArray, ends: IntArray) -> list[IntArray]:
    return np.split(joined, ends[:-1])


def _view(array: IntArray, ids: IntArray, start: int) -> IntArray:
    """The same numbers out of ``ids``, where they stand there: they need no memory of their own."""
    view = ids[max(start, 0) : max(start, 0) + len(array)]
    return view if np.array_equal(view, array) else array.copy()
