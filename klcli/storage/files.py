"""Files that are written whole or not at all, and read only as they were written.

A file is written beside its place under a random name, flushed to the disk and renamed, so that
what a killed process leaves is the old file or the new one, and perhaps a temporary file.
"""

import contextlib
import hashlib
import os
import re
import secrets
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

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
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_left_over(folder: Path) -> None:
    """Remove temporary files of processes that were killed. One that is being written is locked."""
    for path in [path for path in folder.iterdir() if is_temporary(path.name)]:
        with contextlib.suppress(OSError):  # it is being written, or somebody else removed it
            if time.time() - path.stat().st_mtime < YOUNG:
                continue
            with path.open("rb") as file:
                _lock(file)
                path.unlink()


YOUNG = 60.0
"""Seconds for which a file is left alone: its writer may be about to lock it."""


def _lock(file: BinaryIO) -> None:
    """Lock an open file until it is closed, or its process ends.

    Raises:
        OSError: another process has locked it.
    """
    if os.name == "posix":  # elsewhere an open file cannot be removed
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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


class FileState(NamedTuple):
    """What changes of a file when it is written to or replaced."""

    size: int
    modified_ns: int
    inode: int
    device: int


class OpenedFile:
    """A file that is read while a command runs: exactly, and only while it stays what it was.

    It is read plainly. To map it would be to crash where it becomes shorter, and the pages of a
    mapped file count as memory.

    Args:
        path: the file.
        state: what it was when it was opened before; what it is now where it is not given.

    Raises:
        SourceError: it cannot be opened, or has changed.
    """

    def __init__(self, path: Path, state: FileState | None = None) -> None:
        self.path = path
        with _reading(path):
            self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self.state = state or _state_of(os.fstat(self._file.fileno()))
        self._digest: str | None = None
        self.check_unchanged()

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.state.size

    def read(self, offset: int, size: int) -> bytearray:
        """So many bytes from a place on.

        Raises:
            SourceError: it has fewer.
        """
        content = bytearray(size)
        view, have = memoryview(content), 0
        with _reading(self.path):
            self._file.seek(offset)
            while have < size and (count := self._file.readinto(view[have:])):
                have += count
        if have < size:
            self.check_unchanged()
            raise SourceError(
                f"{self.path} ends at byte {offset + have} and is read up to byte {offset + size}: "
                "make it again"
            )
        return content

    def digest(self) -> str:
        """The sha256 of all that is in it, at some GB/s; worked out once.

        Raises:
            SourceError: it has changed since it was opened.
        """
        if self._digest is None:
            with _reading(self.path):
                self._file.seek(0)
                self._digest = hashlib.file_digest(self._file, "sha256").hexdigest()
            self.check_unchanged()
        return self._digest

    def check_unchanged(self) -> None:
        """Find out whether the path still is the file that was opened, as it was then.

        Raises:
            SourceError: it is not.
        """
        check_state(self.path, self.state)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error


def state_of(path: Path) -> FileState:
    """What a file is at this moment.

    Raises:
        SourceError: there is none.
    """
    with _reading(path):
        return _state_of(path.stat())


def check_state(path: Path, before: FileState) -> None:
    """Hold a file against what it was.

    Raises:
        SourceError: it was written to, replaced or removed.
    """
    names = ("size", "time of change", "inode", "device")
    changes = zip(names, before, state_of(path), strict=True)
    if changed := [f"its {name} was {a} and is {b}" for name, a, b in changes if a != b]:
        raise SourceError(
            f"{path} changed while it was read ({changed[0]}): run the command again when nobody "
            "writes to it"
        )


def _state_of(found: os.stat_result) -> FileState:
    return FileState(found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)


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


def check_file(path: Path, entry: Mapping[str, Any], state: FileState | None = None) -> OpenedFile:
    """Open a file, and hold it against the size and the sha256 in its entry.

    With the ``state`` in which it was when it was checked before, it is only held against that.

    Raises:
        SourceError: it is missing, truncated or altered.
    """
    check_size(path, entry)
    file = OpenedFile(path, state)
    if state is None and file.digest() != entry["sha256"]:
        raise SourceError(
            f"{path} was altered since it was written (its sha256 differs): remove {path.parent} "
            "and make it again"
        )
    return file


def read_checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    """All of a file, once it was held against the size and the sha256 in its entry.

    Raises:
        SourceError: it is missing, truncated or altered.
    """
    file = check_file(path, entry)
    content = bytes(file.read(0, file.size))
    file.check_unchanged()
    return content
