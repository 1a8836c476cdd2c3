"""Numbers as JSON has them, and back: it knows neither infinities nor NaN."""

import math
from collections.abc import Mapping
from typing import Any

from klcli.judge.intervals import Metric


def to_plain(value: Any) -> Any:
    """A value as JSON has it: infinities as "inf" and "-inf", NaN as None."""
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def known(x: float) -> float | None:
    """A number of Python's own, None for NaN."""
    return None if math.isnan(x) else float(x)


def number(value: Any) -> float | None:
    """A number that was read from JSON."""
    return {"inf": math.inf, "-inf": -math.inf}.get(value, value) if value is not None else None


def numbers(data: Mapping[str, Any]) -> dict[str, float | None]:
    """Named numbers that were read from JSON."""
    return {name: number(value) for name, value in data.items()}


def metrics_of(data: Mapping[str, Any]) -> dict[str, Metric]:
    """Metrics that were read from JSON, each with its fields."""
    return {name: numbers(metric) for name, metric in data.items()}
