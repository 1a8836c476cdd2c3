"""Reports in files, each written whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TextIO

from klcli.choices import ENDINGS
from klcli.errors import OutputError, UsageError
from klcli.judge.report import Report
from klcli.render.data import RENDERERS, format_of
from klcli.render.view import DEFAULT_VIEW, View
from klcli.storage.files import temporary_beside
from klcli.storage.places import check_apart, is_special, obstacle_to


def check_outputs(
    paths: Iterable[str], inputs: Iterable[str] = (), endings: Mapping[str, str] = ENDINGS
) -> None:
    """Find out before the long work whether its result can be written.

    ``endings`` are those that stand for a format.

    Raises:
        UsageError: an ending that stands for no format, a file that is named twice, or one that is
            or lies in one of the ``inputs``.
        OutputError: a folder that is missing or write-protected, or a path that is a folder.
    """
    seen: dict[Path, str] = {}
    read = tuple(inputs)
    for path in paths:
        format_of(path, endings)
        target = _target(path)
        check_apart("--output", path, read)
        if target in seen:
            raise UsageError(
                f"--output {seen[target]} and --output {path} are one file: leave one out"
            )
        if obstacle := obstacle_to(target):
            raise OutputError(f"cannot write {path}: {obstacle}")
        seen[target] = path


def write_outputs(report: Report, paths: Sequence[str], view: View = DEFAULT_VIEW) -> None:
    """Write a report to files, each in the format of its ending. See ``write_files``.

    Raises:
        KlcliError: the report cannot be shown in a format.
        OutputError: a file cannot be written.
    """
    write_files(
        paths, lambda path, stream: RENDERERS[format_of(path, ENDINGS)](report, stream, view)
    )


def write_files(paths: Sequence[str], render: Callable[[str, TextIO], None]) -> None:
    """Write files, as ``render`` writes each to a stream that it is given with the path.

    All are written beside their places first and put there together when the last one is ready, so
    that what cannot be rendered or written leaves every file as it was. A file that is replaced
    keeps its permissions, and a symbolic link still points to it. Pipes and devices are written
    directly.

    Raises:
        OutputError: a file cannot be written.
    """
    ready: dict[Path, str] = {}
    try:
        for path in paths:
            with _naming(path):
                _write(path, render, ready)
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


def _write(path: str, render: Callable[[str, TextIO], None], ready: dict[Path, str]) -> None:
    """Render to a new file beside ``path``, noted in ``ready``; to ``path`` itself if special."""
    target = _target(path)
    mode: Literal["w", "x"] = "w"
    if not is_special(target):
        target = temporary_beside(target)
        mode = "x"  # which follows no link that is there already, and obeys the umask
        ready[target] = path
    with target.open(mode, encoding="utf-8", newline="") as stream:
        render(path, stream)
    if mode == "x" and _target(path).exists():
        shutil.copymode(_target(path), target)


def _target(path: str) -> Path:
    """The file itself, where ``path`` leads to it by links."""
    return Path(path) if is_special(Path(path)) else Path(os.path.realpath(path))
