"""The format of klcli's own recording of what a model predicted.

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
place of a hidden one, and how often. Version 3 is version 1 for texts of which parts are scored:
the windows also have ``rows``, the scored rows of each, and ``parts``: first token, the one behind
the last, role (its place among the manifest's ``roles``), turn, whether it is scored, and whether a
model generated it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from klcli.choices import RecordingKind, Task
from klcli.errors import SourceError
from klcli.sources.slow_tokenizer import read_backend
from klcli.storage import schema, tables
from klcli.storage.manifest import (
    ENTRY,
    SPECIAL_IDS,
    TOKENIZER,
    FolderFormat,
    manifest_schema,
    model_schema,
)
from klcli.storage.schema import SchemaError
from klcli.text.vocabulary import Vocabulary

VERSIONS: Mapping[Task, int] = {"causal": 1, "masked": 2}
VERSION_WITH_PARTS = 3
HEAD = "head.safetensors"
_SCALE = schema.maybe(schema.factor)
_HEAD = {"size": schema.positive, "multiplier": _SCALE, "divisor": _SCALE, "softcap": _SCALE}
_MANIFEST = manifest_schema(
    {
        "kind": schema.word(*get_args(RecordingKind)),
        "model": model_schema("source", "dtype", "architecture"),
        "vocabulary": SPECIAL_IDS,
        "width": schema.positive,
        "dtype": schema.word("float16", "bfloat16", "float32", "float64"),
        "self_kl": schema.fields(
            {"largest": schema.maybe(schema.number), "noise": schema.maybe(schema.number)}
        ),
        "head": schema.maybe(schema.fields(_HEAD)),
        "batch_tokens": schema.positive,
        "rows": schema.positive,
        "rows_per_shard": schema.positive,
        "shards": schema.items(schema.fields({"rows": schema.positive, **ENTRY})),
    }
)


def _check_manifest(manifest: Any, where: str) -> None:
    """What its fields must look like, and how they hang together."""
    _MANIFEST(manifest, where)
    needed = (TOKENIZER, HEAD) if manifest["kind"] == "hidden" else (TOKENIZER,)
    if missing := [name for name in needed if name not in manifest["files"]]:
        raise SchemaError(f"files has no {missing[0]!r}")
    if manifest["kind"] == "hidden" and manifest["head"] is None:
        raise SchemaError("head is null and should say how the output head is applied")
    *full, last = [shard["rows"] for shard in manifest["shards"]] or [0]
    size, rows = manifest["rows_per_shard"], manifest["rows"]
    recorded = sum(full) + last
    if any(one != size for one in full) or last > size or recorded > rows:
        raise SchemaError(f"its shards do not have {size} rows each and {rows} in all")
    if manifest["complete"] and recorded != rows:
        raise SchemaError(f"it has {recorded} of {rows} rows and says that it is complete")


RECORDING = FolderFormat(
    name="klcli.recording",
    versions=(*VERSIONS.values(), VERSION_WITH_PARTS),
    noun="recording",
    own_files=r"head\.safetensors|shard-\d{5}\.safetensors",
    schema=_check_manifest,
)
TENSORS: Mapping[RecordingKind, tuple[str, ...]] = {
    "hidden": ("hidden",),
    "logits": ("logits",),
    "topk": ("ids", "log_probs", "log_rest"),
}


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05}.safetensors"


def rows_in(manifest: Mapping[str, Any]) -> int:
    """How many rows are recorded so far."""
    return sum(shard["rows"] for shard in manifest["shards"])


def read_complete(folder: Path) -> dict[str, Any]:
    """The manifest of a complete recording.

    Raises:
        SourceError: it is incomplete, damaged, foreign or of another version.
    """
    manifest = RECORDING.read(folder)
    if not manifest["complete"]:
        raise SourceError(
            f"{folder} is incomplete ({rows_in(manifest):,} of {manifest['rows']:,} rows): run "
            "the same klcli record again, and it goes on from there"
        )
    return manifest


def read_vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer of a recording, complete or not.

    Raises:
        SourceError: the recording or its tokenizer is damaged.
    """
    manifest = RECORDING.read(folder)
    return tables.read_vocabulary(folder, manifest["files"], manifest["vocabulary"], read_backend)
