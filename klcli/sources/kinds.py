"""What a path is, as far as a look at it tells: by content, or by the name's ending."""

import os
from pathlib import Path
from typing import Any, Literal

from klcli.errors import SourceError
from klcli.sources.given import GivenLogits, Spec
from klcli.storage.manifest import MANIFEST

SourceKind = Literal[
    "recording", "llama.cpp base file", "top log-probabilities", "logit file", "model"
]

BASE_FILE_MAGIC = b"_logits_"
ARRAY_SUFFIXES = (".npy", ".npz", ".pt", ".safetensors")


def kind_of(spec: Spec) -> SourceKind:
    """What a user named, or gave."""
    if not isinstance(spec, str):
        return "logit file" if isinstance(spec, GivenLogits) else "model"
    path = Path(spec)
    if (path / MANIFEST).is_file():
        return "recording"
    if path.is_file() and is_base_file(path):
        return "llama.cpp base file"
    if spec.endswith((".jsonl", ".jsonl.gz")):
        return "top log-probabilities"
    return "logit file" if path.suffix in ARRAY_SUFFIXES else "model"


def checkpoints_in(spec: Any) -> list[Any]:
    """The ``checkpoint-…`` folders of a training run, in the place of the folder that holds them.

    What holds none, or is a model itself, stands for itself.
    """
    if not isinstance(spec, str | os.PathLike) or (Path(spec) / "config.json").is_file():
        return [spec]
    return [str(path) for path in Path(spec).glob("checkpoint-*") if path.is_dir()] or [spec]


def check_there(spec: str) -> None:
    """Raise a SourceError where there is no file of that name."""
    if not Path(spec).is_file():
        kind = kind_of(spec)
        what = kind if kind == "logit file" else f"file of {kind}"
        raise SourceError(f"no {what} at {spec!r}: check the path")


def is_base_file(path: Path) -> bool:
    """Whether a path is a base file of llama.cpp, known by its first 8 bytes whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(len(BASE_FILE_MAGIC)) == BASE_FILE_MAGIC
    except OSError:
        return False
