"""Relative gates, token by token: every number that can be held against an earlier run."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from klcli.errors import UsageError
from klcli.judge.baseline import BaselineComparison, BaselineRun
from klcli.judge.clusters import Clusters
from klcli.judge.gate import GateResult, Rules, interval_fields, judge, parse_gate
from klcli.judge.metrics import COMPARE_METRICS, PERPLEXITY_METRICS
from klcli.judge.report import Report
from klcli.judge.statistics import summarise
from klcli.measure.scores import TokenScores, score_columns

Columns = dict[str, npt.NDArray[Any]]

COUNT, SIZE = 40, 60
TOKENS = COUNT * SIZE
CLUSTERS = Clusters(np.full(COUNT, SIZE), np.zeros(COUNT, dtype=bool))


def columns(seed: int, *, paired: bool) -> Columns:
    """Made-up scores in which every number is above 0, and clusters have effects."""
    rng = np.random.default_rng(seed)
    found: Columns = {n: np.zeros(TOKENS, dtype=t) for n, t in score_columns(paired=paired).items()}
    effect = np.repeat(rng.normal(size=COUNT), SIZE)
    for name, of in found.items():
        if of.dtype.kind == "f":
            found[name] = np.exp(effect / 2 + rng.normal(size=TOKENS)) / 20
    for name in ("tv", "overlap_5", "delta_p", "jsd"):
        if name in found:
            found[name] = np.clip(found[name], 0, 0.6)
    found["token_id"][:] = 1
    found["byte_end"][:] = rng.integers(1, 9, TOKENS)
    found["words"][:] = rng.integers(0, 2, TOKENS)
    for name in [name for name in found if name.startswith("top1")]:
        found[name][:] = rng.random(TOKENS) < (0.4 if name.endswith("reference") else 0.6)
    for name in [name for name in found if name.startswith("rank")]:
        found[name][:] = rng.integers(0, 50, TOKENS)
    return found


def near(x: Columns, seed: int) -> Columns:
    """Scores of a run that is a little worse."""
    rng, found = np.random.default_rng(seed), dict(x)
    for name, of in x.items():
        if of.dtype.kind == "f":
            found[name] = of * (1 + 0.1 * rng.random(TOKENS))
        if name.startswith("top1"):
            found[name] = np.where(rng.random(TOKENS) < 0.03, 1 - of, of).astype(of.dtype)
        if name.startswith("rank"):
            found[name] = (of + rng.integers(0, 3, TOKENS)).astype(of.dtype)
    return found


def numbers(x: Columns, clusters: Clusters = CLUSTERS) -> Any:
    return summarise(TokenScores(x), clusters, np.ones(len(x["token_id"]), dtype=bool))


def held(text: str, x: Columns, y: Columns, clusters: Clusters = CLUSTERS) -> GateResult:
    """A gate on one run, with the other for its baseline."""
    known = COMPARE_METRICS if "kl" in x else PERPLEXITY_METRICS
    gate = parse_gate(text, known)
    interval_fields(gate, known)
    report = Report(
        command="compare", signature="", models={}, protocol={}, environment={}, counts={},
        metrics=numbers(y, clusters),
    )  # fmt: skip
    baseline = BaselineComparison(
        baseline=BaselineRun(name="base.run", report=report, run=None),
        scores=TokenScores(x),
        others=TokenScores(y),
        clusters=clusters,
    )
    rules = Rules(
        excluded=0, allow_excluded=False, confidence=0.95, baseline=baseline, tokens=TOKENS
    )
    return judge([gate], numbers(x, clusters), rules)[0]


def gateable() -> list[tuple[str, bool]]:
    """Every number that has an interval and is a mean, of both commands."""
    found = []
    for paired, known in ((True, COMPARE_METRICS), (False, PERPLEXITY_METRICS)):
        for metric, fields in known.items():
            for field in fields:
                try:
                    gate = parse_gate(f"{metric}.{field}<=baseline", known)
                    interval_fields(gate, known)
                except UsageError:
                    continue
                found.append((f"{metric}.{field}", paired))
    return found


def test_there_is_one_for_every_metric() -> None:
    names = {name.split(".")[0] for name, _ in gateable()}
    assert names == COMPARE_METRICS.keys() | PERPLEXITY_METRICS.keys()


@pytest.mark.parametrize(("number", "paired"), gateable())
def test_a_run_is_no_worse_than_itself(number: str, paired: bool) -> None:
    x = columns(0, paired=paired)
    for text in ("<=1.001", ">=0.999", "<=1.0", ">=1.0"):
        result = held(f"{number}{text}*baseline", x, x)
        assert result.verdict == "pass", (result, text)
    for text in ("<=0.999", ">=1.001"):
        assert held(f"{number}{text}*baseline", x, x).verdict == "fail", text


def on_its_scale(number: str, x: float) -> float:
    """Perplexities are held against each other by logarithms, the RMS by squares."""
    if "perplexity" in number:
        return math.log(x)
    return x * x if number.startswith("delta_p_rms") else x


def test_nor_is_one_of_a_few_flips_or_of_equal_models() -> None:
    """Whose number may not be told from 0, and is not below it."""
    x = columns(7, paired=True)
    few = np.arange(TOKENS) % 600 == 0
    x["top1_reference"], x["top1_candidate"] = np.ones(TOKENS, int), np.where(few, 0, 1)
    x["delta_p"] = x["kl"] = x["tv"] = np.zeros(TOKENS)
    for number in ("flips.volume", "delta_p_rms", "kl", "tv", "top1_agreement"):
        for text in ("<=1.001", ">=0.999", "<=1.0"):
            assert held(f"{number}{text}*baseline", x, x).verdict == "pass", number


@pytest.mark.parametrize(("number", "paired"), gateable())
def test_the_interval_is_that_of_a_jackknife_of_the_difference(number: str, paired: bool) -> None:
    """Delete a cluster of both runs, each time, and work everything out anew."""
    times, x = 1.02, columns(1, paired=paired)
    y = near(x, 2)
    metric, field = number.split(".")

    def difference(kept: npt.NDArray[np.bool_], clusters: Clusters) -> float:
        ours, theirs = (
            numbers({n: c[kept] for n, c in one.items()}, clusters)[metric][field] for one in (x, y)
        )
        return on_its_scale(number, ours) - on_its_scale(number, times * theirs)

    of = np.repeat(np.arange(COUNT), SIZE)
    fewer = replace(CLUSTERS, sizes=CLUSTERS.sizes[1:], follows=CLUSTERS.follows[1:])
    each = np.array([difference(of != one, fewer) for one in range(COUNT)])
    error = math.sqrt((COUNT - 1) / COUNT * ((each - each.mean()) ** 2).sum())
    result = held(f"{number}<={times}*baseline", x, y)
    assert result.ci_low is not None
    assert result.ci_high is not None
    low, high = (
        on_its_scale(number, end) - on_its_scale(number, result.limit)
        for end in (result.ci_low, result.ci_high)
    )
    assert (low + high) / 2 == pytest.approx(difference(of >= 0, CLUSTERS))
    # No shorter, but for what words and bytes vary; longer where that of lone tokens is.
    assert 0.9 * 2.0227 * error < (high - low) / 2 < 1.3 * 2.0227 * error


@pytest.mark.parametrize(("number", "paired"), gateable())
def test_tokens_that_either_run_does_not_know_are_left_out_in_pairs(
    number: str, paired: bool
) -> None:
    """Whatever they hold: numbers of tokens without a target are NaN, as in a run."""
    x = columns(3, paired=paired)
    y = near(x, 4)
    for one, without, excluded in ((x, 5, 6), (y, 100, 101)):
        one["token_id"] = np.where(np.arange(TOKENS) == without, -1, one["token_id"])
        one["excluded"] = np.arange(TOKENS) == excluded
        for name in [n for n in one if n.startswith(("nll", "delta_p"))]:
            one[name] = np.where(one["token_id"] < 0, np.nan, one[name])
        for name in [n for n in one if one[n].dtype.kind == "f"]:
            one[name] = np.where(one["excluded"], np.nan, one[name])
    result = held(f"{number}<=1.5*baseline", x, y)
    assert result.verdict == "pass"
    assert result.ci_high is not None
    assert result.ci_high <= result.limit


def test_a_pair_without_words_or_finite_numbers_has_no_interval() -> None:
    x = columns(5, paired=False)
    endless = x | {"nll": np.where(np.arange(TOKENS) == 3, np.inf, x["nll"])}
    assert held("nll<=2*baseline", endless, x).verdict != "pass"
    assert held("perplexity<=2*baseline", x, endless).verdict != "pass"


@pytest.mark.parametrize("times", [0.0, -1.0])
def test_a_multiple_that_is_not_above_0_is_no_multiple_of_a_perplexity(times: float) -> None:
    x = columns(6, paired=False)
    assert held(f"perplexity>={times}*baseline", x, x).verdict == "pass"
    assert held(f"perplexity<={times}*baseline", x, x).verdict == "fail"
