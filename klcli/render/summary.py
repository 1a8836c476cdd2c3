"""What of a report is shown to people, as plain cells: one choice for terminal and Markdown.

All text of models, corpora and users in it is visible (see ``text``); what a format needs escaped
besides is for that format to escape.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from klcli.errors import KlcliError
from klcli.judge.gate import Verdict
from klcli.judge.intervals import Metric
from klcli.judge.metrics import METRICS
from klcli.judge.report import Report, Tokens
from klcli.judge.text_results import CorpusResult, Group, Interval, Macro
from klcli.render.gate_words import gate_words
from klcli.render.models import details_of, name_of
from klcli.render.numbers import ABSENT, apart, count, number, percent
from klcli.render.text import visible
from klcli.render.view import View, missing_slices


class Fact(NamedTuple):
    """A line of the heading: what it is about, a name that somebody gave, and what klcli says."""

    about: str
    name: str
    details: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first column, and the first head, say what the rows are about."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class GateLine(NamedTuple):
    """A gate: its verdict, the limit as it was given, the value, and perhaps why."""

    verdict: Verdict
    gate: str
    value: str
    reason: str

    @property
    def measured(self) -> str:
        """The value and why, as far as they are known."""
        return ", ".join(one for one in (self.value, self.reason) if one not in ("", ABSENT))


SPREAD = {
    "mean": "mean", "ci_low": "95 % low", "ci_high": "95 % high", "median": "median",
    "p90": "p90", "p95": "p95", "p99": "p99", "p999": "p99.9", "max": "max",
}  # fmt: skip
"""Fields of a metric that has a mean, in the order in which they are shown, and their heads."""

_IMPORTANCE = ("mean", "ci_low", "ci_high", "median", "max", "p99", "p95", "p90", "p999")

_NATS = ("kl", "kl_reverse", "jsd", "nll", "nll_reference", "nll_candidate", "nll_difference",
         "entropy")  # fmt: skip
_SHARES = ("tv", "delta_p", "overlap_5")
_VALUES = ("perplexity_reference", "perplexity_candidate", "perplexity_ratio",
           "bits_per_byte_reference", "bits_per_byte_candidate", "word_perplexity",
           "byte_perplexity", "top1_agreement", "delta_p_rms")  # fmt: skip

_VALUE = {"value": "value", "ci_low": "95 % low", "ci_high": "95 % high"}

_COMPARE_CORPUS = {
    "KL mean": ("kl", "mean"),
    "95 % low": ("kl", "ci_low"),
    "95 % high": ("kl", "ci_high"),
    "PPL ref": ("perplexity_reference", "value"),
    "PPL cand": ("perplexity_candidate", "value"),
    "top-1 %": ("top1_agreement", "value"),
}
_PERPLEXITY_CORPUS = {
    "NLL": ("nll", "mean"),
    "perplexity": ("perplexity", "value"),
    "95 % low": ("perplexity", "ci_low"),
    "95 % high": ("perplexity", "ci_high"),
    "bits/byte": ("bits_per_byte", "value"),
}

FINDINGS = "Why they differ"
"""What stands over the findings."""

CHANCE = 0.05
"""A p-value above which a direction is taken for chance: its 95 % interval holds 0."""

_PSEUDO = {"NLL": "pseudo-NLL", "perplexity": "pseudo-perplexity", "PPL": "pseudo-PPL"}
"""What is called another name where tokens were masked (Salazar et al. 2020)."""

_PROTOCOL = {
    "context": "context",
    "stride": "stride",
    "score_from": "scored from",
    "bos": "BOS",
    "pll": "PLL",
    "mask_every": "hidden at once: every",
    "limit": "limit",
}


def title(report: Report) -> str:
    """What was measured, with its direction and unit."""
    if report.command == "compare":
        bound = ", a lower bound" if "kl" in report.lower_bounds else ""
        hidden = ", at every masked token" if is_masked(report) else ""
        return f"KL(reference ‖ candidate), in nats{bound}{hidden}"
    return "Pseudo-perplexity" if is_masked(report) else "Perplexity"


def is_masked(report: Report) -> bool:
    """Whether masked models were scored: likelihood and perplexity are then pseudo ones."""
    return report.protocol.get("name") == "masked"


def facts(report: Report) -> list[Fact]:
    """Which models read which text, and how."""
    return [
        *model_facts(report.models),
        *_corpus_fact(report.corpora),
        Fact("windows", "", windows_of(report.protocol)),
        Fact("scored", "", _counts(report.counts)),
        *(Fact("read", "", message) for message in information(report)),
        *_shard_fact(report.shard),
    ]


def model_facts(models: Mapping[str, Mapping[str, Any]]) -> list[Fact]:
    """Which models they are, and how they ran."""
    return [Fact(role, name_of(model), details_of(model)) for role, model in models.items()]


def _shard_fact(shard: str | None) -> list[Fact]:
    return [] if shard is None else [Fact("shard", "", f"{shard} of a run, not the whole text")]


def most_important(columns: int) -> list[str]:
    """So many fields of a spread, the most important ones, in the order of ``SPREAD``."""
    return [field for field in SPREAD if field in _IMPORTANCE[:columns]]


def spread_tables(report: Report, fields: Sequence[str]) -> list[Table]:
    """Mean, interval and quantiles over the tokens: a table in nats and one in percent."""
    heads = {field: SPREAD[field] for field in fields}
    tables = [
        _metric_table(report.metrics, "nats per token", _labels(report, _NATS), heads),
        _metric_table(report.metrics, "% per token", _labels(report, _SHARES), heads),
    ]
    return [table for table in tables if table.rows]


def at_least(report: Report, metric: str) -> str:
    """What goes before a metric that is only known to be at least what is shown."""
    return "≥ " if metric in report.lower_bounds else ""


def _labels(report: Report, names: Iterable[str]) -> dict[str, str]:
    return {
        name: f"{at_least(report, name)}{pseudo(report, METRICS[name].label)}" for name in names
    }


def pseudo(report: Report, label: str) -> str:
    """A label; a pseudo-likelihood is called by that name."""
    if not is_masked(report):
        return label
    for word, name in _PSEUDO.items():
        label = label.replace(word, name)
    return label


def value_table(report: Report) -> Table:
    """Numbers of which the text has one, with the interval where there is one."""
    labels = {
        name: f"{label}, %" if METRICS[name].is_share else label
        for name, label in _labels(report, _VALUES).items()
    }
    return _metric_table(report.metrics, "whole text", labels, _VALUE)


def corpus_table(report: Report) -> Table | None:
    """A row for each corpus and one for all; for a comparison only where there are several."""
    if report.command == "compare" and len(report.corpora) < 2:
        return None
    return headline_table(report)


def headline_table(report: Report) -> Table:
    """The numbers that most people ask for: a row for each corpus, and one for all of several."""
    means = _macro_rows(report, "mean of corpora", report.macro, report.macro_intervals)
    return _texts_table(report, "corpus", report.corpora, means)


def group_table(report: Report) -> Table | None:
    """The same for each group of documents; None where there are no groups."""
    groups = report.groups
    if groups is None:
        return None
    means = _macro_rows(report, "mean of groups", groups.macro, groups.macro_intervals)
    return _texts_table(report, visible(groups.field, keep_spaces=True), groups.groups, means)


def text_tables(report: Report) -> list[Table]:
    """The tables of corpora and of groups, where there are several corpora, or any groups."""
    found = [corpus_table(report), group_table(report)]
    return [table for table in found if table is not None]


def _texts_table(
    report: Report, about: str, texts: Sequence[CorpusResult | Group], means: Iterable[list[str]]
) -> Table:
    columns = _columns(report)
    rows = [_corpus_row(visible(one.name, keep_spaces=True), one, columns) for one in texts]
    if len(rows) != 1:
        rows.append(_corpus_row("all tokens", report, columns))
    heads = [
        f"{at_least(report, metric)}{pseudo(report, head)}" for head, (metric, _) in columns.items()
    ]
    return Table(head=[about, "tokens", *heads], rows=[*rows, *means])


def _columns(report: Report) -> Mapping[str, tuple[str, str]]:
    return _COMPARE_CORPUS if report.command == "compare" else _PERPLEXITY_CORPUS


def warnings(report: Report, view: View) -> list[str]:
    """The warnings of a report, and those about what of it is shown."""
    warned = [one.message for one in report.warnings if one.is_warning]
    return [*warned, *missing_slices(report, view)]


def information(report: Report) -> list[str]:
    """How the data was read, where that is not plain."""
    return [one.message for one in report.warnings if not one.is_warning]


def flips(report: Report) -> list[str]:
    """How often only one of the models predicts the text's own token first, and the direction."""
    metric = report.metrics.get("flips")
    if metric is None or metric["net"] is None:
        return []
    lost, gained, net = metric["lost"], metric["gained"], metric["net"]
    volume = f"{100 * (metric['volume'] or 0):.4g} %{_ends(metric, 'volume', '')}"
    return [
        f"Flips of the right token: {lost:.0f} lost, {gained:.0f} gained, {volume}",
        f"Net {100 * net:+.4g} %{_ends(metric, 'net', '+')}{_direction(net, metric['p'])}",
    ]


def _ends(metric: Metric, field: str, sign: str) -> str:
    """The ends of an interval in percent, in brackets; nothing where they are not known."""
    ends = (metric.get(f"{field}_low"), metric.get(f"{field}_high"))
    known = [f"{100 * end:{sign}.3g}" for end in ends if end is not None]
    return f" ({known[0]} to {known[1]})" if len(known) == len(ends) else ""


def _direction(net: float, p: float | None) -> str:
    """What the net flips say of the change, unless chance alone would do as much."""
    if p is None:
        return ""
    said = "shows no direction" if p > CHANCE else "helps" if net > 0 else "hurts"
    return f", p {p:.2g}: the change {said}"


def remarks(report: Report) -> list[str]:
    """What is to be said about how much was measured, and how finely."""
    return [*until_remarks(report), *_noise_floor(report)]


def findings(report: Report) -> list[str]:
    """Why the models differ, each with its evidence."""
    return [visible(one.message, keep_spaces=True) for one in report.findings]


def until_remarks(report: Report) -> list[str]:
    """How much of the text a run needed that was to end early, and what is known of the whole."""
    return list(_until(report.until)) if report.until is not None else []


def _until(until: Mapping[str, Any]) -> Iterable[str]:
    share = until["tokens"] / until["tokens_in_all"]
    reached = "" if until["reached"] else ", not reached"
    yield (
        f"Until {visible(until['goal'])}{reached}: {until['windows']:,} of "
        f"{until['windows_in_all']:,} windows, {share:.0%} of the tokens, were read. For this "
        f"text, with {100 * until['confidence']:.4g} % confidence:"
    )
    for metric, band in until["bands"].items():
        low, high = number(band["low"]), number(band["high"])
        yield f"  {metric} of the whole text lies in {low} to {high} ({band['method']})"


def _noise_floor(report: Report) -> Iterable[str]:
    floor, kl = report.noise_floor, report.metrics.get("kl", {}).get("mean")
    if floor is None or kl is None:
        return
    start = f"Noise floor (reference against itself, other {floor['by']}): KL {number(floor['kl'])}"
    if floor["kl"] == 0:
        yield f"{start}: the reference agrees with itself exactly, so any difference is real"
    elif kl <= floor["kl"]:
        yield f"{start}: this KL is below it, so there is nothing to see"
    else:
        yield f"{start}: this KL is {kl / floor['kl']:,.3g} times that"


def gate_lines(report: Report) -> list[GateLine]:
    """The gates in the order in which they were given."""
    return [
        GateLine(
            verdict=gate.verdict,
            gate=visible(gate.gate.strip(), keep_spaces=True),
            value=apart(gate.value, gate.limit, 3),
            reason=visible(gate_words(gate), keep_spaces=True),
        )
        for gate in report.gates
    ]


def outlier_heading(report: Report) -> str:
    """How the outliers are ordered, and how many tokens stand out in all."""
    flagged = count(report.counts.get("outliers"))
    return f"Outliers by KL; * stands out among tokens of like confidence ({flagged} do)"


def scored_tokens(report: Report) -> Tokens:
    """Every scored token.

    Raises:
        KlcliError: the report was read from a file, which holds none.
    """
    if report.tokens is None:
        raise KlcliError(
            "this report was read from a file, which holds no single tokens: "
            "run the comparison again to list them"
        )
    return report.tokens


def _corpus_fact(corpora: Sequence[CorpusResult]) -> Iterable[Fact]:
    if len(corpora) == 1:
        yield Fact("corpus", visible(corpora[0].name, keep_spaces=True), "")
    elif corpora:
        yield Fact("corpora", "", f"{len(corpora)}, listed below")


def windows_of(protocol: Mapping[str, object]) -> str:
    """How the text was cut."""
    settings = [
        f"{word} {protocol[key]}"
        for key, word in _PROTOCOL.items()
        if protocol.get(key) is not None
    ]
    return visible(", ".join([str(protocol["name"]), *settings]), keep_spaces=True)


def _counts(counts: Mapping[str, int | None]) -> str:
    parts = [count(counts["tokens"], "token")]
    parts += [count(counts[f"{one}s"], one) for one in ("window", "document")]
    parts += [count(counts["bytes"], "byte")] if counts["bytes"] is not None else []
    parts += [f"{count(counts[what])} {what}" for what in ("excluded", "infinite") if counts[what]]
    return ", ".join(parts)


def _metric_table(
    metrics: Mapping[str, Metric], head: str, names: Mapping[str, str], heads: Mapping[str, str]
) -> Table:
    rows = [
        [label, *(_cell(name, metrics[name][field]) for field in heads)]
        for name, label in names.items()
        if name in metrics
    ]
    return Table(head=[head, *heads.values()], rows=rows)


def _corpus_row(
    name: str, result: CorpusResult | Group | Report, columns: Mapping[str, tuple[str, str]]
) -> list[str]:
    cells = [_cell(metric, result.metrics[metric][field]) for metric, field in columns.values()]
    return [name, count(result.counts["tokens"]), *cells]


def _macro_rows(
    report: Report, name: str, macro: Macro | None, intervals: Mapping[str, Interval] | None
) -> Iterator[list[str]]:
    """Means of the means of several texts, with their intervals where the report has them."""
    if macro is None:
        return
    cells = []
    for metric, field in _columns(report).values():
        ends = (intervals or {}).get(metric, {})
        value = macro.get(metric) if field in ("mean", "value") else ends.get(field)
        cells.append(_cell(metric, value))
    yield [name, "", *cells]


def _cell(metric: str, value: float | None) -> str:
    return percent(value) if METRICS[metric].is_share else number(value)
