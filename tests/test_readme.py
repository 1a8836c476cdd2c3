"""The README cannot lie: its help and its output are those of the code."""

import os
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from klcli.cli import cli
from tests.running import Run

README = Path(__file__).resolve().parent.parent / "README.md"
ACCEPT = "KLCLI_ACCEPT" in os.environ


def help_of(*command: str) -> str:
    """The help of a command as a terminal of 80 columns shows it."""
    runner = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    result = runner.invoke(cli, [*command, "--help"], prog_name="klcli", terminal_width=80)
    assert result.exit_code == 0
    return f"```text\n{result.output.rstrip()}\n```"


def section(text: str, start: str, end: str) -> tuple[int, int]:
    """Where what lies between two marks begins and ends."""
    begin = text.index(start) + len(start)
    return begin, text.index(end, begin)


def check(start: str, end: str, expected: str) -> None:
    """Hold a section of the README against what the code says, or take it over."""
    text = README.read_text(encoding="utf-8")
    begin, stop = section(text, start, end)
    if ACCEPT:
        README.write_text(text[:begin] + expected + text[stop:], encoding="utf-8")
    else:
        assert text[begin:stop] == expected, "run `make accept` and look at the difference"


def test_the_help_is_that_of_the_program() -> None:
    commands = [(), *((name,) for name in sorted(cli.commands))]
    parts = [help_of(*command) for command in commands]
    check("<!-- help -->\n", "<!-- end of help -->", "\n\n".join(parts) + "\n")


def test_the_output_is_that_of_the_command(klcli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(README.parent)
    text = README.read_text(encoding="utf-8")
    begin, stop = section(text, "<!-- main command -->\n```sh\n", "\n```")
    command = text[begin:stop].split(" && ")[-1]
    assert command.startswith(".venv/bin/klcli ")
    done = klcli(*shlex.split(command)[1:])
    assert done.code == 0
    check("<!-- main output -->\n", "\n\nInstall", f"```text\n{done.out.rstrip()}\n```")


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_says_what_it_does(name: str) -> None:
    for parameter in cli.commands[name].params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_a_verb_phrase_and_examples(name: str) -> None:
    text = cli.commands[name].help or ""
    first = text.splitlines()[0]
    assert re.match(r"[A-Z][a-z]+ ", first)
    assert f"klcli {name} " in text
