"""Reports in files, each written whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from klcli.choices import ENDINGS, FileFormat
from klcli.errors import OutputError, UsageError
from klcli.render.formats import WRITERS, Writer, check_extra, format_of
from klcli.render.view import DEFAULT_VIEW, View
from klcli.storage.files import temporary_beside
from klcli.storage.places import check_apart, is_special, obstacle_to


def check_outputs(
    paths: Iterable[str], inputs: Iterable[str] = (), endings: Mapping[str, FileFormat] = ENDINGS
) -> None:
    """Find out before the long work whether its result can be written.

    ``endings`` are those that stand for a format.

    Raises:
        UsageError: an ending that stands for no format, a format whose packages are missing, a file
            that is named twice, or one that is or lies in one of the ``inputs``.
        OutputError: a folder that is missing or write-protected, or a path that is a folder.
    """
    seen: dict[Path, str] = {}
    read = tuple(inputs)
    for path in paths:
        check_extra(f"--output {path}", format_of(path, endings))
        target = _target(path)
        check_apart("--output", path, read)
        if target in seen:
            raise UsageError(
                f"--output {seen[target]} and --output {path} are one file: leave one out"
            )
        if obstacle := obstacle_to(target):
            raise OutputError(f"cannot write {path}: {obstacle}")
        seen[target] = path


def write_outputs(
    result: Any,
    paths: Sequence[str],
    view: View = DEFAULT_VIEW,
    *,
    endings: Mapping[str, FileFormat] = ENDINGS,
    writers: Mapping[FileFormat, Writer] = WRITERS,
) -> None:
    """Write a result to files, each in the format of its ending.

    All are written beside their places first and put there together when the last one is ready, so
    that what cannot be rendered or written leaves every file as it was. A file that is replaced
    keeps its permissions, and a symbolic link still points to it. Pipes and devices are written
    directly.

    Raises:
        KlcliError: the result cannot be shown in a format.
        OutputError: a file cannot be written.
    """
    ready: dict[Path, str] = {}
    try:
        for path in paths:
            with _naming(path):
                write = writers[format_of(path, endings)]
                with _opened(path, ready) as stream:
                    write(result, stream, view)
        for temporary, path in ready.items():
            with _naming(path):
                temporary.replace(_target(path))
    finally:
        for temporary in ready:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _opened(path: str, ready: dict[Path, str]) -> Iterator[BinaryIO]:
    """A new file beside ``path``, noted in ``ready``; ``path`` itself if it is special."""
    target = _target(path)
    if is_special(target):
        with target.open("wb") as stream:
            yield stream
        return
    temporary = temporary_beside(target)
    ready[temporary] = path
    with temporary.open("xb") as stream:  # which follows no link, and obeys the umask
        yield stream
    if target.exists():
        shutil.copymode(target, temporary)


def _target(path: str) -> Path:
    """The file itself, where ``path`` leads to it by links."""
    return Path(path) if is_special(Path(path)) else Path(os.path.realpath(path))
