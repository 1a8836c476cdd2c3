"""What a reader should know before trusting the numbers of a run: notices, each with advice."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from klcli.errors import Notice
from klcli.judge.counts import tells_text
from klcli.judge.intervals import Metric
from klcli.measure.gathered import Evaluation
from klcli.measure.scores import BROKEN, TOPS
from klcli.measure.shard import WHOLE, Shard

PADDED_MASS = 1e-6
FEW_CLUSTERS = 20
CONCENTRATED = 0.5
"""Share of the KL in the top hundredth of the tokens that is worth a notice."""
ENOUGH_TOKENS = 100


def find_notices(
    evaluation: Evaluation,
    counts: Mapping[str, int | None],
    clusters: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    protocol: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
) -> list[Notice]:
    """Every notice that a run deserves.

    ``counts``, ``clusters``, ``metrics``, ``protocol`` and ``models`` are those of the report.
    """
    found = [
        *_excluded(evaluation, counts, models),
        *_infinite(counts),
        *_unknown(counts),
        *_padded_mass(evaluation),
        *_few_clusters(clusters["count"]),
        *_correlated(clusters, metrics),
        *_lists(evaluation),
        *_truncated(evaluation),
        *_approximate(protocol),
        *_concentrated(evaluation),
    ]
    return [Notice(code=code, message=message) for code, message in found]


Found = Iterator[tuple[str, str]]


def shard_notices(shard: Shard, tokens: int) -> list[Notice]:
    """That a report is about a part of a run only."""
    if shard == WHOLE:
        return []
    return [
        Notice(
            code="shard",
            message=f"this is shard {shard} of a run: every number is of its {tokens:,} tokens "
            "only; join the shards with klcli merge",
        )
    ]


def _excluded(
    evaluation: Evaluation,
    counts: Mapping[str, int | None],
    models: Mapping[str, Mapping[str, Any]],
) -> Found:
    if not counts["excluded"]:
        return
    blocks = [part for _, part in evaluation.scores.blocks()]
    sides = zip(TOPS[len(models)], models.items(), strict=True)
    hits = {
        role: sum(int((part[top] == BROKEN).sum()) for part in blocks) for top, (role, _) in sides
    }
    found = {role: hit for role, hit in hits.items() if hit}
    for role, hit in (found or {"": counts["excluded"]}).items():
        model = models.get(role, {})
        # Runs that klcli 0.1.0 kept do not say which side it was.
        who = f"the {role} ({model['source']})" if model else "a model"
        advice = "; float16 overflows where bfloat16 does not: try --dtype bfloat16"
        yield (
            "excluded",
            f"{hit} of {counts['tokens']} tokens are left out: {who} gave NaN or +inf there; they "
            "count in no number" + (advice if model.get("dtype") == "float16" else ""),
        )


def _unknown(counts: Mapping[str, int | None]) -> Found:
    if not tells_text(counts):
        yield (
            "unknown_tokens",
            f"{counts['unknown']} of {counts['tokens']} tokens stand for text that the tokenizer "
            "does not know: the tokens do not tell the text, so bits per byte and perplexities of "
            "words are left out",
        )


def _infinite(counts: Mapping[str, int | None]) -> Found:
    if infinite := counts["infinite"]:
        yield (
            "infinite",
            f"at {infinite} tokens a model gives probability 0 to the token that follows, or to "
            "one that the other model thinks possible: means over them are infinite, or unknown",
        )


def _padded_mass(evaluation: Evaluation) -> Found:
    for side, mass in evaluation.padded_mass.items():
        if mass > PADDED_MASS:
            role = side if evaluation.scores.paired else "model"
            yield (
                "padded_mass",
                f"the {role} gives up to {mass:.2g} of its probability to ids that stand for no "
                "token or were cut; check that model and tokenizer belong together",
            )


def _few_clusters(clusters: int) -> Found:
    if clusters == 1:
        yield (
            "few_clusters",
            "the text is a single window, so that no interval can be given; give more text or a "
            "smaller --context",
        )
    elif clusters < FEW_CLUSTERS:
        yield (
            "few_clusters",
            f"the text has {clusters} independent pieces (documents, or runs of windows), fewer "
            f"than {FEW_CLUSTERS}: intervals are rough; give more text",
        )


def _correlated(clusters: Mapping[str, Any], metrics: Mapping[str, Metric]) -> Found:
    """Metrics whose neighbours correlate more than chance would have it: beyond two errors."""
    first = next(iter(metrics))  # KL or NLL, of whose finite tokens the clusters tell
    found = {first: clusters["lag1_correlation"]}
    for name, metric in metrics.items():
        if (own := metric.get("lag1_correlation")) is not None:
            found[name] = own
    most = 2 / math.sqrt(clusters["count"])
    beyond = [f"{name} {one:.2f}" for name, one in found.items() if one and one > most]
    if beyond:
        yield (
            "correlated",
            f"neighbouring pieces of the text correlate ({', '.join(beyond)}): intervals of these "
            "may be too narrow; give more text, or many documents",
        )


def _lists(evaluation: Evaluation) -> Found:
    """A side is a list of top tokens."""
    scores = evaluation.scores
    sides = [side for side, kind in evaluation.kinds.items() if kind == "topk"]
    if sides and scores.paired:
        yield (
            "lower_bounds",
            f"only the most probable tokens of the {' and the '.join(sides)} are known: KL, JSD "
            "and TV are lower bounds, with all other tokens taken as one",
        )
    known = ~scores["excluded"] & (scores["token_id"] >= 0)
    for side in sides:
        nll = scores[f"nll_{side}" if scores.paired else "nll"][known]
        if missing := int(np.isnan(nll).sum()):
            yield (
                "unlisted_targets",
                f"{missing} of {len(nll)} tokens of the text are not in the list of the "
                f"{side if scores.paired else 'model'}: "
                "their NLL is not known, and neither is its mean",
            )


def _truncated(evaluation: Evaluation) -> Found:
    if "truncated" in evaluation.kinds.values():
        yield (
            "truncated",
            "a base file of llama.cpp is truncated, 16-bit: KL is by that program's rule, over "
            "tokens with ln p > -16 and not renormalised; JSD, TV, reverse KL and its entropy are "
            "not known",
        )


def _approximate(protocol: Mapping[str, Any]) -> Found:
    if every := protocol.get("mask_every"):
        yield (
            "mask_every",
            f"an approximation: every {every}th token was hidden at once, so that each was scored "
            "without the others in sight. Leave out --mask-every for exact numbers",
        )


def _concentrated(evaluation: Evaluation) -> Found:
    scores = evaluation.scores
    if not scores.paired or len(scores) < ENOUGH_TOKENS:
        return
    parts = (part["kl"] for _, part in scores.blocks())
    kl = np.concatenate([part[np.isfinite(part)] for part in parts])
    kl.sort()
    few = max(1, len(kl) // 100)
    total, top = float(kl.sum()), float(kl[-few:].sum())
    if total > 0 and top > CONCENTRATED * total:
        yield (
            "concentrated",
            f"{few} tokens ({few / len(kl):.1%}) carry {top / total:.0%} of the KL: look at the "
            "outliers before you trust the mean",
        )
