"""Folders with a manifest: recordings and runs. A manifest says what a folder holds.

It is JSON, names its format and version, and carries a sha256 of itself (the *seal*). Its
``request`` is what makes the folder the same when the same command is run again: then it goes on
there. One process at a time writes to a folder, kept apart by a lock that dies with its process.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from klcli.errors import OutputError, SourceError
from klcli.storage import schema
from klcli.storage.files import is_temporary, put
from klcli.storage.schema import Check, SchemaError

MANIFEST, WINDOWS, TOKENIZER, LOCK = (
    "manifest.json",
    "windows.safetensors",
    "tokenizer.json",
    "lock",
)

SHARED_FILES = rf"{re.escape(MANIFEST)}|{re.escape(WINDOWS)}|{re.escape(TOKENIZER)}|{LOCK}"
"""A pattern of the names that files have in all kinds of folders."""

ENTRY: Mapping[str, Check] = {"bytes": schema.count, "sha256": schema.sha256}
"""What a manifest says of a file."""
SPECIAL_IDS = schema.each(
    schema.maybe(schema.count), key=schema.word("bos_id", "eos_id", "mask_id", "unknown_id"),
    needs=("bos_id", "eos_id"),
)  # fmt: skip


_PROTOCOL = schema.each(
    schema.maybe(schema.either(schema.integer, schema.text)),
    needs=("name", "context", "stride", "score_from", "bos", "special_tokens", "documents"),
)


def model_schema(*texts: str) -> schema.Check:
    """What a model's provenance must look like: texts that are needed, and what is shown of it."""
    quantised = {
        **dict.fromkeys(("type", "head_type"), schema.maybe(schema.text)),
        **dict.fromkeys(("bits", "activations"), schema.maybe(schema.number)),
        **dict.fromkeys(("dequantised", "head", "activations_run"), schema.maybe(schema.flag)),
        "types": schema.each(schema.count),
    }
    return schema.fields(
        dict.fromkeys(texts, schema.text),
        {
            "parameters": schema.maybe(schema.count),
            "bits_per_weight": schema.maybe(schema.number),
            "quantization": schema.maybe(schema.fields({"method": schema.text}, quantised)),
            "settings": schema.table,
        },
    )


def manifest_schema(own: Mapping[str, Check]) -> Check:
    """What a manifest must look like: what all have, and what one kind of folder has."""
    shared = {
        "complete": schema.flag,
        "request": schema.table,
        "protocol": _PROTOCOL,
        "corpora": schema.items(schema.fields({"name": schema.text, "sha256": schema.sha256})),
        "documents": schema.items(schema.text, least=1),
        "files": schema.each(
            schema.fields(ENTRY),
            key=schema.name(
                rf"{re.escape(WINDOWS)}|{re.escape(TOKENIZER)}|head\.safetensors|report\.json"
            ),
            needs=(WINDOWS,),
        ),
    }
    masking = {"mask_id": schema.maybe(schema.count), "every": schema.maybe(schema.positive)}
    optional = {
        "masking": schema.maybe(schema.fields(masking)),
        "outliers": schema.count,
        "groups": schema.items(schema.maybe(schema.text)),
        "roles": schema.items(schema.text),
        "slice_regex": schema.items(schema.text),
    }
    return schema.fields({**shared, **own}, optional)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFormat:
    """A kind of folder that klcli writes.

    Attributes:
        name: what its manifest says for ``format``.
        versions: the versions that this klcli reads.
        noun: what a user calls it.
        own_files: a pattern of the names of its files, without those that all kinds have.
        schema: what its manifest must look like.
    """

    name: str
    versions: tuple[int, ...]
    noun: str
    own_files: str
    schema: Check

    def is_at(self, folder: Path) -> bool:
        """Whether a path is such a folder, complete or not."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(manifest, dict) and manifest.get("format") == self.name

    def read(self, folder: Path) -> dict[str, Any]:
        """The manifest of such a folder.

        Raises:
            SourceError: it is damaged, foreign, or of a version that this klcli does not read.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SourceError(f"cannot read the {self.noun} {folder}: {error}") from error
        if not isinstance(manifest, dict) or manifest.get("format") != self.name:
            raise SourceError(f"{folder} is not a {self.noun} of klcli")
        if (version := manifest.get("format_version")) not in self.versions:
            raise SourceError(
                f"{folder} is a {self.noun} of version {version!r}, and this klcli reads versions "
                f"up to {max(self.versions)}: use the klcli that wrote it, or a newer one"
            )
        if manifest.pop("sha256", None) != seal(manifest):
            raise SourceError(
                f"the manifest of {folder} is damaged or was altered: make the {self.noun} again"
            )
        try:
            self.schema(manifest, "")
        except SchemaError as error:
            raise SourceError(f"the manifest of {folder} is damaged: {error}") from error
        return manifest

    def read_to_go_on(self, folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of a folder that the same request was begun in.

        Raises:
            SourceError: as ``read``.
            OutputError: it was another request.
        """
        manifest = self.read(folder)
        self.check_same(folder, manifest["request"], request)
        return manifest

    def check_same(
        self, folder: Path, before: Mapping[str, Any], request: Mapping[str, Any]
    ) -> None:
        """Hold what a folder was begun with against what is asked for now, or as much as is known.

        Raises:
            OutputError: something is different.
        """
        was, now = _flat(before), _flat(request)
        if changed := [name for name in now if name not in was or was[name] != now[name]]:
            shown = ", ".join(f"{n} was {was.get(n, 'not noted')} and is {now[n]}" for n in changed)
            raise OutputError(
                f"{folder} holds another {self.noun} ({shown}): repeat the command that made it, "
                "or choose another folder" + _advice(changed, was)
            )

    def check_place(self, folder: Path) -> None:
        """Find out before the long work whether a folder can be written to.

        Raises:
            OutputError: it is not a folder, holds something else, or its own folder is missing.
            SourceError: it holds a manifest of something else, or one that is damaged.
        """
        cannot = f"cannot write the {self.noun} to {folder}"
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{cannot}: it is a file; name a folder")
        if not folder.exists() and not folder.parent.is_dir():
            raise OutputError(f"{cannot}: there is no folder {folder.parent}")
        written = folder if folder.exists() else folder.parent
        if not os.access(written, os.W_OK):
            raise OutputError(f"{cannot}: {written} is write-protected")
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        if MANIFEST in names:
            self.read(folder)
        elif foreign := [n for n in names if not (self._is_own(n) or self._is_left_over(n))]:
            raise OutputError(
                f"{folder} holds {foreign[0]} and is not a {self.noun}: choose another folder"
            )

    @contextlib.contextmanager
    def writing(self, folder: Path) -> Iterator[None]:
        """Have a folder for ourselves, made if it is missing, without what a kill has left in it.

        Raises:
            OutputError: it cannot be written to, or another process does.
            SourceError: as ``check_place``.
        """
        self.check_place(folder)
        try:
            folder.mkdir(exist_ok=True)
            if (folder / LOCK).is_symlink():  # whose target would be emptied
                raise OutputError(f"{folder / LOCK} is a link: remove it, or choose another folder")
            with filelock.FileLock(folder / LOCK, timeout=0):
                for path in folder.iterdir():
                    if self._is_left_over(path.name):
                        path.unlink()
                yield
        except filelock.Timeout:
            raise OutputError(
                f"another process is writing to {folder}: wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error

    def _is_own(self, name: str) -> bool:
        return re.fullmatch(f"{SHARED_FILES}|{self.own_files}", name) is not None

    def _is_left_over(self, name: str) -> bool:
        """Whether a kill has left it; klcli 0.1.0 put ``.tmp`` behind the name of the file."""
        return is_temporary(name) or (name.endswith(".tmp") and self._is_own(name[: -len(".tmp")]))


def _flat(request: Any, name: str = "") -> dict[str, Any]:
    """What a request says, by names such as ``models.1.digest``."""
    inner: Mapping[Any, Any] = request if isinstance(request, Mapping) else {}
    if isinstance(request, list | tuple):
        inner = dict(enumerate(request))
    if not inner:
        return {name: request}
    prefix = f"{name}." if name else ""
    return {key: one for k, v in inner.items() for key, one in _flat(v, f"{prefix}{k}").items()}


def _advice(changed: Sequence[str], was: Mapping[str, Any]) -> str:
    """What to do with a folder of klcli 0.1.0, which had no digests."""
    if not any(name.endswith("digest") and name not in was for name in changed):
        return ""
    return (
        ". klcli 0.1.0, which began it, noted at most a sample of the weights and nothing of what "
        "is in a file, so nobody can tell whether they are the same today"
    )


def seal(manifest: Mapping[str, Any]) -> str:
    """The sha256 of a manifest, which is kept in it: whatever is changed in it is found."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def save(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest, sealed, whole or not at all."""
    sealed = {**manifest, "sha256": seal(manifest)}
    put(folder / MANIFEST, (json.dumps(sealed, indent=1, allow_nan=False) + "\n").encode())
