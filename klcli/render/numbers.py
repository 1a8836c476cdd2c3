"""Numbers as a reader wants them: rounded, short, and never longer than a column."""

import math

ABSENT = "–"
"""Stands for what is not known."""

_MOST_DECIMALS = 6
_LEAST_FIXED, _LEAST_LARGE = 1e-4, 1e6
"""From where to where numbers are written without an exponent."""


def number(x: float | None) -> str:
    """``x`` to three to five significant digits, in at most nine characters."""
    if x is None or math.isnan(x):
        return ABSENT
    if x == 0 or math.isinf(x):
        return f"{x:.0f}"
    if not _LEAST_FIXED <= abs(x) < _LEAST_LARGE:
        return f"{x:.2e}"
    exponent = math.floor(math.log10(abs(x)))
    wanted = (4 if exponent >= 0 else 3) - exponent
    return f"{x:.{min(max(wanted, 0), _MOST_DECIMALS)}f}"


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


def apart(value: float | None, limit: float) -> str:
    """A value in so many digits that it stands to ``limit`` in print as it does in truth."""
    if value is None or math.isnan(value):
        return ABSENT
    for digits in range(5, 18):
        text = f"{value:.{digits}g}"
        shown = float(text)
        if (shown < limit, shown > limit) == (value < limit, value > limit):
            return text
    return repr(value)


def duration(seconds: float) -> str:
    """``4 s``, ``5m08s``, ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1g} s" if seconds < 1 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02}m" if hours else f"{minutes}m{rest:02}s"
