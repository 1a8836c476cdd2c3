"""klcli's own recording of what a model predicted: the format, and reading it.

A folder. ``manifest.json`` says what it holds; ``windows.safetensors`` has the tokens of the texts
and the windows cut from them, ``tokenizer.json`` the vocabulary; ``shard-00000.safetensors`` and so
on have the predictions, and ``head.safetensors``, for kind ``hidden``, the output head.

The scored rows of all batches, one batch after the other, are one long array, cut into shards of
``rows_per_shard`` rows:

========  =======================================  ==============================================
kind      tensors of a shard                       what comes of a row
========  =======================================  ==============================================
hidden    ``hidden`` (rows, d)                     the head makes the model's own logits of it
logits    ``logits`` (rows, vocabulary)            the logits, in the dtype they were made in
topk      ``ids``, ``log_probs`` (rows, k) and     a lower bound of every divergence
          ``log_rest`` (rows,)
========  =======================================  ==============================================

Version 1 holds what causal models predict. Version 2 is the same for masked models: the windows
have ``mask_ends`` beside the targets, and the manifest says in ``masking`` which id was read in the
place of a hidden one, and how often.
"""

import hashlib
import json
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch import Tensor

from klcli.errors import SourceError
from klcli.sources.head import Head
from klcli.sources.options import LoadOptions, Task, choose_device
from klcli.sources.rows import HeadRows, RowKind, Rows, TopBlock, block_rows, pieces
from klcli.text.corpus import Corpus
from klcli.text.vocabulary import Encoding, IntArray, Vocabulary
from klcli.text.windows import Masking, TokenizedDocument, Window, WindowTable, plan_batches

FORMAT = "klcli.recording"
VERSIONS: Mapping[Task, int] = {"causal": 1, "masked": 2}
MANIFEST = "manifest.json"
WINDOWS = "windows.safetensors"
TOKENIZER = "tokenizer.json"
HEAD = "head.safetensors"

Kind = Literal["hidden", "logits", "topk"]
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I32": torch.int32,
}
TENSORS: Mapping[str, tuple[str, ...]] = {
    "hidden": ("hidden",),
    "logits": ("logits",),
    "topk": ("ids", "log_probs", "log_rest"),
}


def is_recording(path: Path) -> bool:
    """Whether a path is the folder of a recording, complete or not."""
    return (path / MANIFEST).is_file() and (path / WINDOWS).is_file()


def format_version_of(task: Task) -> int:
    """The version of the format that what a model of this task predicts is written in."""
    return VERSIONS[task]


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05}.safetensors"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what a recording says of itself.

    Raises:
        SourceError: it is damaged, foreign, or of a version that this klcli does not read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"cannot read the manifest of {folder}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SourceError(f"{folder} is no recording of klcli")
    if manifest.get("format_version") not in VERSIONS.values():
        raise SourceError(
            f"{folder} is a recording of version {manifest.get('format_version')!r}, and this "
            f"klcli reads versions up to {max(VERSIONS.values())}: use a newer klcli"
        )
    if manifest.pop("sha256", None) != seal(manifest):
        raise SourceError(f"the manifest of {folder} is damaged or was altered: record again")
    return manifest


def seal(manifest: Mapping[str, Any]) -> str:
    """The sha256 of a manifest, which is kept in it: whatever is changed in it is found."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


class RecordingSource:
    """A recording, opened: it brings its windows and its vocabulary, and needs no model."""

    longest: int | None = None

    def __init__(self, folder: Path, manifest: Mapping[str, Any], device: str) -> None:
        self.name = str(folder)
        self.kind: Kind = manifest["kind"]
        self.task: Task = "masked" if manifest.get("masking") else "causal"
        self.windows, self._batch_tokens = read_windows(folder, manifest), manifest["batch_tokens"]
        self.vocabulary = read_vocabulary(folder, manifest)
        self.width: int = manifest["width"]
        self.device = torch.device(device)
        self.provenance: dict[str, Any] = {
            **manifest["model"],
            "recording": self.name,
            "recording_kind": self.kind,
        }
        self._dtype = getattr(torch, manifest["dtype"])
        self._shards = Shards(folder, manifest)
        self._head: Head | None = None
        if self.kind == "hidden":
            self._head = read_head(folder, manifest, self.device)
        self._offsets = row_offsets(self.windows.windows, self._batch_tokens)

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        """The recorded rows of each batch.

        Raises:
            SourceError: a shard is missing, truncated or altered.
        """
        head = None if self._head is None else self._head.reusing()
        for batch in batches:
            yield self._rows_of(batch, head)

    def _rows_of(self, batch: Sequence[Window], head: Callable[[Tensor], Tensor] | None) -> Rows:
        spans = [Span(self._offsets[w.number], len(w.targets)) for w in batch]
        size = block_rows(self.width, self._dtype.itemsize)
        if self.kind != "hidden" or head is None:
            return ShardRows(self._shards, spans, "topk" if self.kind == "topk" else "logits", size)
        hidden = torch.cat([self._shards.read("hidden", s.start, s.rows) for s in spans])
        return HeadRows(hidden.to(self.device), head, size)


class Span(NamedTuple):
    """Some rows of a recording in a row."""

    start: int
    rows: int


class ShardRows:
    """Recorded logits or lists, read from the shards a block at a time."""

    def __init__(
        self, shards: "Shards", spans: Sequence[Span], kind: Literal["logits", "topk"], size: int
    ) -> None:
        self.kind: RowKind = kind
        self.exact = kind == "logits"
        self.size = size
        self._shards = shards
        self._spans = spans

    def __len__(self) -> int:
        return sum(span.rows for span in self._spans)

    def block(self, start: int, stop: int) -> Tensor | TopBlock:
        """Rows ``start`` to ``stop``: logits (stop - start, vocabulary), or a list of them."""
        if self.kind == "logits":
            return self._read("logits", start, stop)
        ids, log_probs, log_rest = (self._read(name, start, stop) for name in TENSORS["topk"])
        return TopBlock(ids, log_probs, log_rest, torch.full_like(ids[:, 0], ids.shape[1]))

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        found = pieces([span.rows for span in self._spans], start, stop)
        return torch.cat(
            [
                self._shards.read(name, self._spans[n].start + first, last - first)
                for n, first, last in found
            ]
        )


class Shards:
    """The shards of a recording as one long array of rows; each is checked when first opened."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._folder = folder
        self._rows_per_shard: int = manifest["rows_per_shard"]
        self._entries: Sequence[Mapping[str, Any]] = manifest["shards"]
        self._open: tuple[int, ShardFile | None] = (-1, None)
        self._checked: set[int] = set()

    def read(self, name: str, start: int, count: int) -> Tensor:
        """``count`` rows of one tensor from row ``start`` on.

        Raises:
            SourceError: a shard is missing, truncated or altered.
        """
        parts = []
        stop = start + count
        while start < stop:
            number, first = divmod(start, self._rows_per_shard)
            last = min(first + stop - start, self._rows_per_shard)
            parts.append(self._shard(number).read(name, first, last))
            start += last - first
        return torch.cat(parts)

    def _shard(self, number: int) -> "ShardFile":
        last, shard = self._open
        if shard is None or last != number:
            path = self._folder / shard_name(number)
            if number not in self._checked:
                check_file(path, self._entries[number])
                self._checked.add(number)
            shard = ShardFile(path)
            self._open = (number, shard)
        return shard


class ShardFile:
    """A safetensors file, read plainly: the pages of a mapped file would count as memory.

    The format is 8 bytes with the length of a JSON header, the header, and the numbers of each
    tensor at the offsets that the header gives.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        (length,) = struct.unpack("<Q", self._file.read(8))
        self._header: Mapping[str, Any] = json.loads(self._file.read(length))
        self._data = 8 + length

    def read(self, name: str, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of a tensor."""
        entry = self._header.get(name)
        if entry is None:
            raise SourceError(f"{self._file.name} has no tensor {name}: record again")
        rows, *rest = entry["shape"]
        begin, end = entry["data_offsets"]
        size = (end - begin) // rows
        content = bytearray((last - first) * size)
        self._file.seek(self._data + begin + first * size)
        self._file.readinto(content)
        return torch.frombuffer(content, dtype=DTYPES[entry["dtype"]]).view(last - first, *rest)


def check_size(path: Path, entry: Mapping[str, Any]) -> None:
    """Hold a file against the size that the manifest gives.

    Raises:
        SourceError: it is missing or truncated.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SourceError(f"{path} is missing or unreadable: {error.strerror}") from error
    if size != entry["bytes"]:
        raise SourceError(
            f"{path} has {size} bytes and should have {entry['bytes']}: remove the recording and "
            "record again"
        )


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Hold a file against the size and the sha256 that the manifest gives.

    Raises:
        SourceError: it is missing, truncated or altered.
    """
    check_size(path, entry)
    try:
        digest = hash_file(path)
    except OSError as error:
        raise SourceError(f"{path} is unreadable: {error.strerror}") from error
    if digest != entry["sha256"]:
        raise SourceError(
            f"{path} was altered since it was recorded (its sha256 differs): record again"
        )


def hash_file(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_tensors(path: Path) -> Any:
    """Open a safetensors file, tensors still on disk.

    Raises:
        SourceError: it is no safetensors file.
    """
    try:
        opener: Any = safetensors.safe_open(str(path), framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    return opener


def open_recording(spec: str, options: LoadOptions) -> RecordingSource:
    """Open a complete recording.

    Raises:
        SourceError: it is incomplete, damaged, foreign or of another version.
    """
    folder = Path(spec)
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        done = sum(shard["rows"] for shard in manifest["shards"])
        raise SourceError(
            f"{spec} is incomplete ({done:,} of {manifest['rows']:,} rows): run the same klcli "
            "record again, and it goes on from there"
        )
    for name, entry in manifest["files"].items():
        if name != TOKENIZER:  # checked where it is read
            check_file(folder / name, entry)
    return RecordingSource(folder, manifest, choose_device(options.device))


def row_offsets(windows: Sequence[Window], batch_tokens: int) -> dict[int, int]:
    """Where in the long array of rows each window's scored rows begin, by the window's number."""
    offsets, start = {}, 0
    for batch in plan_batches(windows, batch_tokens):
        for place in batch:
            offsets[windows[place].number] = start
            start += len(windows[place].targets)
    return offsets


def read_head(folder: Path, manifest: Mapping[str, Any], device: torch.device) -> Head:
    """The output head of a recording of kind ``hidden``."""
    with open_tensors(folder / HEAD) as file:
        matrix = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
    settings = manifest["head"]
    return Head(
        project=torch.nn.Identity(),
        size=settings["size"],
        dtype=getattr(torch, manifest["dtype"]),
        multiplier=settings["multiplier"],
        divisor=settings["divisor"],
        softcap=settings["softcap"],
    ).with_matrix(matrix)


def read_vocabulary(folder: Path, manifest: Mapping[str, Any]) -> Vocabulary:
    """The tokenizer of a recording."""
    check_file(folder / TOKENIZER, manifest["files"][TOKENIZER])
    ids = manifest["vocabulary"]
    backend = Tokenizer.from_file(str(folder / TOKENIZER))
    return Vocabulary(
        backend,
        bos_id=ids["bos_id"],
        eos_id=ids["eos_id"],
        mask_id=ids.get("mask_id"),
        unknown_id=ids.get("unknown_id"),
    )


def masking_of(table: WindowTable) -> dict[str, int | None] | None:
    """What a manifest says of how tokens were hidden; None for a causal model."""
    masking = table.windows[0].masking
    return None if masking is None else {"mask_id": masking.mask_id, "every": masking.every}


def window_tensors(table: WindowTable) -> dict[str, Tensor]:
    """A window table as arrays: what ``read_windows`` makes a window table of."""
    documents, windows = table.documents, table.windows
    texts = [document.encoding for document in documents]
    has_text = all(text is not None for text in texts)
    hidden = [window.masking.ends for window in windows if window.masking is not None]
    return {
        "ids": _joined([document.ids for document in documents]),
        "document_ends": _ends([document.ids for document in documents]),
        "document_corpus": torch.tensor([document.corpus for document in documents]),
        "inputs": _joined([window.inputs for window in windows]),
        "input_ends": _ends([window.inputs for window in windows]),
        "targets": _joined([window.targets for window in windows]),
        "target_ends": _ends([window.targets for window in windows]),
        "document": torch.tensor([window.document for window in windows]),
        "score_from": torch.tensor([window.score_from for window in windows]),
        "position": torch.tensor([window.position for window in windows]),
        **(
            {
                "byte_ends": _joined([t.ends for t in texts if t is not None]),
                "words": _joined([t.words.astype(np.int32) for t in texts if t is not None]),
            }
            if has_text
            else {}
        ),
        **({"mask_ends": _joined(hidden)} if hidden else {}),
    }


def read_windows(folder: Path, manifest: Mapping[str, Any]) -> WindowTable:
    """The window table of a recording."""
    with open_tensors(folder / WINDOWS) as file:
        arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    names: Sequence[str] = manifest["documents"]
    ids = _split(arrays["ids"], arrays["document_ends"])
    texts: list[Encoding | None] = [None] * len(names)
    if "byte_ends" in arrays:
        ends = _split(arrays["byte_ends"], arrays["document_ends"])
        words = _split(arrays["words"], arrays["document_ends"])
        texts = [Encoding(ids=i, ends=e, words=w) for i, e, w in zip(ids, ends, words, strict=True)]
    documents = [
        TokenizedDocument(corpus=int(corpus), name=name, ids=one, encoding=text)
        for corpus, name, one, text in zip(
            arrays["document_corpus"], names, ids, texts, strict=True
        )
    ]
    inputs = _split(arrays["inputs"], arrays["input_ends"])
    targets = _split(arrays["targets"], arrays["target_ends"])
    maskings = _maskings(arrays, manifest)
    windows = []
    for number, (read, aims) in enumerate(zip(inputs, targets, strict=True)):
        document, first, position = (
            int(arrays[name][number]) for name in ("document", "score_from", "position")
        )
        window = Window(
            number=number,
            document=document,
            inputs=_view(read, ids[document], position - 1 - first),
            masking=maskings[number] if maskings else None,
            score_from=first,
            targets=_view(aims, ids[document], position),
            position=position,
        )
        windows.append(window)
    return WindowTable(
        documents=tuple(documents),
        windows=tuple(windows),
        protocol=manifest["protocol"],
        corpora=tuple(
            Corpus(name=corpus["name"], sha256=corpus["sha256"], documents=())
            for corpus in manifest["corpora"]
        ),
    )


def _maskings(arrays: Mapping[str, IntArray], manifest: Mapping[str, Any]) -> list[Masking] | None:
    if not (masking := manifest.get("masking")):
        return None
    return [
        Masking(mask_id=masking["mask_id"], ends=ends, every=masking["every"])
        for ends in _split(arrays["mask_ends"], arrays["target_ends"])
    ]


def _joined(arrays: Sequence[IntArray]) -> Tensor:
    joined = np.concatenate(arrays)
    return torch.from_numpy(joined.astype(np.int32) if _fits(joined) else joined)


def _fits(array: IntArray) -> bool:
    return len(array) == 0 or int(array.max()) <= np.iinfo(np.int32).max


def _ends(arrays: Sequence[IntArray]) -> Tensor:
    return torch.tensor(np.cumsum([len(array) for array in arrays]))


def _split(joined: IntArray, ends: IntArray) -> list[IntArray]:
    return np.split(joined, ends[:-1])


def _view(array: IntArray, ids: IntArray, start: int) -> IntArray:
    """The same numbers out of ``ids``, where they stand there: they need no memory of their own."""
    view = ids[max(start, 0) : max(start, 0) + len(array)]
    return view if np.array_equal(view, array) else array.copy()
