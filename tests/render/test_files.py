import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from klcli.errors import KlcliError, OutputError, UsageError
from klcli.render.files import check_outputs, write_outputs
from klcli.render.formats import WRITERS
from tests.render.reports import compare_report

REPORT = compare_report()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def umask() -> Iterator[None]:
    """A umask that lets a group read."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_every_file_is_written_in_the_format_of_its_ending(here: Path) -> None:
    paths = ["a.json", "b.jsonl", str(here / "c.csv"), "d.md"]
    check_outputs(paths)
    write_outputs(REPORT, paths)
    assert names(here) == ["a.json", "b.jsonl", "c.csv", "d.md"]
    assert Path("a.json").read_text().startswith('{\n  "format": "klcli.report"')
    assert Path("b.jsonl").read_bytes().count(b"\n") == 6
    assert Path("c.csv").read_bytes().startswith(b"document,window,")
    assert Path("d.md").read_text(encoding="utf-8").startswith("# KL(reference ‖ candidate)")


def test_checking_writes_nothing(here: Path) -> None:
    check_outputs(["a.json"])
    assert names(here) == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("paths", "error", "message"),
    [
        (["a.txt"], UsageError, "unknown ending '.txt'"),
        (["a.json", "b/../a.json"], UsageError, "--output a.json and --output b/../a.json"),
        (["missing/a.json"], OutputError, "there is no folder .*missing; make it first"),
        (["file/a.json"], OutputError, "there is no folder .*file; make it first"),
        (["folder.json"], OutputError, "cannot write folder.json: it is a folder"),
    ],
    ids=["ending", "twice", "no-folder", "file-as-folder", "folder"],
)
def test_what_cannot_be_written_is_found_before_the_work(
    paths: list[str], error: type[KlcliError], message: str
) -> None:
    for folder in ("b", "folder.json"):
        Path(folder).mkdir()
    Path("file").touch()
    with pytest.raises(error, match=message):
        check_outputs(paths)


@pytest.mark.parametrize(
    ("protected", "message"),
    [("locked", "the folder .*locked is write-protected"), ("old.json", "it is write-protected")],
)
def test_what_is_write_protected_is_found_before_the_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, protected: str, message: str
) -> None:
    Path("locked").mkdir()
    Path("old.json").touch()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != here / protected)
    with pytest.raises(OutputError, match=message):
        check_outputs(["locked/a.json" if protected == "locked" else protected])


@pytest.mark.parametrize("when", ["rendering", "the last step"])
def test_a_failure_leaves_every_file_as_it_was(
    here: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    Path("a.json").write_text("old")
    writers = {**WRITERS, "markdown": fail} if when == "rendering" else WRITERS
    if when == "the last step":
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match=r"cannot write .\.\w+: No space left on device"):
        write_outputs(REPORT, ["a.json", "b.md"], writers=writers)
    assert names(here) == ["a.json"]
    assert Path("a.json").read_text() == "old"


def test_a_report_that_a_format_cannot_show_leaves_nothing_behind(here: Path) -> None:
    with pytest.raises(KlcliError, match="holds no single tokens"):
        write_outputs(compare_report(tokens=None), ["a.json", "b.csv"])
    assert names(here) == []


def test_an_interrupt_leaves_nothing_behind(here: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_outputs(REPORT, ["a.json"], writers={"json": interrupt})
    assert names(here) == []


@pytest.mark.usefixtures("umask")
def test_a_new_file_has_the_usual_permissions(here: Path) -> None:
    write_outputs(REPORT, ["a.json"])
    assert stat.S_IMODE((here / "a.json").stat().st_mode) == 0o640


def test_a_replaced_file_keeps_its_permissions(here: Path) -> None:
    Path("a.json").touch(0o600)
    Path("a.json").chmod(0o604)
    write_outputs(REPORT, ["a.json"])
    assert stat.S_IMODE((here / "a.json").stat().st_mode) == 0o604
    assert Path("a.json").stat().st_size > 0


def test_a_link_stays_a_link(here: Path) -> None:
    Path("real").mkdir()
    Path("a.json").symlink_to("real/b.json")
    write_outputs(REPORT, ["a.json"])
    assert Path("a.json").is_symlink()
    assert names(here / "real") == ["b.json"]
    with pytest.raises(UsageError, match="are one file"):
        check_outputs(["a.json", "real/b.json"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_written_directly(here: Path) -> None:
    os.mkfifo("pipe.md")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe.md").read_text("utf-8")))
    reader.start()
    check_outputs(["pipe.md"])
    write_outputs(REPORT, ["pipe.md"])
    reader.join(10)
    assert read[0].startswith("# KL")
    assert names(here) == ["pipe.md"]
    assert stat.S_ISFIFO(Path("pipe.md").stat().st_mode)
