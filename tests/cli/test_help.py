"""The help: examples first, then sections; it fits the terminal, and a shell completes it."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping

import click
import pytest

from klcli.cli import cli
from klcli.cli.help import SECTIONS
from tests.running import Run

COMMANDS = tuple(cli.commands)
LONGEST = {"compare": 74, "perplexity": 68, "rank": 64}
"""Lines of the help of a command at 80 columns; other commands have fewer."""


@pytest.fixture(params=[60, 80, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The columns of the terminal."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


@pytest.mark.parametrize("name", [(), *((name,) for name in COMMANDS)], ids="-".join)
@pytest.mark.parametrize("asked", ["--help", "--help-all"])
def test_help_fits_the_terminal(klcli: Run, width: int, name: tuple[str, ...], asked: str) -> None:
    done = klcli(*name, asked if name else "--help")
    assert (done.code, done.err) == (0, "")
    long = [line for line in done.out.splitlines() if len(line) > min(width, 100)]
    assert not [line for line in long if not re.match(r"  --[a-z-]+ \[", line)]  # choices


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_says_where_there_is_more(
    klcli: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = (klcli(name, asked).out for asked in ("--help", "--help-all"))
    assert len(short.splitlines()) <= LONGEST.get(name, 50)
    assert ("--help-all" in short) == (short != whole)


@pytest.mark.parametrize("name", COMMANDS)
def test_all_options_are_in_all_the_help_and_in_a_section(klcli: Run, name: str) -> None:
    whole = klcli(name, "--help-all").out
    options = [one for one in cli.commands[name].params if isinstance(one, click.Option)]
    assert [one.opts[0] for one in options if not re.search(rf"{one.opts[-1]}\b", whole)] == []
    titles = [line[:-1] for line in whole.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    assert titles[0] == "Examples"
    assert titles[1:] == [title for title in SECTIONS if title in titles]


@pytest.mark.parametrize("name", ["compare", "perplexity", "record", "layers", "report", "merge"])
def test_an_option_that_is_rare_is_only_in_all_the_help(klcli: Run, name: str) -> None:
    short, whole = klcli(name, "--help").out, klcli(name, "--help-all").out
    assert len(re.findall(r"^  -", short, re.M)) < len(re.findall(r"^  -", whole, re.M))


def test_an_example_that_is_cut_is_still_a_command(
    klcli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = []
    for columns in ("50", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        text = klcli("compare", "--help").out.split("Examples:\n")[1].split("\n\n")[0]
        examples.append(list(map(shlex.split, text.replace("\\\n", " ").splitlines())))
    assert examples[0] == examples[1]


def test_commands_stand_in_the_order_of_use(klcli: Run) -> None:
    listed = re.findall(r"^  ([a-z]+)  ", klcli("--help").out.split("Commands:")[1], re.M)
    assert listed == list(COMMANDS)
    assert listed[:3] == ["compare", "perplexity", "record"]


# Completion

WORDS = [
    ("klcli comp", "plain", "compare"),
    ("klcli compare --gate-", "plain", "--gate-confidence"),
    ("klcli compare --format mark", "plain", "markdown"),
    ("klcli compare mod", "file", "mod"),
    ("klcli compare model model-4bit corp", "file", "corp"),
    ("klcli report fir", "file", "fir"),
    ("klcli perplexity model --adapter a", "dir", "a"),
    ("klcli record model corpus.txt -o b", "file", "b"),
]


def complete(words: str, shell: str = "bash") -> str:
    """What a shell is told for the last of some words."""
    program = "import sys; sys.modules['torch'] = None; from klcli.cli import main; main()"
    last = words.split()[-1] if shell == "fish" else str(len(words.split()) - 1)
    asked: Mapping[str, str] = {
        "_KLCLI_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": last,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(("words", "kind", "completed"), WORDS)
def test_a_shell_completes_commands_options_choices_and_files(
    words: str, kind: str, completed: str
) -> None:
    assert f"{kind},{completed}" in complete(words).splitlines()


def test_zsh_and_fish_are_told_the_same() -> None:
    zsh, fish = (complete("klcli compare --format mark", shell) for shell in ("zsh", "fish"))
    assert zsh.splitlines()[:2] == ["plain", "markdown"]
    assert "markdown" in fish


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from klcli.cli import main; main()"],
        env=os.environ | {"_KLCLI_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert "_klcli_completion" in done.stdout
