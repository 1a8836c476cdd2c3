"""Many candidates against one reference: in order, and which neighbours do not differ.

Version 1 of the JSON shape: first release.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np

from klcli.errors import Notice
from klcli.judge.clusters import Clusters, Floats
from klcli.judge.gate import GateResult, Verdict
from klcli.judge.intervals import Metric, independent_error
from klcli.judge.plain import to_plain
from klcli.judge.report import Report
from klcli.judge.standard_error import standard_error
from klcli.judge.text_results import CorpusResult
from klcli.text.order import natural

FORMAT = "klcli.rank"
FORMAT_VERSION = 1

SIGNIFICANT = 0.05
"""A p-value, after Holm, from which on two neighbours are not told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """How much more KL a candidate has than the one above it, token by token.

    ``p`` is how probable such a difference is by chance, ``p_holm`` the same for all neighbours
    together (Holm 1979); None where it cannot be told. ``differs`` says whether that is below 0.05.
    """

    difference: float
    p: float | None
    p_holm: float | None
    differs: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A candidate and what was measured of it, or the ``error`` that kept it from being measured.

    ``source`` is what the user named; ``model``, ``counts``, ``metrics``, ``corpora`` and ``gates``
    are as in the report of its comparison, and ``above`` holds it against the one above it.
    """

    source: str
    model: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int | None] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    corpora: Sequence[CorpusResult] = ()
    lower_bounds: Sequence[str] = ()
    gates: Sequence[GateResult] = ()
    verdict: Verdict | None = None
    above: Neighbour | None = None
    error: str | None = None

    @property
    def kl(self) -> float | None:
        """Its mean KL in nats a token; None where it is not known."""
        return self.metrics.get("kl", {}).get("mean")

    @property
    def is_like_above(self) -> bool:
        """Whether it does not differ significantly from the candidate above it."""
        return self.above is not None and self.above.differs is False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The result of ``rank``: the candidates in order, those that failed last.

    ``in_order`` says that they are in natural order, as checkpoints of a training run are; else
    they are in order of their KL. ``verdict`` is that of all gates of all candidates;
    ``warnings`` are those that every comparison has.
    """

    reference: Mapping[str, Any]
    protocol: Mapping[str, Any]
    environment: Mapping[str, Any]
    corpora: Sequence[str]
    candidates: Sequence[Candidate]
    in_order: bool = False
    verdict: Verdict | None = None
    warnings: Sequence[Notice] = ()

    def __repr__(self) -> str:
        failed = sum(one.error is not None for one in self.candidates)
        said = f", {failed} failed" if failed else ""
        return f"<Ranking: {len(self.candidates)} candidates{said}>"

    @property
    def failed(self) -> list[Candidate]:
        """The candidates that could not be compared."""
        return [one for one in self.candidates if one.error is not None]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data for JSON: infinities as "inf" and "-inf", NaN as None."""
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "reference": self.reference,
            "protocol": self.protocol,
            "environment": self.environment,
            "corpora": self.corpora,
            "in_order": self.in_order,
            "candidates": [asdict(one) for one in self.candidates],
            "verdict": self.verdict,
            "warnings": [asdict(one) for one in self.warnings],
        }
        return cast("dict[str, Any]", to_plain(document))


@dataclass(frozen=True, slots=True)
class Compared:
    """A candidate with the KL of each token, NaN where it is excluded, the clusters and warnings.

    Of a whole report only that is kept: a report of a long text is large.
    """

    candidate: Candidate
    kl: Floats | None = None
    clusters: Clusters | None = None
    warnings: Sequence[Notice] = ()

    @classmethod
    def of(cls, source: str, report: Report, *, in_order: bool) -> "Compared":
        """What is kept of the comparison of a candidate.

        ``in_order`` the first of several texts, which is held out, gives the metrics.
        """
        held_out = in_order and len(report.corpora) > 1
        assert report.tokens is not None
        scores = report.tokens.scores
        kl = np.where(scores["excluded"], np.nan, scores["kl"])
        candidate = Candidate(
            source=source,
            model=report.models["candidate"],
            counts=report.counts,
            metrics=report.corpora[0].metrics if held_out else report.metrics,
            corpora=report.corpora,
            lower_bounds=report.lower_bounds,
            gates=report.gates,
            verdict=report.verdict,
        )
        return cls(candidate, kl, report.tokens.clusters, report.warnings)


def warnings_of_all(compared: Sequence[Compared]) -> list[Notice]:
    """The warnings that the reports of all candidates have; those that failed have no report."""
    done = [one for one in compared if one.candidate.error is None]
    first = done[0].warnings if done else ()
    return [one for one in first if all(one in other.warnings for other in done)]


def ordered(compared: Sequence[Compared], *, in_order: bool) -> list[Candidate]:
    """The candidates by their KL, or in natural order, each held against the one above it.

    Those that failed come last.
    """
    done = [one for one in compared if one.candidate.error is None]
    done.sort(key=lambda one: natural(one.candidate.source) if in_order else _by_kl(one.candidate))
    found = [_difference(one, other) for one, other in pairwise(done)]
    neighbours = [None, *_holm(found)] if done else []
    ranked = [
        replace(one.candidate, above=above) for one, above in zip(done, neighbours, strict=True)
    ]
    return [*ranked, *(one.candidate for one in compared if one.candidate.error is not None)]


def _by_kl(candidate: Candidate) -> tuple[float, str]:
    kl = candidate.kl
    return (math.inf if kl is None or math.isnan(kl) else kl, candidate.source)


def _difference(above: Compared, one: Compared) -> Neighbour | None:
    """How much more KL one has, over the tokens that both have; None where these do not pair."""
    if above.kl is None or one.kl is None or above.clusters is None:
        return None
    if len(above.kl) != len(one.kl):
        return None
    known = ~(np.isnan(above.kl) | np.isnan(one.kl))
    pairs = np.stack([above.kl, one.kl])[:, known]
    if not pairs.size or not np.isfinite(pairs).all():  # an infinite KL has no difference
        return None
    d = pairs[1] - pairs[0]
    mean = float(d.mean())
    p = _p(d, mean, above.clusters.among(known))
    return Neighbour(difference=mean, p=p, p_holm=None, differs=None)


def _p(d: Floats, mean: float, clusters: Clusters) -> float | None:
    """How probable a mean difference so far from 0 is by chance, over clusters of tokens."""
    if not d.any():
        return 1.0
    if len(clusters) < 2:
        return None
    error = standard_error(clusters.sums(d, mean), independent_error(d, mean), clusters)
    return error.p(mean) if error.value > 0 else 0.0


def _holm(found: Sequence[Neighbour | None]) -> list[Neighbour | None]:
    """The same with p-values for all of them together (Holm 1979)."""
    known = sorted(
        (one.p, place) for place, one in enumerate(found) if one is not None and one.p is not None
    )
    result, largest = list(found), 0.0
    for number, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - number) * p))
        one = found[place]
        assert one is not None
        result[place] = replace(one, p_holm=largest, differs=largest < SIGNIFICANT)
    return result
