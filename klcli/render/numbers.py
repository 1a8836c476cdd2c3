"""Numbers as a reader wants them: rounded, short, and never longer than a column."""

import math
from typing import NamedTuple

ABSENT = "–"
"""Stands for what is not known."""

_MOST_DECIMALS = 6
_LEAST_FIXED, _LEAST_LARGE = 1e-4, 1e6
"""From where to where numbers are written without an exponent."""


def number(x: float | None) -> str:
    """``x`` to three to five significant digits, in at most nine characters."""
    if x is None or math.isnan(x):
        return ABSENT
    if x == 0 or not math.isfinite(x):
        return f"{x:.0f}"
    if not _LEAST_FIXED <= abs(x) < _LEAST_LARGE:
        return f"{x:.2e}"
    exponent = math.floor(math.log10(abs(x)))
    wanted = (4 if exponent >= 0 else 3) - exponent
    return f"{x:.{min(max(wanted, 0), _MOST_DECIMALS)}f}"


def figure(x: float | None, digits: int = 3) -> str:
    """``x`` to so many significant digits: for a sentence, not a column."""
    if x is None or math.isnan(x):
        return ABSENT
    if x == 0 or not math.isfinite(x):
        return f"{x:.0f}"
    if not _LEAST_FIXED <= abs(x) < _LEAST_LARGE:
        return f"{x:.{digits - 1}e}"
    return f"{x:,.{decimals_for(x, digits)}f}"


def decimals_for(x: float, digits: int) -> int:
    """How many decimals give ``x`` so many significant digits, once it is rounded."""
    exponent = int(f"{x:.{digits - 1}e}".split("e")[1])
    return max(digits - 1 - exponent, 0)


def percent(share: float | None) -> str:
    """A share in percent, without the sign: 0.25 is ``25.000``."""
    return number(None if share is None else 100 * share)


def fixed(x: float | None, places: int, width: int) -> str:
    """``x`` with so many decimals, or fewer where it would be wider than ``width``."""
    if x is None or math.isnan(x):
        return ABSENT
    for fewer in range(places, 0, -1):
        if len(text := f"{x:.{fewer}f}") <= width:
            return text
    return f"{x:.0f}"


def count(n: int | None, one: str = "") -> str:
    """``1,234``, with what is counted behind it: ``1 document``, ``2 documents``."""
    digits = ABSENT if n is None else f"{n:,}"
    return f"{digits} {one if n == 1 or not one else f'{one}s'}".rstrip()


def apart(value: float | None, limit: float, least: int = 5) -> str:
    """A value in so many digits that it stands to ``limit`` in print as it does in truth."""
    if value is None or math.isnan(value):
        return ABSENT
    for digits in range(least, 18):
        text = f"{value:.{digits}g}"
        shown = float(text)
        if (shown < limit, shown > limit) == (value < limit, value > limit):
            return text
    return repr(value)


class Estimate(NamedTuple):
    """A number as it is said, and its interval."""

    number: str
    interval: str


def estimate(x: float | None, low: float | None, high: float | None, sign: str = "") -> Estimate:
    """A number with the ends of its interval, each in as many digits as the interval deserves.

    The ends have two significant digits of half its width. The number has at least three of its
    own, unless it is lost within the interval, and at most five.
    """
    if (
        x is None
        or low is None
        or high is None
        or not 0 < high - low < math.inf
        or not math.isfinite(x)
    ):
        return Estimate(_signed(figure(x), sign), "")
    half = (high - low) / 2
    if not _LEAST_FIXED <= max(abs(x), half) < _LEAST_LARGE:
        return Estimate(f"{x:{sign}.2e}", f"{low:{sign}.2e} to {high:{sign}.2e}")
    decimals = decimals_for(half, 2)
    ends = " to ".join(f"{end:{sign},.{decimals}f}" for end in (low, high))
    if x == 0:
        return Estimate("0", ends)
    least, most = decimals_for(x, 1 if half > abs(x) else 3), decimals_for(x, 5)
    return Estimate(f"{x:{sign},.{min(max(decimals, least), most)}f}", ends)


def _signed(text: str, sign: str) -> str:
    return f"+{text}" if sign and text[0].isdigit() and float(text.replace(",", "")) > 0 else text


def duration(seconds: float) -> str:
    """``4 s``, ``5m08s``, ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1g} s" if seconds < 1 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02}m" if hours else f"{minutes}m{rest:02}s"
