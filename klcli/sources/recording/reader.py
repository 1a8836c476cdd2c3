"""A recording in the place of a model: its rows, read from the shards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from klcli.choices import RecordingKind, RowKind
from klcli.errors import SourceError
from klcli.sources import Source
from klcli.sources.devices import choose_device
from klcli.sources.head import Head
from klcli.sources.options import LoadOptions
from klcli.sources.recording.format import HEAD, TENSORS, read_complete, shard_name
from klcli.sources.rows import HeadRows, Rows, TopBlock, block_rows, spans
from klcli.sources.slow_tokenizer import read_backend
from klcli.sources.stored import StoredSource
from klcli.storage.files import FileState, OpenedFile, check_file
from klcli.storage.manifest import MANIFEST, seal
from klcli.storage.tables import read_vocabulary, read_windows
from klcli.storage.tensors import TensorFile
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import Window, plan_batches


class RecordingSource(StoredSource):
    """A recording, opened: it brings its windows and its vocabulary, and needs no model."""

    vocabulary: Vocabulary

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], manifest_file: OpenedFile, device: str
    ) -> None:
        self.name = str(folder)
        self.kind: RecordingKind = manifest["kind"]
        self.lists_only = self.kind == "topk"
        self.task = "masked" if manifest.get("masking") else "causal"
        self.windows, self._batch_tokens = read_windows(folder, manifest), manifest["batch_tokens"]
        self.vocabulary = read_vocabulary(
            folder, manifest["files"], manifest["vocabulary"], read_backend
        )
        self.width = manifest["width"]
        self.device = torch.device(device)
        self.provenance = {
            **manifest["model"],
            "recording": self.name,
            "recording_kind": self.kind,
        }
        self._digest, self._manifest_file = seal(manifest), manifest_file
        self._dtype = getattr(torch, manifest["dtype"])
        self._shards = Shards(folder, manifest)
        self._head: Head | None = None
        if self.kind == "hidden":
            self._head = read_head(folder, manifest, self.device)
        if self.windows.tokens != manifest["rows"]:
            raise SourceError(
                f"{folder} has {manifest['rows']} rows, and windows with {self.windows.tokens} "
                "scored tokens: record again"
            )
        self._offsets = row_offsets(self.windows.windows, self._batch_tokens)

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        """The recorded rows of each batch.

        Raises:
            SourceError: a shard is missing, truncated or altered.
        """
        head = None if self._head is None else self._head.reusing()
        for batch in batches:
            yield self._rows_of(batch, head)

    def digest(self) -> str:
        """The seal of its manifest, which has the sha256 of every file."""
        return self._digest

    def stand_for(self, model: Source) -> None:
        """Be to everybody the model whose predictions these are."""
        self.name, self.provenance, self._digest = model.name, model.provenance, model.digest()

    def check_unchanged(self) -> None:
        """Raise a SourceError where the manifest, or the shard that was read last, has changed."""
        self._manifest_file.check_unchanged()
        self._shards.check_unchanged()

    def _rows_of(self, batch: Sequence[Window], head: Callable[[Tensor], Tensor] | None) -> Rows:
        own = [Span(self._offsets[w.number], len(w.targets)) for w in batch]
        size = block_rows(self.width, self._dtype.itemsize)
        if self.kind != "hidden" or head is None:
            return ShardRows(self._shards, own, "topk" if self.kind == "topk" else "logits", size)
        hidden = torch.cat([self._shards.read("hidden", s.start, s.rows) for s in own])
        return HeadRows(hidden.to(self.device), head, size)


class Span(NamedTuple):
    """Some rows of a recording in a row."""

    start: int
    rows: int


class ShardRows:
    """Recorded logits or lists, read from the shards a block at a time."""

    def __init__(
        self, shards: "Shards", own: Sequence[Span], kind: Literal["logits", "topk"], size: int
    ) -> None:
        self.kind: RowKind = kind
        self.size = size
        self._shards = shards
        self._spans = own

    def __len__(self) -> int:
        return sum(span.rows for span in self._spans)

    def block(self, start: int, stop: int) -> Tensor | TopBlock:
        """Rows ``start`` to ``stop``: logits (stop - start, vocabulary), or a list of them."""
        if self.kind == "logits":
            return self._read("logits", start, stop)
        ids, log_probs, log_rest = (self._read(name, start, stop) for name in TENSORS["topk"])
        return _block_of(ids, log_probs, log_rest)

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        found = spans([span.rows for span in self._spans], start, stop)
        return torch.cat(
            [
                self._shards.read(name, self._spans[n].start + first, last - first)
                for n, first, last in found
            ]
        )


def _block_of(ids: Tensor, log_probs: Tensor, log_rest: Tensor) -> TopBlock:
    """Recorded lists, whose numbers were rounded to the type that they are kept in."""
    half = torch.finfo(log_probs.dtype).eps / 2
    log_probs, log_rest = log_probs.double(), log_rest.double()
    error = torch.where(log_probs.isfinite(), half * log_probs.abs(), 0.0)
    return TopBlock(
        ids=ids,
        log_probs=log_probs,
        error=error,
        log_rest=log_rest * (1 - half),
        log_least_rest=log_rest * (1 + half),
        ranked=torch.full_like(ids[:, 0], ids.shape[1]),
    )


class Shards:
    """The shards of a recording as one long array of rows; each is checked when first opened."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._folder = folder
        self._rows_per_shard: int = manifest["rows_per_shard"]
        self._entries: Sequence[Mapping[str, Any]] = manifest["shards"]
        self._number = -1
        self._open: TensorFile | None = None
        self._states: dict[int, FileState] = {}

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

    def check_unchanged(self) -> None:
        """Raise a SourceError where the shard that is open is not what it was when it was checked.

        The others were held against that when they were left.
        """
        if self._open is not None:
            self._open.file.check_unchanged()

    def _shard(self, number: int) -> TensorFile:
        if self._open is None or self._number != number:
            self.check_unchanged()
            path, entry = self._folder / shard_name(number), self._entries[number]
            file = check_file(path, entry, self._states.get(number))
            self._states[number] = file.state
            self._number, self._open = number, TensorFile(file)
        return self._open


def open_recording(spec: str, options: LoadOptions) -> RecordingSource:
    """Open a complete recording.

    Raises:
        SourceError: it is incomplete, damaged, foreign or of another version.
    """
    folder = Path(spec)
    manifest_file = OpenedFile(folder / MANIFEST)
    manifest = read_complete(folder)
    return RecordingSource(folder, manifest, manifest_file, choose_device(options.device))


def row_offsets(windows: Sequence[Window], batch_tokens: int) -> dict[int, int]:
    """Where in the long array of rows each window's scored rows begin, by the window's number."""
    offsets, start = {}, 0
    for batch in plan_batches(windows, batch_tokens):
        for place in batch:
            offsets[windows[place].number] = start
            start += len(windows[place].targets)
    return offsets


def read_head(folder: Path, manifest: Mapping[str, Any], device: torch.device) -> Head:
    """The output head of a recording of kind ``hidden``.

    Raises:
        SourceError: its file is missing, truncated or altered.
    """
    tensors = TensorFile(check_file(folder / HEAD, manifest["files"][HEAD]))
    matrix: dict[str, Tensor] = {name: tensors.array(name)[:].to(device) for name in tensors}
    tensors.file.check_unchanged()
    settings = manifest["head"]
    shape, wanted = tuple(matrix["weight"].shape), (manifest["width"], settings["size"])
    if shape != wanted:
        raise SourceError(f"the head of {folder} is {shape}, and its manifest says {wanted}")
    return Head(
        project=torch.nn.Identity(),
        size=settings["size"],
        dtype=getattr(torch, manifest["dtype"]),
        multiplier=settings["multiplier"],
        divisor=settings["divisor"],
        softcap=settings["softcap"],
    ).with_matrix(matrix)
