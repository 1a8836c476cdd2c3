"""Every metric of a report in one table: what it is, its unit, its fields, and how to read it.

P is the reference, Q the candidate, x the text's own token, N the scored tokens. Logarithms are
natural. ``klcli explain``, gates, tables and model cards all take their words from here.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from klcli.judge.intervals import ERROR_FIELDS, UNBOUNDED, Bounds

Better = Literal["lower", "higher", "neither"]
Unit = Literal["nats per token", "share", "bits per byte", "tokens", "ratio", "perplexity"]

QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}


def _with_ends(names: Iterable[str]) -> tuple[str, ...]:
    """Each name, followed by those of the ends of its interval."""
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


MEAN_FIELDS = ("mean", *ERROR_FIELDS, "min", "max", *_with_ends(QUANTILES))
VALUE_FIELDS = ("value", "se", "ci_low", "ci_high")
PROPORTION_FIELDS = ("value", *ERROR_FIELDS)
FLIP_FIELDS = ("lost", "gained", *_with_ends(("net", "volume")), "p")

_POSITIVE: Bounds = (0.0, math.inf)
_SHARE: Bounds = (0.0, 1.0)
_SIGNED: Bounds = (-1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a metric is.

    Attributes:
        name: its key in the JSON, and in gates.
        label: what tables call it.
        unit: of its numbers; a share is a fraction from 0 to 1, or a difference of two.
        better: which direction is better for the candidate, or for the one model.
        formula: plain text.
        says: what it tells, and when it misleads.
        source: where the formula comes from; empty where it needs no source.
        fields: the keys of its numbers in the JSON, the main one first.
        bounds: the least and the most that a token can count, and so a mean; of flips the net.
    """

    name: str
    label: str
    unit: Unit
    better: Better
    formula: str
    says: str
    source: str = ""
    fields: tuple[str, ...] = MEAN_FIELDS
    bounds: Bounds = UNBOUNDED

    @property
    def main_field(self) -> str:
        """The field that a gate without one means, or would name first."""
        return "net" if self.fields == FLIP_FIELDS else self.fields[0]

    @property
    def gate_name(self) -> str:
        """How a gate names its main number, as in ``kl.mean``."""
        return f"{self.name}.{self.main_field}"

    @property
    def is_share(self) -> bool:
        """Whether people read it in percent."""
        return self.unit == "share"


_SHANNON = "Shannon 1948"
_PILE = "Gao et al. 2020, The Pile"
_PPL = "Jelinek, Mercer, Bahl and Baker 1977"


def _nll(name: str, label: str, model: str) -> Definition:
    return Definition(
        name=name, label=label, unit="nats per token", better="lower", bounds=_POSITIVE,
        formula=f"−ln {model}(x), mean over the tokens",
        says="How surprised the model is by the text. Compare it only between models with one "
        "tokenizer: longer tokens cost more.",
    )  # fmt: skip


def _perplexity(name: str, label: str, nll: str) -> Definition:
    return Definition(
        name=name, label=label, unit="perplexity", better="lower", fields=VALUE_FIELDS,
        formula=f"exp(mean {nll})",
        says="Among how many equally likely tokens the model seems to choose. It depends on the "
        "tokenizer, the context and the protocol.",
        source=_PPL,
    )  # fmt: skip


def _bits(name: str, label: str, nll: str) -> Definition:
    return Definition(
        name=name, label=label, unit="bits per byte", better="lower", fields=VALUE_FIELDS,
        formula=f"Σ {nll} / (ln 2 · bytes of the scored text)",
        says="How well the model compresses the text. It can be compared between tokenizers.",
        source=_PILE,
    )  # fmt: skip


def _entropy(name: str, label: str, model: str) -> Definition:
    return Definition(
        name=name, label=label, unit="nats per token", better="neither", bounds=_POSITIVE,
        formula=f"−Σ {model.lower()} ln {model.lower()}, mean over the tokens",
        says="How unsure the model is. Low entropy is not quality: a model can be sure and wrong.",
        source=_SHANNON,
    )  # fmt: skip


def _rank(name: str, label: str, model: str) -> Definition:
    return Definition(
        name=name, label=label, unit="tokens", better="lower", bounds=_POSITIVE,
        formula=f"#{{i : {model}(i) > {model}(x)}}, mean over the tokens",
        says="How many tokens the model finds more probable than the text's own; 0 is the first "
        "choice. A few rare words carry most of the mean: look at the median.",
    )  # fmt: skip


_COMPARE = (
    Definition(
        name="kl", label="KL(ref ‖ cand)", unit="nats per token", better="lower", bounds=_POSITIVE,
        formula="KL(P‖Q) = Σ p ln(p/q), mean over the tokens",
        says="How far the candidate's predictions are from the reference's; 0 is the same. Its "
        "size depends on the text, and a small mean can hide a few tokens that are far off: look "
        "at kl.p99 too.",
        source="Kullback and Leibler 1951",
    ),
    Definition(
        name="kl_reverse", label="KL(cand ‖ ref)", unit="nats per token", better="lower",
        bounds=_POSITIVE, formula="KL(Q‖P) = Σ q ln(q/p), mean over the tokens",
        says="KL the other way round: large where the candidate expects what the reference "
        "excludes.",
        source="Kullback and Leibler 1951",
    ),
    Definition(
        name="jsd", label="Jensen–Shannon", unit="nats per token", better="lower",
        bounds=(0.0, math.log(2)), formula="½ KL(P‖M) + ½ KL(Q‖M), M = (P + Q)/2",
        says="A symmetric divergence, at most ln 2 a token. It is finite where KL is not, and "
        "hardly grows once two predictions have nothing in common.",
        source="Lin 1991",
    ),
    Definition(
        name="tv", label="total variation", unit="share", better="lower", bounds=_SHARE,
        formula="½ Σ |p − q|, mean over the tokens",
        says="The probability that the candidate puts elsewhere. 1 − tv is how often speculative "
        "decoding would accept a token.",
        source="Leviathan, Kalman and Matias 2023",
    ),
    _nll("nll_reference", "NLL reference", "P"),
    _nll("nll_candidate", "NLL candidate", "Q"),
    Definition(
        name="nll_difference", label="NLL cand − ref", unit="nats per token", better="lower",
        formula="ln P(x) − ln Q(x), mean over the tokens",
        says="By how much the text surprises the candidate more: the logarithm of the perplexity "
        "ratio. Better and worse tokens cancel out, so 0 does not mean that the models agree.",
    ),
    _perplexity("perplexity_reference", "perplexity reference", "nll_reference"),
    _perplexity("perplexity_candidate", "perplexity candidate", "nll_candidate"),
    Definition(
        name="perplexity_ratio", label="perplexity cand/ref", unit="ratio", better="lower",
        fields=VALUE_FIELDS, formula="perplexity_candidate / perplexity_reference",
        says="1.02 is a perplexity 2 % higher. Better and worse tokens cancel out, so 1 does not "
        "mean that the models agree.",
    ),
    _bits("bits_per_byte_reference", "bits/byte reference", "nll_reference"),
    _bits("bits_per_byte_candidate", "bits/byte candidate", "nll_candidate"),
    Definition(
        name="top1_agreement", label="top-1 agreement", unit="share", better="higher",
        fields=PROPORTION_FIELDS, bounds=_SHARE, formula="share of tokens with argmax p = argmax q",
        says="How often both models have the same first choice, and so how often greedy decoding "
        "takes the same step. Near ties flip without harm.",
    ),
    Definition(
        name="overlap_5", label="top-5 overlap", unit="share", better="higher", bounds=_SHARE,
        formula="|top 5 of p ∩ top 5 of q| / 5, mean over the tokens",
        says="How much of the five most probable tokens both models share. Where a prediction is "
        "sure, the last of the five are noise.",
    ),
    Definition(
        name="delta_p", label="Δp cand − ref", unit="share", better="higher", bounds=_SIGNED,
        formula="Q(x) − P(x), mean over the tokens",
        says="How much probability the text's own token gains. Gains and losses cancel out: see "
        "delta_p_rms.",
    ),
    Definition(
        name="delta_p_rms", label="Δp RMS", unit="share", better="lower", fields=VALUE_FIELDS,
        bounds=_SHARE, formula="√ mean (Q(x) − P(x))²",
        says="The typical change in the probability of the text's own token, up or down.",
    ),
    Definition(
        name="flips", label="flips", unit="share", better="higher", fields=FLIP_FIELDS,
        bounds=_SIGNED,
        formula="net = (gained − lost) / N, volume = (gained + lost) / N",
        says="How often only one model has the text's own token as its first choice: lost if only "
        "the reference has, gained if only the candidate. A small p says that the net is more "
        "than chance; volume tells how much changed where gains and losses cancel out. Lower "
        "volume is better.",
        source="McNemar 1947; Dutta et al. 2024, Accuracy Is Not All You Need",
    ),
    _entropy("entropy_reference", "entropy reference", "P"),
    _entropy("entropy_candidate", "entropy candidate", "Q"),
    _rank("rank_reference", "rank reference", "P"),
    _rank("rank_candidate", "rank candidate", "Q"),
)  # fmt: skip

_PERPLEXITY = (
    _nll("nll", "NLL", "P"),
    _perplexity("perplexity", "perplexity", "nll"),
    _bits("bits_per_byte", "bits/byte", "nll"),
    Definition(
        name="word_perplexity", label="word perplexity", unit="perplexity", better="lower",
        fields=VALUE_FIELDS, formula="exp(Σ nll / words); words stand between white space",
        says="Perplexity a word, which can be compared between tokenizers. It means little for "
        "text without spaces.",
        source=_PPL,
    ),
    Definition(
        name="byte_perplexity", label="byte perplexity", unit="perplexity", better="lower",
        fields=VALUE_FIELDS, formula="exp(Σ nll / bytes) = 2^bits_per_byte",
        says="Perplexity a byte, which can be compared between tokenizers.",
    ),
    _entropy("entropy", "entropy", "P"),
    _rank("rank", "rank", "P"),
)  # fmt: skip

METRICS: Mapping[str, Definition] = {one.name: one for one in (*_COMPARE, *_PERPLEXITY)}
"""Every metric, those of a comparison first, in the order of the report."""

COMPARE_METRICS: Mapping[str, tuple[str, ...]] = {one.name: one.fields for one in _COMPARE}
"""Every metric of a comparison, with its fields, in the order of the report."""

PERPLEXITY_METRICS: Mapping[str, tuple[str, ...]] = {one.name: one.fields for one in _PERPLEXITY}
"""Every metric of one model."""

BOUNDS: Mapping[str, Bounds] = {
    one.name: one.bounds for one in METRICS.values() if one.bounds != UNBOUNDED
}
"""The least and the most that a token can count, where there is such a bound."""


def fields_of(*, paired: bool) -> Mapping[str, tuple[str, ...]]:
    """Every metric of a comparison (``paired``), or of one model, with its fields."""
    return COMPARE_METRICS if paired else PERPLEXITY_METRICS
