"""The numbers that come first, under the names that gates use, and what qualifies each of them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from klcli.errors import Notice, UsageError
from klcli.judge.difference import times_the_noise
from klcli.judge.gate import Gate, GateResult, Verdict
from klcli.judge.grammar import parse_gate
from klcli.judge.intervals import Metric
from klcli.judge.metrics import METRICS, fields_of
from klcli.judge.report import Report
from klcli.render.gate_words import distance
from klcli.render.numbers import apart, decimals_for, estimate, figure
from klcli.render.summary import CHANCE, at_least, is_masked

_QUALIFIES: Mapping[str, tuple[str, ...]] = {
    "concentrated": ("kl",),
    "lower_bounds": ("kl",),
    "noisy_model": ("kl", "perplexity"),
    "padded_mass": ("kl", "perplexity"),
    "rows_off_by_one": ("kl", "perplexity"),
    "same_model": ("kl",),
    "truncated": ("kl",),
    "infinite": ("kl", "perplexity"),
    "unknown_tokens": ("bits_per_byte",),
    "unlisted_targets": ("perplexity_ratio", "perplexity", "kl"),
}
"""The numbers that each notice is about; it stands beneath the first of them that is shown."""

_DOUBLED = 2.0
"""A ratio from which on it is said as a factor, not in percent."""
_SURE = 1e-16
"""The least p-value that is a number worth telling."""


@dataclass(frozen=True, slots=True)
class Headline:
    """A number with its interval and what goes with it, in parts that a line may break between.

    ``limits`` are parts of their own: what became of the gate, and what is said.
    """

    name: str
    parts: Sequence[str]
    limits: Sequence[tuple[Verdict, str]]
    warnings: Sequence[str]


def headlines(report: Report) -> list[Headline]:
    """The numbers of the first screen; those that are not known are left out, but for the KL."""
    shown = _parts(report)
    return [
        Headline(name, parts, list(_limits(report, name)), _about(report, name, shown))
        for name, parts in shown.items()
    ]


def other_warnings(report: Report) -> list[Notice]:
    """The warnings that are about none of these numbers."""
    shown = _parts(report)
    return [one for one in report.warnings if _home(one, shown) is None]


def _parts(report: Report) -> dict[str, list[str]]:
    says = _COMPARED if report.command == "compare" else _SINGLE
    found = {name: list(say(report, report.metrics[name])) for name, say in says.items()}
    return {name: parts for name, parts in found.items() if parts}


def _home(warning: Notice, shown: Mapping[str, object]) -> str | None:
    return next((name for name in _QUALIFIES.get(warning.code, ()) if name in shown), None)


def _about(report: Report, name: str, shown: Mapping[str, object]) -> list[str]:
    return [one.message for one in report.warnings if _home(one, shown) == name]


def _kl(report: Report, metric: Metric) -> Iterator[str]:
    yield _nats(report, "kl", metric)
    times = times_the_noise(report)
    if times is None:
        return
    is_still = report.noise_floor is not None and report.noise_floor["kl"] == 0
    yield "noise floor 0" if is_still else f"{figure(times)} × the noise floor"


def _nll(report: Report, metric: Metric) -> Iterator[str]:
    if metric["mean"] is not None:
        yield _nats(report, "nll", metric)


def _nats(report: Report, name: str, metric: Metric) -> str:
    if metric["mean"] is None:
        return "not known"
    unit = "nats a masked token" if is_masked(report) else "nats a token"
    return f"{at_least(report, name)}{_plus_minus(metric)} {unit}"


def _plus_minus(metric: Metric) -> str:
    """A mean with ± where its interval reaches as far to both sides."""
    mean, low, high = metric["mean"], metric["ci_low"], metric["ci_high"]
    said = estimate(mean, low, high)
    if not said.interval or mean is None or low is None or high is None:
        return said.number
    half = (high - low) / 2
    if "e" in said.number or not math.isclose(mean - low, half, rel_tol=0.02):
        return f"{said.number} ({said.interval})"
    return f"{said.number} ± {half:.{decimals_for(half, 2)}f}"


def _perplexity_ratio(report: Report, metric: Metric) -> Iterator[str]:
    ratio, low, high = metric["value"], metric["ci_low"], metric["ci_high"]
    sides = [report.metrics[f"perplexity_{side}"]["value"] for side in ("reference", "candidate")]
    if ratio is None:
        return
    if not math.isfinite(ratio) or ratio >= _DOUBLED:
        change = f"{_with_interval(ratio, low, high)}".replace(" (", " × (", 1)
        change = change if "×" in change else f"{change} ×"
    else:
        least, most = (None if end is None else end - 1 for end in (low, high))
        change = _percent(ratio - 1, least, most, sign="+")
    yield f"{_told_apart(*sides)}, {change}"
    yield from _pseudo(report)


def _told_apart(one: float | None, other: float | None) -> str:
    """Two numbers in three digits, or up to six where they would read alike and are not."""
    if one is None or other is None:
        return f"{figure(one)} → {figure(other)}"
    for digits in range(3, 7):
        shown = [figure(x, digits) for x in (one, other)]
        if one == other or shown[0] != shown[1]:
            break
    return " → ".join(shown)


def _perplexity(report: Report, metric: Metric) -> Iterator[str]:
    for said in _value(report, metric):
        yield said
        yield from _pseudo(report)


def _pseudo(report: Report) -> Iterator[str]:
    if is_masked(report):
        yield "pseudo-perplexity: every token was hidden"


def _value(_report: Report, metric: Metric) -> Iterator[str]:
    if metric["value"] is not None:
        yield _with_interval(metric["value"], metric["ci_low"], metric["ci_high"])


def _share(_report: Report, metric: Metric) -> Iterator[str]:
    if metric["value"] is not None:
        yield _percent(metric["value"], metric["ci_low"], metric["ci_high"], most=100)


def _with_interval(x: float | None, low: float | None, high: float | None) -> str:
    said = estimate(x, low, high)
    return f"{said.number} ({said.interval})" if said.interval else said.number


def _percent(
    x: float | None, low: float | None, high: float | None, sign: str = "", most: float = math.inf
) -> str:
    """A share in percent with its interval; one that is not ``most`` never reads as that."""
    share, *ends = (None if one is None else 100 * one for one in (x, low, high))
    said = estimate(share, ends[0], ends[1], sign)
    number = said.number
    if share is not None and most <= float(number.replace(",", "")):
        number = apart(share, most, 3)
    return f"{number} % ({said.interval})" if said.interval else f"{number} %"


def _flips(_report: Report, metric: Metric) -> Iterator[str]:
    lost, gained, net, p = (metric[field] for field in ("lost", "gained", "net", "p"))
    if lost is None or gained is None or net is None:
        return
    said = f"{lost:,.0f} lost, {gained:,.0f} gained"
    if p is None:
        yield said
        return
    way = "no direction" if p > CHANCE else "better" if net > 0 else "worse"
    yield f"{said}: {way} (p {f'below {_SURE:g}' if p < _SURE else f'{p:.2g}'})"
    yield f"net {_percent(net, metric['net_low'], metric['net_high'], sign='+')}"


Say = Callable[[Report, Metric], Iterator[str]]

_COMPARED: Mapping[str, Say] = {
    "kl": _kl,
    "perplexity_ratio": _perplexity_ratio,
    "top1_agreement": _share,
    "flips": _flips,
}
_SINGLE: Mapping[str, Say] = {"perplexity": _perplexity, "nll": _nll, "bits_per_byte": _value}


def _limits(report: Report, name: str) -> Iterator[tuple[Verdict, str]]:
    """The limits of gates on the number that is shown."""
    metrics = fields_of(paired=report.command == "compare")
    for result in report.gates:
        try:
            gate = parse_gate(result.gate, metrics)
        except UsageError:  # in a file that somebody made
            continue
        if gate.of is None and gate.metric == name and gate.field in ("mean", "value", "net"):
            yield result.verdict, _limit(gate, result)


def _limit(gate: Gate, result: GateResult) -> str:
    is_share = METRICS[gate.metric].is_share
    limit = f"limit {100 * result.limit:.6g} %" if is_share else f"limit {result.limit:.6g}"
    if result.verdict != "fail" or result.value is None or math.isnan(result.limit):
        return limit
    return f"{limit}, {distance(result.value, result.limit)}"
