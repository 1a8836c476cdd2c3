"""Answers in a file, a JSON line each, in the order of the prompts.

While they are made they stand in a file beside it, in the order in which they were made, behind a
line that says what was asked for: the same command goes on there. Only what is complete gets the
name.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klcli.errors import OutputError, reason_of
from klcli.storage.files import whole_file
from klcli.storage.places import obstacle_to

PARTIAL = ".partial"
ASKED = "klcli.answers"
"""The key of what was asked for, in the first line of the file beside it."""
REQUEST = "request"
"""The key of its hash, in each line of the complete file."""


class AnswerFile:
    """A file of answers that is being made.

    Args:
        path: where it will be.
        asked: what makes it the same one when the command is run again.

    Raises:
        OutputError: there is something else, or it cannot be written.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self._path, self._asked = path, dict(asked)
        self._beside = path.with_name(path.name + PARTIAL)
        self.made: dict[int, dict[str, Any]] = {}
        if self._beside.exists():
            self._go_on()

    def add(self, answers: Mapping[int, Mapping[str, Any]]) -> None:
        """Keep some answers, by the numbers of their prompts.

        Raises:
            OutputError: they cannot be written.
        """
        self.made |= {number: dict(answer) for number, answer in answers.items()}
        lines = "".join(_line({"number": n, **answer}) for n, answer in answers.items())
        begin = "" if self._beside.exists() else _line({ASKED: self._asked})
        try:
            with self._beside.open("a", encoding="utf-8", newline="\n") as file:
                file.write(begin + lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._cannot(error) from error

    def complete(self) -> None:
        """Give all answers their name, in order.

        Raises:
            OutputError: they cannot be written.
        """
        try:
            with whole_file(self._path) as file:
                for number in sorted(self.made):
                    file.write(_line(self.made[number]).encode())
            self._beside.unlink(missing_ok=True)
        except OSError as error:
            raise self._cannot(error) from error

    def _cannot(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._path}: {reason_of(error)}")

    def _go_on(self) -> None:
        """Read what an earlier process made; a line that it did not finish is cut off."""
        try:
            content = self._beside.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with self._beside.open("r+b") as file:
                    file.truncate(len(whole))
        except OSError as error:
            raise OutputError(f"cannot read {self._beside}: {reason_of(error)}") from error
        if not whole:
            self._beside.unlink()
            return
        first, *lines = whole.split(b"\n")[:-1]
        self._check_same(first)
        for number, line in enumerate(lines, start=2):
            answer = _parsed(line, self._beside, number)
            self.made[answer.pop("number")] = answer

    def _check_same(self, first: bytes) -> None:
        try:
            before = json.loads(first)[ASKED]
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{self._beside} is not of klcli: move it away") from error
        now = json.loads(_line(self._asked))
        if changed := [name for name in now if before.get(name) != now[name]]:
            shown = ", ".join(f"{n} was {before.get(n)} and is {now[n]}" for n in changed)
            raise OutputError(
                f"{self._beside} was begun with another command ({shown}): repeat that command, or "
                "remove the file"
            )


def request_of(path: Path) -> str | None:
    """By what request a complete file of answers was made; None where there is no such file."""
    try:
        with path.open(encoding="utf-8") as file:
            return str(json.loads(file.readline())[REQUEST])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The answers of a complete file.

    Raises:
        OutputError: it is damaged.
    """
    lines = path.read_bytes().split(b"\n")
    return [_parsed(line, path, number) for number, line in enumerate(lines, start=1) if line]


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "answer_ids" not in answer:
        raise OutputError(f"{path}, line {number}, is damaged: remove the file, and answer again")
    return answer


def check_place(path: Path) -> None:
    """Find out before the long work whether answers can be written to a place.

    Raises:
        OutputError: something else is there, or nothing can be written.
    """
    if path.exists() and request_of(path) is None:
        raise OutputError(f"{path} is there and holds no answers: name another file")
    if (obstacle := obstacle_to(path)) is not None:
        raise OutputError(f"cannot write {path}: {obstacle}")


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
