"""Small reports built by hand, for renderers to show."""

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from klcli.choices import FIRST_OUTLIERS, SliceBy, TokenChoice
from klcli.errors import Notice
from klcli.judge.gate import GateResult
from klcli.judge.intervals import Metric
from klcli.judge.metrics import FLIP_FIELDS, MEAN_FIELDS, PROPORTION_FIELDS, VALUE_FIELDS
from klcli.judge.report import (
    Along,
    Distribution,
    Outlier,
    Report,
    Slice,
    Tokens,
)
from klcli.judge.text_results import CorpusResult
from klcli.measure.scores import SIDES, Alternatives, TokenScores, score_columns
from klcli.render.terminal import render_terminal
from klcli.render.view import View

HOSTILE = {
    "ansi": "\x1b[31mred\x1b[0m",
    "link": "\x1b]8;;http://example.org\x07here",
    "markup": "[red]x[/red]",
    "emoji-code": ":smile:",
    "html": "<script>alert(1)</script>&amp;",
    "pipe": "a|b\\|c",
    "backticks": "`x` ``y``",
    "markdown": "*a* _b_ ~c~ [d](e) #f $g$",
    "bidi": "\u202eevil\u2066",
    "zero-width": "a\u200bb\ufe0f\u2060",
    "wide": "東京タワー東京タワー東京タワー",
    "marks": "\u0301e\u0301",
    "emoji": "👩\u200d🚀🙂",
    "surrogate": "caf\udce9",
    "lines": "a\r\nb\tc\u2028d\u0085e",
    "spaces": " a\u00a0b\u3000c ",
    "formula": "=1+1",
    "inf": "inf",
    "long": "x" * 300,
    "private": "\ue000\U000f0000\uffff",
}
"""Text that would do harm to a terminal, a page or a table, or to the columns of one."""

WORDS = ["the", " cat", " sees", " a", " dog", "\n"]


def mean(value: float | None, **fields: float | None) -> Metric:
    """A metric with a mean, an interval around it, and quantiles."""
    if value is None or not np.isfinite(value):
        return {**dict.fromkeys(MEAN_FIELDS), "mean": value, **fields}
    spread = {"se": 0.05, "ci_low": 0.9, "ci_high": 1.1, "median": 0.5, "min": 0.01, "max": 40.0,
              "p90": 2.0, "p95": 3.0, "p99": 9.0}  # fmt: skip
    known = {name: factor * value for name, factor in spread.items()}
    return {**dict.fromkeys(MEAN_FIELDS), "mean": value, **known, "design_effect": 1.2, **fields}


def value(x: float | None, **fields: float | None) -> Metric:
    """A metric that is one number."""
    return {**dict.fromkeys(VALUE_FIELDS), "value": x, **fields}


def share(x: float | None, **fields: float | None) -> Metric:
    """A metric that is a share of the tokens."""
    return {**dict.fromkeys(PROPORTION_FIELDS), "value": x, **fields}


def flips(**fields: float | None) -> Metric:
    """Flips without a direction, unless ``fields`` gives them one."""
    known = {"lost": 7, "gained": 13, "net": 0.0016741, "net_low": -0.00081, "net_high": 0.00416,
             "volume": 0.0055804, "volume_low": 0.0036, "volume_high": 0.0086,
             "p": 0.1804}  # fmt: skip
    return {**dict.fromkeys(FLIP_FIELDS), **known, **fields}


def compare_metrics(kl: float | None = 0.0123456) -> dict[str, Metric]:
    """Metrics of a comparison; a KL of None stands for a file without text."""
    return {
        "kl": mean(kl),
        "kl_reverse": mean(0.0131),
        "jsd": mean(0.0000312),
        "tv": mean(0.0142),
        "nll_reference": mean(2.1411),
        "nll_candidate": mean(2.1511),
        "nll_difference": mean(0.01, ci_low=-0.002, ci_high=0.022, median=-0.0001),
        "perplexity_reference": value(8.50896, ci_low=8.3, ci_high=8.7),
        "perplexity_candidate": value(8.59448, ci_low=8.4, ci_high=8.8),
        "perplexity_ratio": value(1.01005, ci_low=0.998, ci_high=1.0222),
        "bits_per_byte_reference": value(None),
        "bits_per_byte_candidate": value(None),
        "top1_agreement": share(0.9665, ci_low=0.96, ci_high=0.972),
        "overlap_5": mean(0.98),
        "delta_p": mean(-0.0007),
        "delta_p_rms": value(0.0067, se=0.0003, ci_low=0.0061, ci_high=0.0073),
        "flips": flips(),
        "entropy_reference": mean(2.13),
        "entropy_candidate": mean(2.12),
        "rank_reference": mean(4.1),
        "rank_candidate": mean(4.2),
    }


def perplexity_metrics(nll: float = 2.1411) -> dict[str, Metric]:
    """Metrics of one model."""
    return {
        "nll": mean(nll),
        "perplexity": value(float(np.exp(nll)), ci_low=8.3, ci_high=8.7),
        "bits_per_byte": value(0.68956, ci_low=0.682, ci_high=0.697),
        "word_perplexity": value(123456.7, ci_low=1e5, ci_high=2e5),
        "byte_perplexity": value(1.6128, ci_low=1.6, ci_high=1.62),
        "entropy": mean(2.13),
        "rank": mean(4.1),
    }


def tokens(texts: Sequence[str] = WORDS, *, paired: bool = True, documents: int = 1) -> Tokens:
    """One scored token for each text, in so many documents, with simple scores."""
    n = len(texts)
    columns = {
        name: np.arange(n).astype(kind) if kind is not np.float64 else np.linspace(0.125, 0.5, n)
        for name, kind in score_columns(paired=paired).items()
    }
    columns["document"] = np.minimum(np.arange(n), documents - 1).astype(np.int32)
    first = np.searchsorted(columns["document"], columns["document"])
    columns["position"] = (np.arange(n) - first).astype(np.int64)
    columns["excluded"] = np.zeros(n, dtype=np.bool_)
    return Tokens(
        scores=TokenScores(columns),
        texts=dict(enumerate(texts)),
        documents=[f"corpus-{number}.txt" for number in range(documents)],
        ids=[np.flatnonzero(columns["document"] == number) for number in range(documents)],
        flagged=np.arange(n) == n - 1,
        alternatives=alternatives(n, paired=paired),
    )


def alternatives(n: int, *, paired: bool) -> Alternatives:
    """What two models expected at each of ``n`` tokens: that one, and the first one."""
    ids = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.int32)
    probabilities = np.tile(np.array([0.75, 0.125], dtype=np.float32), (n, 1))
    sides = SIDES if paired else ()
    return Alternatives(
        index=np.arange(n),
        ids=dict.fromkeys(sides, ids),
        probabilities=dict.fromkeys(sides, probabilities),
    )


def outlier(**fields: Any) -> Outlier:
    """An outlier with a context and what both models expected."""
    known: dict[str, Any] = {
        "index": 3, "document": "corpus.txt", "position": 1716, "token": " is", "token_id": 53,
        "before": " is hungry. When the boat that waits", "after": " very small, many dogs\n",
        "kl": 0.0492, "score": 4.768, "flagged": True, "nll_reference": 0.3195,
        "nll_candidate": 10.3803, "top_reference": [(" is", 0.7265), (" waits", 0.2255)],
        "top_candidate": [(" waits", 1.0), (" is", 0.00003), (",", 0.00001)],
    }  # fmt: skip
    return Outlier(**{**known, **fields})


COUNTS: dict[str, int | None] = {
    "tokens": 3584, "windows": 56, "documents": 1, "bytes": 16055, "excluded": 0, "infinite": 0,
}  # fmt: skip


def one_slice(by: SliceBy, name: str, tokens: int, **means: float | None) -> Slice:
    """A slice of a comparison."""
    known = {"kl": 0.001, "share": 0.5, "nll_reference": 2.1411, "nll_candidate": 2.1511}
    return Slice(by=by, slice=name, tokens=tokens, means={**known, **means})


SLICES = [
    one_slice("confidence", "0–0.25", 1774, kl=0.000998, share=0.48692),
    one_slice("confidence", "0.25–0.5", 1810, kl=0.001205, share=0.51308),
    one_slice("kind", "word start", 3521, kl=None, share=None),
    one_slice("kind", "URL", 63, kl=np.inf, share=None),
]


EDGES = [10 ** (k / 10) for k in range(-80, 21)]
DISTRIBUTION = Distribution(
    metric="kl",
    edges=EDGES,
    counts=[round(400 * math.exp(-(((k - 58) / 6) ** 2) / 2)) for k in range(100)],
    zero=12,
    below=3,
    above=0,
    infinite=0,
)
"""A histogram with a single hill at 0.006 nats."""
ALONG = Along(
    metric="kl",
    starts=[56 * part for part in range(64)],
    means=[0.012 * (1 + 0.5 * math.sin(part / 5)) for part in range(64)],
)


def compare_report(**changes: Any) -> Report:
    """A comparison of two models on one text."""
    model = {"kind": "causal", "revision": None, "dtype": "float32", "device": "cpu"}
    report = Report(
        command="compare",
        signature="klcli:0.1.0|ref:reference:float32|cand:candidate:float32|corpus:cd31ce7ba7aa4aef|"
        "protocol:rolling|context:64|stride:64|score_from:0|bos:none|special:text|tokens:3584",
        models={
            "reference": {"source": "models/reference", **model},
            "candidate": {"source": "org/candidate", **model, "revision": "0123456789abcdef"},
        },
        protocol={"name": "rolling", "context": 64, "stride": 64, "score_from": 0, "bos": "none",
                  "special_tokens": "text", "documents": "file", "limit": None},
        environment={"klcli": "0.1.0"},
        counts={**COUNTS, "outliers": 28},
        clusters={"count": 28, "lag1_correlation": -0.02},
        metrics=compare_metrics(),
        corpora=[corpus("corpus.txt", compare_metrics())],
        slices=SLICES,
        distribution=DISTRIBUTION,
        along=ALONG,
        seconds=308.2,
        outliers=[outlier(), outlier(score=None, flagged=False, top_reference=[])],
        tokens=tokens(),
    )  # fmt: skip
    return replace(report, **changes)


def perplexity_report(**changes: Any) -> Report:
    """One model on one text."""
    report = compare_report(
        command="perplexity",
        models={"model": {"source": "file.npz", "kind": "logit file", "values": "probs"}},
        counts=COUNTS,
        metrics=perplexity_metrics(),
        corpora=[corpus("corpus.txt", perplexity_metrics())],
        outliers=(),
        distribution=replace(DISTRIBUTION, metric="nll"),
        along=replace(ALONG, metric="nll"),
        slices=[Slice(by="position", slice="0", tokens=56, means={"nll": 3.1, "share": 0.0156})],
        tokens=tokens(paired=False),
    )
    return replace(report, **changes)


def corpus(name: str, metrics: dict[str, Metric]) -> CorpusResult:
    """What one corpus gave."""
    return CorpusResult(name=name, sha256="cd31", counts=COUNTS, metrics=metrics)


def gate(text: str, value: float | None, limit: float, **fields: Any) -> GateResult:
    """A gate that failed unless ``fields`` says otherwise."""
    return GateResult(gate=text, value=value, limit=limit, **{"verdict": "fail", **fields})


def gated_report() -> Report:
    """A comparison on two corpora, with gates of each kind and warnings."""
    return compare_report(
        corpora=[corpus("wiki.txt", compare_metrics()), corpus("code.txt", compare_metrics(1e-5))],
        macro={"kl": 0.00618, "perplexity_reference": 8.5, "perplexity_candidate": 8.6},
        counts={**COUNTS, "documents": 2, "excluded": 1200, "infinite": 2, "outliers": 28},
        gates=[
            gate("kl.mean<=0.0123455", 0.0123456, 0.0123455),
            gate("top1_agreement>=0.9", 0.9665, 0.9, verdict="pass"),
            gate("kl.p999<=1", None, 1.0, reason="kl.p999 is not known in this run"),
        ],
        verdict="fail",
        warnings=[Notice(code="few_clusters", message="the text has 2 pieces; " + "long " * 30)],
    )


def hostile_report() -> Report:
    """A comparison in which every text is hostile."""
    texts = list(HOSTILE.values())
    everything = "".join(texts)
    shown = [
        outlier(token=text, before=everything, after=everything, document=everything,
                top_reference=[(text, 0.5), (text, 0.25)], top_candidate=[(text, 0.125)])
        for text in texts
    ]  # fmt: skip
    models = {"source": everything, "revision": everything, "dtype": everything, "device": "cpu"}
    return compare_report(
        signature=everything,
        models={"reference": models, "candidate": models},
        protocol={"name": everything, "context": everything},
        counts={**COUNTS, "documents": 2, "outliers": len(shown)},
        corpora=[corpus(everything, compare_metrics()), corpus(texts[0], compare_metrics())],
        outliers=shown,
        gates=[gate(everything, 0.5, 0.25, reason=everything)],
        verdict="fail",
        warnings=[Notice(code="hostile", message=everything)],
        tokens=replace(tokens(texts, documents=2), documents=[everything, texts[0]]),
    )


def on_terminal(
    report: Report,
    width: int = 80,
    *,
    details: bool = False,
    tokens: TokenChoice = "outliers",
    outliers: int = FIRST_OUTLIERS,
    slices: tuple[SliceBy, ...] = (),
    color: bool = False,
    encoding: str = "utf-8",
) -> str:
    """What ``render_terminal`` prints into a pipe, or with ``color`` on a terminal."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
    console = Console(
        file=stream,
        width=width,
        force_terminal=color,
        color_system="truecolor" if color else None,
    )
    view = View(details=details, tokens=tokens, outliers=outliers, slices=slices)
    render_terminal(report, console, view)
    stream.seek(0)
    return stream.read()
