"""Report: the one finished result of a run. Every renderer takes it and computes nothing.

Version 1 of the JSON shape: first release.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from klcli.choices import SliceBy
from klcli.errors import KlcliError, Notice
from klcli.judge.clusters import Clusters
from klcli.judge.gate import GateResult, Verdict
from klcli.judge.intervals import Metric
from klcli.judge.plain import metrics_of, number, numbers, to_plain
from klcli.judge.text_results import CorpusResult, Groups, Interval, Macro, intervals_of
from klcli.measure.scores import Alternatives, TokenScores

FORMAT = "klcli.report"
FORMAT_VERSION = 1

OUTLIER_NUMBERS = ("kl", "score", "nll_reference", "nll_candidate")

Command = Literal["compare", "perplexity"]
Cause = Literal["engine", "settings", "position", "shift", "share", "not_seen"]
TokenMetric = Literal["kl", "nll"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A token that stands out, in its context.

    ``index`` is its row among the scored tokens, ``position`` its place in the document. ``score``
    is its robust z, None where its like are all alike. ``top_reference`` and ``top_candidate`` are
    the most probable tokens with their probabilities, empty where they were not kept.
    """

    index: int
    document: str
    position: int
    token: str
    token_id: int
    before: str
    after: str
    kl: float
    score: float | None
    flagged: bool
    nll_reference: float | None
    nll_candidate: float | None
    top_reference: Sequence[tuple[str, float]]
    top_candidate: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Neighbouring tokens of one document where the models differ most, or one model fails most.

    ``index`` is the row of the first among the scored tokens, ``position`` its place in the
    document, and ``mean`` that of their KL in nats, or of one model their NLL.
    """

    index: int
    tokens: int
    document: str
    position: int
    text: str
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Tokens of one kind: by the reference's confidence, their place in the window or their text.

    ``means`` are those of ``kl``, ``nll_reference`` and ``nll_candidate``, or of ``nll``; the first
    has its ``share`` of the total over the tokens of all slices.
    """

    by: SliceBy
    slice: str
    tokens: int
    means: Mapping[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """The slice as one flat row."""
        return {"by": self.by, "slice": self.slice, "tokens": self.tokens, **self.means}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Slice":
        """Read what ``to_dict`` wrote."""
        means = {k: number(v) for k, v in row.items() if k not in ("by", "slice", "tokens")}
        return cls(by=row["by"], slice=row["slice"], tokens=row["tokens"], means=means)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that tells why two models differ, or what the text was too short to show.

    ``evidence`` has the numbers and names behind the message.
    """

    cause: Cause
    message: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How many tokens have which KL in nats, or of one model which NLL; for a histogram.

    ``counts[i]`` tokens are at least ``edges[i]`` and below ``edges[i + 1]``; the edges lie evenly
    on a log axis. ``zero`` tokens are at 0 (or below, by the rule of llama.cpp), ``below`` are
    between 0 and the first edge, ``above`` at the last one or beyond, and ``infinite`` ones count
    apart.
    """

    metric: TokenMetric
    edges: Sequence[float]
    counts: Sequence[int]
    zero: int
    below: int
    above: int
    infinite: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Along:
    """The mean KL in nats, or of one model NLL, of equal parts of the text; for a line.

    ``starts`` are the first scored tokens of the parts. A mean is None where no token is known.
    """

    metric: TokenMetric
    starts: Sequence[int]
    means: Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerResult:
    """One answer: its scored tokens, and the mean KL over them in nats.

    ``first`` is the first token, counted from 0, at which the candidate's most probable token (or
    that of the only model) is another one; None where it agrees to the end.
    """

    document: str
    tokens: int
    first: int | None
    kl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """The share of answers that agree for so many tokens at least, or to an earlier end."""

    tokens: int
    share: float
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """How far the candidate, or the only model, would have given the same answers.

    ``greedy`` says whether the answers were the most probable tokens of who gave them. ``agreeing``
    is the share of the ``count`` answers that agree to the end; ``median_first`` is the median of
    the first differing tokens, None where it is beyond the end, and ``mean_first`` their mean over
    the answers that differ.
    """

    greedy: bool
    count: int
    agreeing: Metric
    median_first: int | None
    mean_first: float | None
    survival: Sequence[Survival]
    answers: Sequence[AnswerResult]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Answers":
        """Read what ``Report.to_dict`` wrote."""
        return cls(
            **{
                **data,
                "survival": [Survival(**one) for one in data["survival"]],
                "answers": [
                    AnswerResult(**{**one, "kl": number(one["kl"])}) for one in data["answers"]
                ],
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Every scored token, with what is needed to print it: not part of the JSON report.

    ``texts`` are those of all ids, ``documents`` the names of the documents and ``ids`` all tokens
    of each, scored or not. ``flagged`` (tokens,) says which stand out, and ``alternatives`` what
    the models expected at some tokens or all. ``clusters`` are those over which errors are taken.
    """

    scores: TokenScores
    texts: Mapping[int, str]
    documents: Sequence[str]
    ids: Sequence[npt.NDArray[np.integer[Any]]]
    flagged: npt.NDArray[np.bool_]
    alternatives: Alternatives
    clusters: Clusters | None = None

    def __repr__(self) -> str:
        return f"<Tokens: {len(self.scores):,} in documents: {len(self.documents):,}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a run.

    ``models`` has the keys ``reference`` and ``candidate``, or ``model``. ``metrics`` are over all
    tokens; ``macro``, for several corpora, are means of the corpora's means, and
    ``macro_intervals`` their intervals; ``groups`` are those of the documents, None where nobody
    asked for any. The metrics named in
    ``lower_bounds`` are at least what is shown. ``clusters`` says over which clusters of tokens the
    errors are taken, ``until`` how much of the text was needed where a run was to end early, and
    ``noise_floor`` by how much the reference differs from itself. ``shard`` is which part of a run
    it is about, None for a whole one. ``seconds`` is how long the run took, loading included; None
    where that is not known, as for one that was joined. ``distribution`` and ``along`` are None in
    reports of klcli 0.1.0, and ``tokens`` in any that was read from a file.
    """

    command: Command
    signature: str
    models: Mapping[str, Mapping[str, Any]]
    protocol: Mapping[str, Any]
    environment: Mapping[str, Any]
    counts: Mapping[str, int | None]
    clusters: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Metric]
    macro: Macro | None = None
    macro_intervals: Mapping[str, Interval] | None = None
    groups: Groups | None = None
    corpora: Sequence[CorpusResult] = ()
    lower_bounds: Sequence[str] = ()
    outliers: Sequence[Outlier] = ()
    passages: Sequence[Passage] = ()
    slices: Sequence[Slice] = ()
    distribution: Distribution | None = None
    along: Along | None = None
    answers: Answers | None = None
    findings: Sequence[Finding] = ()
    gates: Sequence[GateResult] = ()
    verdict: Verdict | None = None
    warnings: Sequence[Notice] = ()
    until: Mapping[str, Any] | None = None
    noise_floor: Mapping[str, Any] | None = None
    shard: str | None = None
    seconds: float | None = field(default=None, compare=False)
    tokens: Tokens | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON: infinities as "inf" and "-inf", NaN as None."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "command": self.command,
            "signature": self.signature,
            "shard": self.shard,
            **self.models,
            "protocol": self.protocol,
            "environment": self.environment,
            "seconds": self.seconds,
            "counts": self.counts,
            "clusters": self.clusters,
            "metrics": self.metrics,
            "macro": self.macro,
            "macro_intervals": self.macro_intervals,
            "groups": None if self.groups is None else asdict(self.groups),
            "lower_bounds": self.lower_bounds,
            "corpora": [asdict(corpus) for corpus in self.corpora],
            "outliers": [asdict(outlier) for outlier in self.outliers],
            "passages": [asdict(passage) for passage in self.passages],
            "slices": [one.to_dict() for one in self.slices],
            "distribution": None if self.distribution is None else asdict(self.distribution),
            "along": None if self.along is None else asdict(self.along),
            "answers": None if self.answers is None else asdict(self.answers),
            "findings": [asdict(finding) for finding in self.findings],
            "gates": [asdict(gate) for gate in self.gates],
            "verdict": self.verdict,
            "until": self.until,
            "noise_floor": self.noise_floor,
            "warnings": [asdict(warning) for warning in self.warnings],
        }
        return cast("dict[str, Any]", to_plain(document))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """Read what ``to_dict`` wrote.

        Raises:
            KlcliError: it is not a report, or one of a version this klcli does not know.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise KlcliError(f"this is not a klcli report: its format is not {FORMAT!r}")
        if data.get("format_version") != FORMAT_VERSION:
            raise KlcliError(
                f"this report has version {data.get('format_version')!r} and this klcli reads "
                f"version {FORMAT_VERSION}: use a matching klcli"
            )
        try:
            return cls._from_known(data)
        except (KeyError, TypeError, AttributeError) as error:
            raise KlcliError(f"this report is damaged: {error!r}") from error

    @classmethod
    def _from_known(cls, data: Mapping[str, Any]) -> "Report":
        roles = ("model",) if data["command"] == "perplexity" else ("reference", "candidate")
        return cls(
            command=data["command"],
            signature=data["signature"],
            models={role: data[role] for role in roles},
            protocol=data["protocol"],
            environment=data["environment"],
            counts=data["counts"],
            clusters=data.get("clusters", {}),
            metrics=metrics_of(data["metrics"]),
            macro=data["macro"] and numbers(data["macro"]),
            macro_intervals=intervals_of(data.get("macro_intervals")),
            groups=_groups(data.get("groups")),
            corpora=[
                CorpusResult(**{**corpus, "metrics": metrics_of(corpus["metrics"])})
                for corpus in data["corpora"]
            ],
            lower_bounds=data["lower_bounds"],
            outliers=[_outlier(outlier) for outlier in data["outliers"]],
            passages=[_passage(passage) for passage in data.get("passages", ())],
            slices=[Slice.from_dict(one) for one in data.get("slices", ())],
            distribution=_distribution(data.get("distribution")),
            along=_along(data.get("along")),
            answers=Answers.from_dict(data["answers"]) if data.get("answers") else None,
            findings=[Finding(**one) for one in data.get("findings", ())],
            gates=[_gate_result(gate) for gate in data["gates"]],
            verdict=data["verdict"],
            until=data.get("until"),
            noise_floor=_noise_floor(data.get("noise_floor")),
            shard=data.get("shard"),
            seconds=data.get("seconds"),
            warnings=[Notice(**warning) for warning in data["warnings"]],
        )


def read_report(path: str) -> Report:
    """Read a report that was written as JSON.

    Raises:
        KlcliError: it cannot be read, or is not a report.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KlcliError(f"cannot read the report {path}: {error}") from error
    try:
        return Report.from_dict(data)
    except KlcliError as error:
        raise KlcliError(f"{path}: {error}") from error


def _groups(data: Mapping[str, Any] | None) -> Groups | None:
    return None if data is None else Groups.from_dict(data)


def _gate_result(data: Mapping[str, Any]) -> GateResult:
    keys = ("value", "limit", "ci_low", "ci_high", "baseline")
    known = {key: number(data.get(key)) for key in keys}
    limit = math.nan if known["limit"] is None else known["limit"]
    return GateResult(**{**data, **known, "limit": limit})


def _noise_floor(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if data is None else {**data, "kl": number(data["kl"])}


def _passage(data: Mapping[str, Any]) -> Passage:
    return Passage(**{**data, "mean": number(data["mean"])})


def _distribution(data: Mapping[str, Any] | None) -> Distribution | None:
    return None if data is None else Distribution(**data)


def _along(data: Mapping[str, Any] | None) -> Along | None:
    if data is None:
        return None
    return Along(**{**data, "means": [number(mean) for mean in data["means"]]})


def _outlier(data: Mapping[str, Any]) -> Outlier:
    known = {key: number(data[key]) for key in OUTLIER_NUMBERS}
    tops = {
        key: [(text, probability) for text, probability in data[key]]
        for key in ("top_reference", "top_candidate")
    }
    return Outlier(**{**data, **known, **tops})
