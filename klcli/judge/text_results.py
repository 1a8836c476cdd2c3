"""What each of several texts gave by itself, as a report has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from klcli.judge.intervals import Metric
from klcli.judge.plain import metrics_of, numbers

Macro = Mapping[str, float | None]
"""Means of the means of several texts, by metric."""
Interval = Mapping[str, float | None]
"""``se``, ``ci_low`` and ``ci_high`` of a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusResult:
    """What one corpus gave by itself."""

    name: str
    sha256: str
    counts: Mapping[str, int | None]
    metrics: Mapping[str, Metric]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What the documents of one group gave by themselves."""

    name: str
    counts: Mapping[str, int | None]
    metrics: Mapping[str, Metric]


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The documents by what they have in a ``field``; ``macro`` as in a report."""

    field: str
    groups: Sequence[Group]
    macro: Macro
    macro_intervals: Mapping[str, Interval]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Groups":
        """Read what ``asdict`` made of one."""
        return cls(
            field=data["field"],
            groups=[
                Group(**{**group, "metrics": metrics_of(group["metrics"])})
                for group in data["groups"]
            ],
            macro=numbers(data["macro"]),
            macro_intervals=metrics_of(data["macro_intervals"]),
        )


def intervals_of(data: Mapping[str, Any] | None) -> dict[str, Interval] | None:
    """Intervals that were read from JSON, where there are any."""
    return None if data is None else {name: numbers(one) for name, one in data.items()}
