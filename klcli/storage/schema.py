"""What JSON that was read must look like: checked once, so that whoever uses it can rely on it.

A *check* is a function that is given a value and the place where it stands. It raises a
``SchemaError`` that names the place, what is there, and what should be.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Check = Callable[[Any, str], None]


class SchemaError(ValueError):
    """A value is not what should stand in its place."""


def _refuse(value: Any, where: str, wanted: str) -> None:
    shown = json.dumps(value, default=str)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise SchemaError(f"{where or 'it'} is {shown} and should be {wanted}")


def _kind(wanted: str, holds: Callable[[Any], bool]) -> Check:
    def check(value: Any, where: str) -> None:
        if not holds(value):
            _refuse(value, where, wanted)

    return check


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("inf", "-inf")
    return type(value) is int or (type(value) is float and math.isfinite(value))


text = _kind("text", lambda value: isinstance(value, str))
flag = _kind("true or false", lambda value: isinstance(value, bool))
count = _kind("a whole number, 0 or more", lambda value: type(value) is int and value >= 0)
positive = _kind("a whole number, 1 or more", lambda value: type(value) is int and value >= 1)
integer = _kind("a whole number", lambda value: type(value) is int)
number = _kind("a number", _is_number)
"""A number as a report has it: infinity is the string "inf"."""
factor = _kind("a number above 0", lambda value: _is_number(value) and 0 < float(value) < math.inf)
table = _kind("an object", lambda value: isinstance(value, Mapping))


def word(*words: str) -> Check:
    """One of some words."""
    return _kind(f"one of {', '.join(words)}", lambda value: value in words)


def name(pattern: str) -> Check:
    """A name that matches a pattern as a whole."""

    def holds(value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch(pattern, value) is not None

    return _kind(f"a name like {pattern}", holds)


sha256 = name("[0-9a-f]{64}")


def maybe(check: Check) -> Check:
    """A value, or null."""

    def checked(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return checked


def either(first: Check, second: Check) -> Check:
    """What one of two checks lets pass; the second says what should be."""

    def check(value: Any, where: str) -> None:
        try:
            first(value, where)
        except SchemaError:
            second(value, where)

    return check


def items(check: Check, *, least: int = 0) -> Check:
    """A list of so many items at least."""

    def checked(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            _refuse(value, where, f"a list of {least} or more")
        for place, item in enumerate(value):
            check(item, f"{where}[{place}]")

    return checked


def pair(first: Check, second: Check) -> Check:
    """A list of two."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) != 2:
            _refuse(value, where, "a list of two")
        first(value[0], f"{where}[0]")
        second(value[1], f"{where}[1]")

    return check


def each(check: Check, *, key: Check = text, needs: Sequence[str] = ()) -> Check:
    """An object whose names and values all pass a check each, and that has the names it needs."""

    def checked(value: Any, where: str) -> None:
        table(value, where)
        _hold_names(value, needs, where)
        for found, item in value.items():
            key(found, f"a name in {where}")
            check(item, f"{where}.{found}")

    return checked


def fields(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with the fields that are needed, and perhaps the optional ones; others pass."""
    known = {**needed, **(optional or {})}

    def check(value: Any, where: str) -> None:
        table(value, where)
        _hold_names(value, needed, where)
        for found in known.keys() & value.keys():
            known[found](value[found], f"{where}.{found}".removeprefix("."))

    return check


def _hold_names(value: Mapping[str, Any], needed: Iterable[str], where: str) -> None:
    if missing := [wanted for wanted in needed if wanted not in value]:
        raise SchemaError(f"{where or 'it'} has no {missing[0]!r}")
