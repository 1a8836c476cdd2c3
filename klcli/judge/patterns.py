"""Regular expressions that people slice by: ``NAME=PATTERN``, as ``--slice-regex`` takes them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from klcli.errors import UsageError


@dataclass(frozen=True, slots=True)
class NamedPattern:
    """A regular expression over the source text, and what its tokens are called."""

    name: str
    pattern: re.Pattern[str]


def parse_patterns(texts: Sequence[str]) -> tuple[NamedPattern, ...]:
    """Parse patterns such as ``numbers=[0-9]+``.

    Raises:
        UsageError: one has no name or is no regular expression, it can match nothing but the empty
            string, or a name is there twice.
    """
    found = tuple(map(_parse, (texts,) if isinstance(texts, str) else texts))
    names = [one.name for one in found]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise UsageError(f"--slice-regex {name!r} is there twice: give each a name of its own")
    return found


def _parse(text: str) -> NamedPattern:
    name, sign, written = text.partition("=")
    if not sign or not name.strip():
        raise UsageError(
            f"--slice-regex {text!r} has no name: write NAME=PATTERN, such as 'numbers=[0-9]+'"
        )
    try:
        pattern = re.compile(written)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"--slice-regex {text!r} is no regular expression: {error}") from error
    if _finds_nothing(written):
        raise UsageError(
            f"--slice-regex {text!r} matches the empty string only, which no token is part of: "
            "write a pattern of characters, such as '[0-9]+'"
        )
    return NamedPattern(name.strip(), pattern)


def _finds_nothing(pattern: str) -> bool:
    """Whether a pattern can match nothing but the empty string, as Python's own parser sees it."""
    parser = getattr(re, "_parser", None)
    return parser is not None and bool(parser.parse(pattern).getwidth()[1] == 0)
