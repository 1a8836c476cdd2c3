"""How a gate is written: ``kl.p99<=0.5``, ``top1_agreement>=98%``, ``kl<1.1*baseline``.

A metric, perhaps a field, one of ``<= >= < >``, and a limit: a number, a percentage, or a multiple
of the baseline's. The name of one text may stand in front, with a colon: ``wiki.txt:kl<=0.1``. What
is almost a gate is refused with what was probably meant.
"""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import cast

from klcli.errors import UsageError, choose_from
from klcli.judge.gate import Gate, Operator
from klcli.judge.metrics import METRICS, QUANTILES

Fields = Mapping[str, Sequence[str]]
"""The metrics that a command knows, with their fields."""

_GATE = re.compile(r"\s*(\w+)(?:\.(\w+))?\s*(<=|>=|<|>)\s*(\S+(?:\s+%)?)\s*")
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%?)", re.ASCII)
_BASELINE = re.compile(r"(?:([^*]+)\*)?baseline")

_SHORT = re.compile(r"ppl(?=_|$)")
"""What is short for ``perplexity``."""
_PERPLEXITIES = ("perplexity_ratio", "perplexity_reference", "perplexity_candidate")
_SLIPS = {"=<": "<=", "=>": ">=", "==": "=", "≤": "<=", "≥": ">="}
"""What people write for an operator."""
_SHARES = ("mean", "value", "ci_low", "ci_high", "min", "max", "net", "volume", *QUANTILES)
"""Fields of a share that are shares themselves."""


def parse_gate(text: str, metrics: Fields) -> Gate:
    """Parse ``kl.mean<=0.01``; ``kl`` alone means ``kl.mean``, and ``98%`` is 0.98.

    ``metrics`` are the known metrics with their fields.

    Raises:
        UsageError: no gate, an unknown metric or field, or a share above 1.
    """
    of, colon, limits = text.rpartition(":")
    if colon and not of.strip():
        raise UsageError(f"--gate {text!r} has no name of a text before the colon: leave it out")
    match = _GATE.fullmatch(limits)
    limit, relative = _limit(match[4]) if match else (None, False)
    if match is None or limit is None:
        raise UsageError(
            f"--gate {text!r} is not a gate{_meant(limits, of + colon, metrics)}: write one like "
            "'kl.mean<=0.01' or 'top1_agreement>=98%', or with --baseline one like "
            "'kl.mean<=1.1*baseline'"
        )
    what = f"--gate {text!r}"
    metric = metric_named(what, match[1], metrics)
    field = field_named(what, metric, match[2], metrics[metric])
    gate = Gate(
        text=text, metric=metric, field=field, operator=cast(Operator, match[3]), limit=limit,
        relative=relative, of=of.strip() or None,
    )  # fmt: skip
    _check_share(gate, match[4])
    return gate


def metric_named(what: str, word: str, metrics: Fields) -> str:
    """The metric that a user means; ``what`` begins the message.

    Raises:
        UsageError: none, or more than one.
    """
    name = _SHORT.sub("perplexity", word)
    if name == "perplexity" and name not in metrics and _PERPLEXITIES[0] in metrics:
        raise UsageError(f"{what}: which perplexity? Write one of {', '.join(_PERPLEXITIES)}")
    if name not in metrics:
        raise UsageError(f"{what}: unknown metric {word!r}{choose_from(word, metrics)}")
    return name


def field_named(what: str, metric: str, word: str | None, fields: Sequence[str]) -> str:
    """The field of a metric that a user means: the mean or value where none is given.

    Raises:
        UsageError: there is none of that name, or one must be chosen.
    """
    if word is None and fields[0] in ("mean", "value"):
        return fields[0]
    if word is not None and word in fields:
        return word
    problem = f"has no field {word!r}" if word else "has several numbers"
    raise UsageError(f"{what}: {metric} {problem}{choose_from(word or '', fields)}")


def _check_share(gate: Gate, limit: str) -> None:
    """Refuse 98 where 98 % is meant: a share is never above 1."""
    definition = METRICS.get(gate.metric)
    is_share = definition is not None and definition.is_share and gate.field in _SHARES
    if gate.relative or not is_share or abs(gate.limit) <= 1:
        return
    name = f"{gate.metric}.{gate.field}"
    if limit.endswith("%") or abs(gate.limit) > 100:
        raise UsageError(f"--gate {gate.text!r}: {name} is a share, and never above 100% (1)")
    raise UsageError(
        f"--gate {gate.text!r}: {name} is a share, and never above 1: write {gate.limit:.12g}% or "
        f"{_percent(limit):.12g}"
    )


def _meant(text: str, of: str, metrics: Fields) -> str:
    """A gate that was probably meant, as a question; nothing where no slip explains the text.

    ``of`` stands before it.
    """
    better = "".join(text.split())
    for slip, operator in _SLIPS.items():
        better = better.replace(slip, operator)
    if match := re.fullmatch(r"([\w.]+)=([^=<>]+)", better):
        definition = METRICS.get(match[1].split(".")[0])
        operator = ">=" if definition is not None and definition.better == "higher" else "<="
        better = f"{match[1]}{operator}{match[2]}"
    if better == text:
        return ""
    try:
        parse_gate(better, metrics)
    except UsageError:
        return ""
    return f"; did you mean {of + better!r}?"


def _limit(text: str) -> tuple[float | None, bool]:
    """A number, or how many times the baseline's."""
    if match := _BASELINE.fullmatch(text):
        return (1.0 if match[1] is None else number_of(match[1])), True
    return number_of(text), False


def number_of(text: str) -> float | None:
    """A number or percentage in ASCII: Python alone would also take ``1_0`` and other digits."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    number = _percent(match[1]) if match[2] else float(match[1])
    return number if math.isfinite(number) else None


def _percent(number: str) -> float:
    """So many hundredths, rounded once: ``1.1`` is 0.011."""
    return float(Decimal(number).scaleb(-2))
