"""Writing a recording: streamed, resumable after any kill, never half-written.

A shard is written under a temporary name, flushed to the disk and renamed; the manifest that names
it is replaced after that, in one step. What a killed run leaves is therefore a shorter recording
that the next run goes on with, and perhaps a temporary file that it removes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from klcli.choices import RecordingChoice, RecordingKind
from klcli.errors import Notice, SourceError
from klcli.hooks import Progress
from klcli.sources import Live
from klcli.sources.head import Head
from klcli.sources.hf.model import ModelSource
from klcli.sources.options import RecordingFormat
from klcli.sources.recording.format import (
    HEAD,
    RECORDING,
    TENSORS,
    VERSION_WITH_PARTS,
    VERSIONS,
    rows_in,
    shard_name,
)
from klcli.sources.rows import HeadRows, Rows
from klcli.storage import manifest as manifests
from klcli.storage.files import check_size, put
from klcli.storage.manifest import MANIFEST, TOKENIZER, WINDOWS
from klcli.storage.tables import (
    describe,
    special_ids,
    windows_digest,
    windows_to_bytes,
)
from klcli.text.windows import WindowTable, plan_batches

SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What ``record`` did: the kind it wrote and why, and how many rows were there before.

    ``notices`` are what a reader should know of the model and of how the text was read.
    """

    kind: str
    reason: str | None
    rows: int
    rows_before: int
    bytes: int
    notices: tuple[Notice, ...] = ()

    def __repr__(self) -> str:
        return f"<Recorded {self.kind}: {self.rows:,} rows, {self.bytes:,} bytes>"


def record(
    source: Live,
    table: WindowTable,
    folder: Path,
    wanted: RecordingFormat,
    *,
    batch_tokens: int,
    software: Mapping[str, Any],
    progress: Progress | None = None,
) -> Recorded:
    """Record what a model predicts on a window table, or go on with a recording that was killed.

    ``auto`` records ``hidden`` states where the head was proved to stand alone, else ``logits``.

    Raises:
        OutputError: the folder holds something else, a recording made with other arguments, is
            being written by another process, or cannot be written.
    """
    kind, reason = _choose_kind(source, wanted.kind)
    with RECORDING.writing(folder):
        request = _request(source, table, kind, wanted.top_k, batch_tokens)
        manifest = _begin(source, table, folder, request, software)
        before = rows_in(manifest)
        if not manifest["complete"]:
            _record_rows(source, table, folder, manifest, before, progress)
        return Recorded(
            kind=kind,
            reason=reason,
            rows=manifest["rows"],
            rows_before=before,
            bytes=sum(path.stat().st_size for path in folder.iterdir()),
        )


def _choose_kind(source: Live, kind: RecordingChoice) -> tuple[RecordingKind, str | None]:
    if kind in ("logits", "topk"):
        return kind, None
    reason = _why_not_hidden(source)
    if reason is None:
        return "hidden", None
    if kind == "auto":
        return (
            "logits",
            f"the logits are recorded, for the output head does not stand alone: {reason}",
        )
    raise SourceError(
        f"--kind hidden: the output head of {source.name} does not stand alone: {reason}; "
        "--kind logits records the logits"
    )


def _why_not_hidden(source: Live) -> str | None:
    """Why the head, as it would be stored, is not the model's; None where the probe finds it is."""
    if source.proof.head is None or not isinstance(source, ModelSource):
        return source.proof.reason
    self_kl = source.self_kl(source.proof.head.with_matrix(source.stored_matrix()))
    if self_kl > source.proof.bound:
        return f"stored it differs by {self_kl:.2g} nats from the model"
    return None


def _request(
    source: Live, table: WindowTable, kind: RecordingKind, top_k: int, batch_tokens: int
) -> dict[str, Any]:
    """What makes a recording the same one when it goes on."""
    protocol = table.protocol
    return {
        **{name: protocol.get(name) for name in ("context", "stride", "score_from", "bos")},
        "corpora": [corpus.sha256[:16] for corpus in table.corpora],
        "limit": protocol.get("limit"),
        "masking": table.masking,
        "kind": kind,
        "top_k": top_k if kind == "topk" else None,
        "batch_tokens": batch_tokens,
        "dtype": source.provenance["dtype"],
        "compiled": source.provenance.get("compiled"),
        "digest": source.digest(),
        "tokenizer": source.vocabulary.fingerprint,
        "windows": windows_digest(table),
    }


def _begin(
    source: Live,
    table: WindowTable,
    folder: Path,
    request: Mapping[str, Any],
    software: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest to go on with: the one that is there, or a new one with nothing recorded yet."""
    if (folder / MANIFEST).exists():
        return _go_on(folder, request)
    manifest = _new_manifest(source, table, request, software)
    put(folder / WINDOWS, windows_to_bytes(table), manifest["files"])
    put(folder / TOKENIZER, source.vocabulary.to_json().encode(), manifest["files"])
    if request["kind"] == "hidden" and isinstance(source, ModelSource):
        matrix = {name: t.contiguous().cpu() for name, t in source.stored_matrix().items()}
        put(folder / HEAD, safetensors.torch.save(matrix), manifest["files"])
    manifests.save(folder, manifest)
    return manifest


def _new_manifest(
    source: Live,
    table: WindowTable,
    request: Mapping[str, Any],
    software: Mapping[str, Any],
) -> dict[str, Any]:
    proof, kind = source.proof, request["kind"]
    return {
        "format": RECORDING.name,
        "format_version": VERSION_WITH_PARTS if table.has_parts else VERSIONS[source.task],
        "kind": kind,
        "complete": False,
        "request": request,
        "software": software,
        "model": source.provenance,
        **describe(table),
        "vocabulary": special_ids(source.vocabulary),
        "masking": table.masking,
        "width": source.width,
        "dtype": str(proof.dtype).removeprefix("torch."),
        "self_kl": {
            "largest": proof.self_kl if math.isfinite(proof.self_kl) else None,
            "noise": proof.noise,
        },
        "head": _settings_of(proof.head) if kind == "hidden" and proof.head is not None else None,
        "batch_tokens": request["batch_tokens"],
        "rows": table.tokens,
        "rows_per_shard": max(1, SHARD_BYTES // _bytes_per_row(source, kind, request["top_k"])),
        "files": {},
        "shards": [],
    }


def _go_on(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    manifest = RECORDING.read_to_go_on(folder, request)
    shards = {shard_name(number): entry for number, entry in enumerate(manifest["shards"])}
    for name, entry in (manifest["files"] | shards).items():
        check_size(folder / name, entry)
    return manifest


def _settings_of(head: Head) -> dict[str, Any]:
    return {
        "size": head.size,
        "multiplier": head.multiplier,
        "divisor": head.divisor,
        "softcap": head.softcap,
    }


def _bytes_per_row(source: Live, kind: RecordingKind, top_k: int | None) -> int:
    if kind == "topk":
        return 8 * min(top_k or source.width, source.width) + 4
    if kind == "hidden" and source.proof.head is not None:
        return source.proof.head.size * source.state_dtype.itemsize
    return source.width * source.proof.dtype.itemsize


@torch.inference_mode()
def _record_rows(
    source: Live,
    table: WindowTable,
    folder: Path,
    manifest: dict[str, Any],
    done: int,
    progress: Progress | None,
) -> None:
    """Run the batches that are not recorded yet, and write a shard whenever one is full."""
    plan = plan_batches(table.windows, manifest["batch_tokens"])
    batches = [[table.windows[number] for number in batch] for batch in plan]
    ends = np.cumsum([sum(len(window.targets) for window in batch) for batch in batches])
    first = int(np.searchsorted(ends, done, side="right"))
    position = int(ends[first - 1]) if first else 0
    pending = _Pending(folder, manifest)
    if progress is not None:
        progress(position, table.tokens)
    for rows in source.rows(batches[first:]):
        for start in range(0, len(rows), rows.size):
            stop = min(start + rows.size, len(rows))
            if (begin := max(start, done - position)) < stop:
                part = _pack(manifest, rows, begin, stop)
                source.check_unchanged()  # and nothing is kept of weights that changed
                pending.add(part)
        position += len(rows)
        if progress is not None:
            progress(position, table.tokens)
    pending.finish()


def _pack(manifest: Mapping[str, Any], rows: Rows, start: int, stop: int) -> dict[str, Tensor]:
    """The tensors that a shard keeps of some rows."""
    kind: RecordingKind = manifest["kind"]
    if kind == "hidden":
        assert isinstance(rows, HeadRows)
        return {"hidden": rows.hidden(start, stop).cpu()}
    logits = rows.block(start, stop)
    assert isinstance(logits, Tensor)  # a live model lists no tops
    if kind == "logits":
        return {"logits": logits.cpu().clone()}
    return _top_of(logits.cpu(), manifest["request"]["top_k"])


def _top_of(logits: Tensor, k: int) -> dict[str, Tensor]:
    """The k most probable ids of each row, and the logarithm of what is left for all others."""
    log_p = torch.log_softmax(logits.double(), dim=-1)
    values, ids = log_p.topk(min(k, logits.shape[-1]), dim=-1)
    rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(dim=-1)
    return {"ids": ids.int(), "log_probs": values.float(), "log_rest": rest.float()}


class _Pending:
    """Rows that wait for their shard to be full."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self._folder = folder
        self._manifest = manifest
        self._parts: list[dict[str, Tensor]] = []
        self._rows = 0

    def add(self, part: dict[str, Tensor]) -> None:
        """Take some rows, and write every shard that they fill."""
        full = self._manifest["rows_per_shard"]
        self._parts.append(part)
        self._rows += _rows_of(part)
        while self._rows >= full:
            joined = self._joined()
            self._write({name: tensor[:full].contiguous() for name, tensor in joined.items()})
            rest = {name: tensor[full:].clone() for name, tensor in joined.items()}
            self._parts, self._rows = [rest], self._rows - full

    def finish(self) -> None:
        """Write the last, short shard, and call the recording complete."""
        if self._rows:
            self._write(self._joined())
        self._manifest["complete"] = True
        manifests.save(self._folder, self._manifest)

    def _joined(self) -> dict[str, Tensor]:
        return {
            name: torch.cat([part[name] for part in self._parts])
            for name in TENSORS[self._manifest["kind"]]
        }

    def _write(self, tensors: dict[str, Tensor]) -> None:
        path = self._folder / shard_name(len(self._manifest["shards"]))
        entry = {"rows": _rows_of(tensors)} | put(path, safetensors.torch.save(tensors))
        self._manifest["shards"].append(entry)
        manifests.save(self._folder, self._manifest)


def _rows_of(tensors: Mapping[str, Tensor]) -> int:
    return next(iter(tensors.values())).shape[0]
