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
place of a hidden one, and how often.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klcli.choices import RecordingKind, Task
from klcli.storage import tables
from klcli.storage.manifest import FolderFormat
from klcli.text.vocabulary import Vocabulary

VERSIONS: Mapping[Task, int] = {"causal": 1, "masked": 2}
HEAD = "head.safetensors"
RECORDING = FolderFormat(
    name="klcli.recording",
    versions=tuple(VERSIONS.values()),
    noun="recording",
    own_files=r"head\.safetensors|shard-\d{5}\.safetensors",
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


def read_vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer of a recording, complete or not.

    Raises:
        SourceError: the recording or its tokenizer is damaged.
    """
    manifest = RECORDING.read(folder)
    return tables.read_vocabulary(folder, manifest["files"], manifest["vocabulary"])
