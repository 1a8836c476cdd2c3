"""What a user must be told: errors, notices, and the exit codes of the program.

::

    KlcliError              exit 1   something klcli was given, or ran, is wrong
    ├── CorpusError                  a text cannot be read, or holds too little to score
    ├── SourceError                  a model or logit file cannot be opened or run
    ├── MismatchError                two sides do not describe the same tokens
    ├── OutputError                  a result cannot be written
    ├── RankError                    another process of the same run ended early
    └── UsageError          exit 2   an argument that no input could make right

A message says what is wrong, with both sides' values where there are two, and what to do next.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``klcli``: a failed gate is never mistaken for a broken run."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    GATE_FAILED = 3
    GATE_INCONCLUSIVE = 4
    INTERRUPTED = 130


class KlcliError(Exception):
    """The one exception that callers of klcli need to catch.

    ``said`` is whether another process of the same run has said it already, None where all have it
    alike.
    """

    exit_code = ExitCode.ERROR
    said: bool | None = None


class CorpusError(KlcliError):
    """A text cannot be read, or holds too few tokens for the protocol."""


class SourceError(KlcliError):
    """A model or a logit file cannot be opened, or cannot be run."""


class MismatchError(KlcliError):
    """Two sides disagree on vocabulary, tokens or windows."""


class OutputError(KlcliError):
    """A result cannot be written."""


class RankError(KlcliError):
    """Another process of the same run ended early, and this one with it."""


class UsageError(KlcliError):
    """An option or argument that is wrong whatever the input holds."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that stops nothing but that a reader should know: a stable code, and advice."""

    code: str
    message: str

    @property
    def is_warning(self) -> bool:
        """Whether it says that something may be wrong, and not only what was done."""
        return self.code not in INFORMATION


INFORMATION = frozenset(
    {"fields_read", "chat_template", "calibration_checked", "greedy_answers", "documents_drawn"}
)
"""The codes of notices that only say how something was read."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one probably means."""
    words = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), words, n=1)
    return words[close[0]] if close else None


def choose_from(word: str, known: Iterable[str]) -> str:
    """What goes behind a word that is not known: the one that was probably meant, and all."""
    words = tuple(known)
    close = closest(word, words)
    listed = ", ".join(words)
    if close is None:
        return f"; use one of {listed}"
    return f"; did you mean {close!r}? Use one of {listed}"


def some_of(shown: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """The first few of what a message names, and how many more there are."""
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return between.join(shown[:most]) + more


def gist(error: BaseException) -> str:
    """The message of somebody else's error, in one line of bounded length."""
    return (" ".join(str(error).split()) or type(error).__name__)[:400]


def reason_of(error: BaseException) -> str:
    """Why something of the system or of a library failed, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return gist(error)


MEMORY_RAN_OUT = (
    "memory ran out: try --one-at-a-time, --dtype bfloat16, --device auto, or a smaller "
    "--batch-tokens"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a device or of the machine; torch has no one class for that."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "allocate memory" in text or "out of memory" in text
    )


@contextlib.contextmanager
def reading(what: str, kind: type[KlcliError] = KlcliError) -> Iterator[None]:
    """Say what was read where its reader fails: a broken file may break it in any way.

    Raises:
        KlcliError: of that kind; one that is raised inside stays as it is.
    """
    try:
        yield
    except KlcliError:
        raise
    except Exception as error:
        reason = MEMORY_RAN_OUT if is_out_of_memory(error) else reason_of(error)
        raise kind(f"cannot read {what}: {reason}") from error


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """What the system refuses, as an error of ours. It stands around whatever a user starts.

    Raises:
        KlcliError: a file cannot be reached, or memory ran out.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        raise KlcliError(": ".join([*names, reason_of(error)])) from error
    except (MemoryError, RuntimeError) as error:  # torch has no one class for it
        if not is_out_of_memory(error):
            raise
        raise KlcliError(MEMORY_RAN_OUT) from error
