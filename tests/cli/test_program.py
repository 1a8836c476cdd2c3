"""The program itself: its name, its version, its ways to start."""

import subprocess
import sys
from pathlib import Path

import klcli
from tests.running import Run


def test_the_version_is_that_of_the_package(klcli: Run) -> None:
    done = klcli("--version")
    assert (done.code, done.out) == (0, f"klcli {version()}\n")


def version() -> str:
    return klcli.__version__


def test_python_m_klcli_is_the_same_program() -> None:
    script = str(Path(sys.executable).with_name("klcli"))
    for command in ([script], [sys.executable, "-m", "klcli"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"klcli {version()}\n")


def test_no_command_shows_the_help(klcli: Run) -> None:
    done = klcli()
    assert done.code == 2
    assert "compare" in done.out + done.err


def test_an_unknown_option_exits_2(klcli: Run) -> None:
    done = klcli("compare", "a", "b", "--kld")
    assert done.code == 2
    assert "No such option" in done.err
