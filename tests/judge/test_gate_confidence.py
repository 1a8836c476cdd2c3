"""Gates that intervals decide: inside passes, outside fails, and between the two nothing is said.

Limits may be relative to an earlier run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from klcli.errors import UsageError
from klcli.judge.clusters import Clusters
from klcli.judge.gate import (
    Baseline,
    Gate,
    GateResult,
    Rules,
    interval_fields,
    judge,
    overall,
    parse_gate,
)
from klcli.judge.intervals import Metric
from klcli.judge.metrics import COMPARE_METRICS, PERPLEXITY_METRICS
from klcli.judge.statistics import mean_metric

KL: Metric = {
    "mean": 0.5, "ci_low": 0.4, "ci_high": 0.7, "p99": 2.0, "p99_low": 1.5, "p99_high": 3.0
}  # fmt: skip
TOKENS = 1000


@dataclass(frozen=True, slots=True)
class FakeBaseline:
    """An earlier run in which every number is the same, and so is every difference."""

    number: float | None
    ends: tuple[float, float] | None = None

    def value(self, gate: Gate) -> float | None:
        return self.number

    def difference(
        self, gate: Gate, metric: Metric, confidence: float
    ) -> tuple[float, float] | None:
        return self.ends


def parse(text: str) -> Gate:
    return parse_gate(text, COMPARE_METRICS)


def verdict(
    text: str,
    metric: Metric | None = None,
    *,
    baseline: Baseline | None = None,
    confidence: float | None = 0.95,
    excluded: int = 0,
    allow_excluded: bool = False,
    lower_bounds: tuple[str, ...] = (),
) -> GateResult:
    gate = parse(text)
    metrics: Mapping[str, Metric] = {gate.metric: KL if metric is None else metric}
    rules = Rules(
        excluded=excluded,
        allow_excluded=allow_excluded,
        lower_bounds=lower_bounds,
        confidence=confidence,
        baseline=baseline,
        tokens=TOKENS,
    )
    (result,) = judge([gate], metrics, rules)
    return result


# Where the interval lies


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kl<=0.8", "pass"),
        ("kl<=0.7", "pass"),
        ("kl<=0.69", "inconclusive"),
        ("kl<=0.5", "inconclusive"),
        ("kl<=0.4", "inconclusive"),
        ("kl<=0.39", "fail"),
        ("kl>=0.3", "pass"),
        ("kl>=0.4", "pass"),
        ("kl>=0.41", "inconclusive"),
        ("kl>=0.5", "inconclusive"),
        ("kl>=0.7", "inconclusive"),
        ("kl>=0.71", "fail"),
        ("kl.p99<=3", "pass"),
        ("kl.p99<=2.9", "inconclusive"),
        ("kl.p99<=1.4", "fail"),
        ("kl.p99>=1.5", "pass"),
        ("kl.p99>=1.6", "inconclusive"),
        ("kl.p99>=3.1", "fail"),
    ],
)
def test_where_the_interval_lies_decides(text: str, expected: str) -> None:
    assert verdict(text).verdict == expected


def test_without_confidence_the_number_itself_decides() -> None:
    assert verdict("kl<=0.5", confidence=None).verdict == "pass"
    assert verdict("kl<=0.49", confidence=None).verdict == "fail"
    assert verdict("kl<=0.5", confidence=None).ci_low is None


@pytest.mark.parametrize(
    ("text", "ends"), [("kl<=1", (0.4, 0.7)), ("kl<=0.5", (0.4, 0.7)), ("kl.p99<=1", (1.5, 3.0))]
)
def test_the_interval_that_decided_is_told(text: str, ends: tuple[float, float]) -> None:
    assert (verdict(text).ci_low, verdict(text).ci_high) == ends


def test_a_derived_number_has_its_own_interval() -> None:
    agreement: Metric = {"value": 0.98, "ci_low": 0.97, "ci_high": 0.99}
    found = [verdict(f"top1_agreement>={limit}", agreement) for limit in (0.96, 0.975, 0.995)]
    assert [one.verdict for one in found] == ["pass", "inconclusive", "fail"]


def test_a_failed_gate_beats_an_inconclusive_one() -> None:
    passed, failed, open_ = verdict("kl<=1"), verdict("kl<=0.1"), verdict("kl<=0.5")
    assert overall([passed, open_]) == "inconclusive"
    assert overall([open_, failed, passed]) == "fail"
    assert overall([passed, passed]) == "pass"


# What is not known


@pytest.mark.parametrize("metric", [{"mean": 0.5}, KL | {"ci_low": None, "ci_high": None}])
def test_without_an_interval_nothing_is_decided(metric: Metric) -> None:
    result = verdict("kl<=1", metric)
    assert result.verdict == "inconclusive"
    assert "too short for an interval" in str(result.reason)
    assert result.more_tokens is None


@pytest.mark.parametrize("value", [None, math.nan])
@pytest.mark.parametrize("text", ["kl<=1", "kl>=0"])
def test_what_is_no_number_fails(text: str, value: float | None) -> None:
    result = verdict(text, KL | {"mean": value})
    assert result.verdict == "fail"
    assert result.reason is not None


def test_an_infinite_mean_is_below_no_limit() -> None:
    nothing: Metric = {"mean": math.inf, "ci_low": None, "ci_high": None}
    assert verdict("kl<=1", nothing).verdict != "pass"


def test_excluded_tokens_fail_a_gate_that_would_pass_or_be_open() -> None:
    for limit in (0.8, 0.5):
        result = verdict(f"kl<={limit}", excluded=3)
        assert result.verdict == "fail"
        assert "3 tokens are excluded" in str(result.reason)
    assert verdict("kl<=0.8", excluded=3, allow_excluded=True).verdict == "pass"
    assert verdict("kl<=0.5", excluded=3, allow_excluded=True).verdict == "inconclusive"


def test_a_lower_bound_is_not_shown_to_be_below_a_limit() -> None:
    assert verdict("kl<=0.8", lower_bounds=("kl",)).verdict == "fail"
    assert "at least" in str(verdict("kl<=0.8", lower_bounds=("kl",)).reason)
    assert verdict("kl>=0.3", lower_bounds=("kl",)).verdict == "pass"


@pytest.mark.parametrize(
    "text",
    ["kl.max<=1", "kl.se<=1", "kl.ci_high<=1", "kl.p99_high<=1", "kl.n_eff>=9", "flips.lost<=3",
     "flips.p>=0.05"],
)  # fmt: skip
def test_a_field_without_an_interval_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="has no interval"):
        interval_fields(parse(text), COMPARE_METRICS)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("kl<=1", ("ci_low", "ci_high")),
        ("kl.p99<=1", ("p99_low", "p99_high")),
        ("kl.median<=1", ("median_low", "median_high")),
        ("top1_agreement>=0.9", ("ci_low", "ci_high")),
        ("perplexity_ratio<=1.1", ("ci_low", "ci_high")),
        ("flips.net>=0", ("net_low", "net_high")),
    ],
)
def test_a_mean_a_quantile_and_a_derived_number_have_one(
    text: str, fields: tuple[str, str]
) -> None:
    assert interval_fields(parse(text), COMPARE_METRICS) == fields


def test_every_mean_and_value_can_be_held_to_a_confidence() -> None:
    for metrics in (COMPARE_METRICS, PERPLEXITY_METRICS):
        for metric, fields in metrics.items():
            if fields[0] in ("mean", "value"):
                interval_fields(parse_gate(f"{metric}<=1", metrics), metrics)


# How many tokens more


@pytest.mark.parametrize(
    ("limit", "more"),
    [(0.6, 3000), (0.69, 109), (0.55, 15000), (0.45, 3000), (0.41, 235), (0.501, 39_999_000)],
)
def test_an_open_gate_says_how_many_more_tokens_would_decide(limit: float, more: int) -> None:
    """The half that reaches to the limit shrinks with 1/√tokens until it does not."""
    result = verdict(f"kl<={limit}")
    assert result.verdict == "inconclusive"
    assert result.more_tokens == pytest.approx(more, abs=1)
    assert f"about {result.more_tokens:,} more tokens" in str(result.reason)


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("overlap_5>=0.95", {"mean": 0.9, "ci_low": 0.7, "ci_high": 1.0}),
        ("tv<=0.05", {"mean": 0.1, "ci_low": 0.0, "ci_high": 0.3}),
        ("flips.net<=-0.95", {"net": -0.9, "net_low": -1.0, "net_high": -0.7}),
    ],
)
def test_an_end_that_is_cut_off_at_a_bound_does_not_count_as_close(
    text: str, metric: Metric
) -> None:
    """The other half of 0.2 does, four times the distance: 15 times as many more are wanted."""
    result = verdict(text, metric)
    assert result.verdict == "inconclusive"
    assert result.more_tokens == pytest.approx(15 * TOKENS, abs=1)


def test_no_number_of_tokens_tells_a_number_from_itself() -> None:
    result = verdict("kl<=0.5")
    assert result.more_tokens is None
    assert "more tokens are unlikely to decide it" in str(result.reason)


@pytest.mark.parametrize("seed", range(5))
def test_so_many_more_tokens_of_the_same_kind_decide(seed: int) -> None:
    """The estimate, held to a text that is so much longer, around the same mean."""
    x = np.random.default_rng(seed).lognormal(size=4000)

    def judged(x: np.ndarray[tuple[int], np.dtype[np.float64]], limit: float) -> GateResult:
        sizes = np.bincount(np.arange(len(x)) // 40)
        clusters = Clusters(sizes, np.zeros(len(sizes), dtype=np.bool_))
        rules = Rules(excluded=0, allow_excluded=False, confidence=0.95, tokens=len(x))
        gate = parse(f"kl<={limit}")
        return judge([gate], {"kl": mean_metric(x, clusters)}, rules)[0]

    limit = float(x.mean()) * 1.01
    open_ = judged(x, limit)
    assert open_.verdict == "inconclusive"
    assert open_.more_tokens is not None
    times = 1 + open_.more_tokens / len(x)
    assert judged(np.tile(x, math.ceil(1.1 * times)), limit).verdict == "pass"
    assert judged(np.tile(x, math.floor(0.9 * times)), limit).verdict == "inconclusive"


# Relative limits


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("kl<=baseline", 1.0),
        ("kl.mean<=1.1*baseline", 1.1),
        (" kl.p99 <= 2e0*baseline ", 2.0),
        ("top1_agreement>=.99*baseline", 0.99),
    ],
)
def test_a_limit_may_be_so_many_times_that_of_an_earlier_run(text: str, times: float) -> None:
    gate = parse(text)
    assert (gate.limit, gate.relative) == (times, True)
    assert not parse("kl<=1.1").relative


@pytest.mark.parametrize(
    "text",
    ["kl<=*baseline", "kl<=x*baseline", "kl<=nan*baseline", "kl<=baseline*2", "kl<=1.1 * baseline",
     "kl<=2*3*baseline", "kl<=baseline2", "kl<=-baseline"],
)  # fmt: skip
def test_what_is_no_relative_limit_is_a_usage_error_that_shows_one(text: str) -> None:
    with pytest.raises(UsageError, match=r"1\.1\*baseline"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kl<=baseline", "pass"),
        ("kl<=0.9*baseline", "fail"),
        ("kl>=baseline", "pass"),
        ("kl>=1.1*baseline", "fail"),
        ("kl.p99<=4*baseline", "pass"),
    ],
)
def test_without_confidence_both_numbers_are_compared(text: str, expected: str) -> None:
    result = verdict(text, baseline=FakeBaseline(0.5), confidence=None)
    assert result.verdict == expected
    assert result.limit == pytest.approx(parse(text).limit * 0.5)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((-0.3, -0.1), "pass"),
        ((-0.3, 0.0), "pass"),
        ((-0.2, 0.1), "inconclusive"),
        ((0.1, 0.3), "fail"),
        (None, "inconclusive"),
    ],
)
def test_with_confidence_the_difference_to_the_baseline_decides(
    ends: tuple[float, float] | None, expected: str
) -> None:
    number = 0.6 if ends is None or sum(ends) <= 0 else 0.3
    result = verdict("kl<=baseline", baseline=FakeBaseline(number, ends))
    assert result.verdict == expected
    if ends is not None:
        assert result.ci_low == pytest.approx(number + ends[0])
        assert result.ci_high == pytest.approx(number + ends[1])


@pytest.mark.parametrize("baseline", [None, FakeBaseline(None)])
def test_a_baseline_that_does_not_know_the_number_fails_the_gate(
    baseline: Baseline | None,
) -> None:
    result = verdict("kl<=1.1*baseline", baseline=baseline)
    assert result.verdict == "fail"
    assert "not known in the baseline" in str(result.reason)


def test_excluded_tokens_fail_a_relative_gate() -> None:
    baseline = FakeBaseline(0.6, (-0.2, -0.1))
    assert verdict("kl<=baseline", baseline=baseline, excluded=1).verdict == "fail"


# Corners


def test_a_quantile_whose_interval_has_no_upper_end_can_still_fail() -> None:
    open_above = KL | {"p99_high": None}
    assert verdict("kl.p99<=1", open_above).verdict == "fail"
    assert verdict("kl.p99>=1", open_above).verdict == "pass"


def test_a_quantile_whose_interval_has_no_upper_end_does_not_pass() -> None:
    open_above = KL | {"p99_high": None}
    assert verdict("kl.p99<=9", open_above).verdict == "inconclusive"
    assert verdict("kl.p99<=1.7", open_above).verdict == "inconclusive"


def test_an_open_gate_wants_one_more_token_at_least() -> None:
    assert (verdict("kl<=0.4").more_tokens or 0) >= 1
