"""Whether the files of a checkpoint are what their names say: whole, and not left on a server."""

import json
import zipfile
from pathlib import Path
from typing import Any

import safetensors

from klcli.errors import SourceError, gist

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS left in the place of a large one."""

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The files of weights that transformers looks for, the first of them that is there."""

SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def check_pointer(path: Path) -> None:
    """Raise a SourceError where Git LFS left a pointer in the place of a file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise SourceError(
                f"{path} is a pointer of Git LFS, not the file itself: run git lfs pull in its "
                "folder, or download it again"
            )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        SourceError: it is a pointer, is not JSON, or holds something else.
    """
    check_pointer(path)
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise SourceError(
            f"{path} is not JSON ({gist(error)}): restore it, or download it again"
        ) from error
    if not isinstance(found, dict):
        raise SourceError(
            f"{path} is not a JSON object with settings: restore it, or download it again"
        )
    return found


def check_folder(folder: Path) -> None:
    """Look at the config of a model and its tokenizer's files, before anything is loaded.

    Raises:
        SourceError: a file is a pointer, or the config does not say which model it is of.
    """
    for name in SMALL_FILES:
        check_pointer(folder / name)
    path = folder / "config.json"
    settings = read_object(path)
    if not isinstance(settings.get("quantization_config") or {}, dict):
        raise SourceError(f"the quantization_config in {path} is not an object: restore it")
    kind = settings.get("model_type")
    if "auto_map" in settings:  # its own code knows what it is
        return
    if not isinstance(kind, str):
        raise SourceError(
            f"{path} does not say which model it is of (model_type): restore it, or download it "
            "again"
        )


def check_model_type(folder: Path) -> None:
    """Raise a SourceError where transformers does not know the kind of model in a folder."""
    import transformers

    path = folder / "config.json"
    settings = read_object(path)
    kind = settings.get("model_type")
    if "auto_map" not in settings and kind not in transformers.CONFIG_MAPPING:
        raise SourceError(
            f"{path} is of a {kind!r} model, which transformers {transformers.__version__} does "
            "not know: correct model_type, or pip install --upgrade transformers"
        )


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that transformers reads from a folder, each of them whole.

    Raises:
        SourceError: one is missing, a pointer, cut short or damaged.
    """
    found = next((path for name in WEIGHTS if (path := folder / name).is_file()), None)
    if found is None:
        return []
    paths = _shards(found) if found.suffix == ".json" else [found]
    for path in paths:
        check_weight_file(path)
    return paths


def _shards(index: Path) -> list[Path]:
    weights = read_object(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(one, str) for one in weights.values()):
        raise SourceError(f"{index} has no weight_map: restore it, or download it again")
    paths = [index.parent / name for name in sorted({*weights.values()})]
    if missing := [path for path in paths if not path.is_file()]:
        raise SourceError(
            f"{index} names {len(paths)} files of weights, and {len(missing)} are missing, first "
            f"{missing[0]}: download the missing files"
        )
    return paths


def check_weight_file(path: Path) -> None:
    """Raise a SourceError where a file of weights is a pointer, cut short or damaged."""
    check_pointer(path)
    reason = ""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="numpy"):
                pass
        except safetensors.SafetensorError as error:
            reason = gist(error)
    elif path.stat().st_size == 0:
        reason = "it is empty"
    elif _begins_like_a_zip(path) and not zipfile.is_zipfile(path):
        reason = "its end is missing"
    if reason:
        raise SourceError(
            f"{path} is cut short or damaged ({reason}): download it again, or run git lfs pull in "
            "its folder"
        )


def _begins_like_a_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
