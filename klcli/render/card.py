"""A report as an entry of a model card: the ``model-index`` of the Hugging Face Hub, in YAML.

Every metric carries what it takes to understand it and to measure it again: its unit, the
reference, the text, the protocol, the interval, and the version and signature of klcli.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TextIO

import yaml

from klcli.judge.intervals import Metric
from klcli.judge.metrics import METRICS
from klcli.judge.plain import to_plain
from klcli.judge.report import Command, Report
from klcli.render import summary
from klcli.render.models import name_of, short_names
from klcli.render.text import visible
from klcli.render.view import DEFAULT_VIEW, View


class Number(NamedTuple):
    """A field of a metric."""

    metric: str
    field: str


_NUMBERS: Mapping[Command, tuple[Number, ...]] = {
    "compare": (
        Number("kl", "mean"),
        Number("kl", "p99"),
        Number("perplexity_ratio", "value"),
        Number("top1_agreement", "value"),
    ),
    "perplexity": (
        Number("perplexity", "value"),
        Number("nll", "mean"),
        Number("bits_per_byte", "value"),
    ),
}
"""What a card says of a report, by its command."""

_LIKELIHOODS = ("nll", "perplexity", "bits_per_byte")
_DIRECTION = "KL(reference‖candidate)"


def render_card(report: Report, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write one entry: what was measured of the candidate, or of the one model. No unknown number.

    As in the JSON report infinity is the string "inf".
    """
    entry = {"name": _model_name(report), "results": [_result(report)]}
    yaml.safe_dump(
        {"model-index": [entry]}, stream, sort_keys=False, allow_unicode=True, width=1000
    )


def _model_name(report: Report) -> str:
    common, names = short_names(report.models)
    return " ".join(filter(None, [common, [*names.values()][-1]]))


def _result(report: Report) -> dict[str, Any]:
    kind = "fill-mask" if summary.is_masked(report) else "text-generation"
    names = [visible(corpus.name, keep_spaces=True) for corpus in report.corpora]
    return {
        "task": {"type": kind},
        "dataset": {"type": "text", "name": ", ".join(names) or "the tokens of the logits"},
        "metrics": [to_plain(metric) for metric in _metrics(report)],
    }


def _metrics(report: Report) -> Iterator[dict[str, Any]]:
    for number in _NUMBERS[report.command]:
        metric = report.metrics[number.metric]
        value = metric[number.field]
        if to_plain(value) is not None:
            yield {
                "type": number.metric,
                "name": _name(report, number),
                "value": value,
                "args": _arguments(report, number, metric),
            }


def _name(report: Report, number: Number) -> str:
    """What a number is called; a likelihood of masked tokens is a pseudo one."""
    label = METRICS[number.metric].label
    if summary.is_masked(report) and number.metric.startswith(_LIKELIHOODS):
        label = f"pseudo-{label}"
    return label if number.field == "value" else f"{label}, {number.field}"


def _arguments(report: Report, number: Number, metric: Metric) -> dict[str, Any]:
    """All that a number means and comes from; what is not known is left out."""
    name = "ci" if number.field in ("mean", "value") else number.field
    found: dict[str, Any] = {
        "field": number.field,
        "unit": METRICS[number.metric].unit,
        "better": METRICS[number.metric].better,
        "lower_bound": number.metric in report.lower_bounds or None,
        "interval_95": [metric.get(f"{name}_low"), metric.get(f"{name}_high")],
        "direction": _DIRECTION if number.metric == "kl" else None,
        "reference": name_of(report.models["reference"]) if report.command == "compare" else None,
        "tokens": report.counts["tokens"],
        "corpus": [_corpus(report, place) for place in range(len(report.corpora))],
        "protocol": report.protocol["name"],
        "context": report.protocol.get("context"),
        "klcli": report.environment.get("klcli"),
        "signature": visible(report.signature, keep_spaces=True),
    }
    return {key: one for key, one in found.items() if one not in (None, [], [None, None])}


def _corpus(report: Report, place: int) -> dict[str, Any]:
    corpus = report.corpora[place]
    return {"name": visible(corpus.name, keep_spaces=True), "sha256": corpus.sha256}
