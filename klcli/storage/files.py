"""Files that are written whole or not at all, and read only as they were written.

A file is written beside its place under a random name, flushed to the disk and renamed, so that
what a killed process leaves is the old file or the new one, and perhaps a temporary file.
"""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from klcli.errors import SourceError

_TEMPORARY = re.compile(r"\.klcli-[0-9a-f]{16}\.tmp")


def temporary_beside(path: Path) -> Path:
    """A new name in the folder of a file, which nobody can foresee."""
    return path.with_name(f".klcli-{secrets.token_hex(8)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file of that name may have been left by a process that was killed."""
    return _TEMPORARY.fullmatch(name) is not None


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` if all goes well, and is removed if not.

    It is on the disk before it has its name. A link is replaced, not followed.

    Raises:
        OSError: it cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def put(path: Path, content: bytes, files: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write a file whole or not at all.

    Returns its entry in a manifest, size and sha256, which is noted in ``files`` too.
    """
    with whole_file(path) as file:
        file.write(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if files is not None:
        files[path.name] = entry
    return entry


def hash_file(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_size(path: Path, entry: Mapping[str, Any]) -> None:
    """Hold a file against the size in its entry.

    Raises:
        SourceError: it is missing or truncated.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SourceError(f"{path} is missing or unreadable: {error.strerror}") from error
    if size != entry["bytes"]:
        raise SourceError(
            f"{path} has {size} bytes and should have {entry['bytes']}: remove {path.parent} and "
            "make it again"
        )


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Hold a file against the size and the sha256 in its entry.

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
            f"{path} was altered since it was written (its sha256 differs): remove {path.parent} "
            "and make it again"
        )
