"""Gates: pass means the comparison is true."""

import math

import pytest

from klcli.errors import UsageError
from klcli.judge.gate import Gate, GateResult, Rules, judge, overall, parse_gate
from klcli.judge.metrics import COMPARE_METRICS, PERPLEXITY_METRICS


def parse(text: str) -> Gate:
    return parse_gate(text, COMPARE_METRICS)


def verdict(
    text: str, value: float | None, *, excluded: int = 0, allow: bool = False
) -> GateResult:
    gate = parse(text)
    metrics = {gate.metric: {gate.field: value}}
    (result,) = judge([gate], metrics, Rules(excluded=excluded, allow_excluded=allow))
    return result


@pytest.mark.parametrize(
    ("text", "metric", "field", "operator", "limit"),
    [
        ("kl.mean<=0.01", "kl", "mean", "<=", 0.01),
        ("kl<=0.01", "kl", "mean", "<=", 0.01),
        (" kl.p99 <= 5e-1 ", "kl", "p99", "<=", 0.5),
        ("top1_agreement>=.98", "top1_agreement", "value", ">=", 0.98),
        ("perplexity_ratio.ci_high<=1.01", "perplexity_ratio", "ci_high", "<=", 1.01),
        ("flips.net>=-0.001", "flips", "net", ">=", -0.001),
    ],
)
def test_gates_are_read(text: str, metric: str, field: str, operator: str, limit: float) -> None:
    gate = parse(text)
    assert (gate.metric, gate.field, gate.operator, gate.limit) == (metric, field, operator, limit)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a gate"),
        ("kl", "is not a gate"),
        ("kl<0.01", "is not a gate"),
        ("kl==0", "is not a gate"),
        ("kl<=", "is not a gate"),
        ("kl<=many", "is not a gate"),
        ("kl<=nan", "is not a gate"),
        ("kl<=1_0", "is not a gate"),
        ("kl<=１", "is not a gate"),
        ("kl<=٠.٠١", "is not a gate"),
        ("kl<=0x1", "is not a gate"),
        ("kl<=inf", "is not a gate"),
        ("kl<=0.01 or so", "is not a gate"),
        ("kld<=0.01", "unknown metric 'kld'"),
        ("kl.p98<=0.01", "no field 'p98'"),
        ("flips<=0", "several numbers"),
    ],
)
def test_what_is_not_a_gate_is_a_usage_error_that_says_why(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(text)


def test_a_gate_of_perplexity_is_unknown_to_compare_and_the_other_way_round() -> None:
    with pytest.raises(UsageError, match="perplexity_reference"):
        parse_gate("perplexity<=24", COMPARE_METRICS)
    with pytest.raises(UsageError, match="nll"):
        parse_gate("kl<=1", PERPLEXITY_METRICS)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("kl<=0.01", 0.01, "pass"),
        ("kl<=0.01", 0.010000000000000002, "fail"),
        ("kl<=0.01", math.inf, "fail"),
        ("kl<=0.01", math.nan, "fail"),
        ("kl>=0", math.nan, "fail"),
        ("kl<=0.01", None, "fail"),
        ("kl>=0.01", 0.02, "pass"),
        ("kl>=0.01", 0.0, "fail"),
    ],
)
def test_the_point_estimate_decides(text: str, value: float | None, expected: str) -> None:
    assert verdict(text, value).verdict == expected


def test_what_is_not_known_fails_and_says_so() -> None:
    assert verdict("bits_per_byte_reference<=1", None).reason is not None


def test_excluded_tokens_fail_a_gate_unless_they_are_allowed() -> None:
    assert verdict("kl<=1", 0.5, excluded=3).verdict == "fail"
    assert "3 tokens" in str(verdict("kl<=1", 0.5, excluded=3).reason)
    assert verdict("kl<=1", 0.5, excluded=3, allow=True).verdict == "pass"
    assert verdict("kl<=1", 1.5, excluded=3, allow=True).verdict == "fail"


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], None), ([0.0], "pass"), ([0.0, 2.0], "fail"), ([2.0, 0.0], "fail")],
)
def test_one_failed_gate_fails_the_run(values: list[float], expected: str | None) -> None:
    assert overall([verdict("kl<=1", value) for value in values]) == expected


class Known:
    """A baseline of which one number is known."""

    def __init__(self, value: float | None) -> None:
        self._value = value

    def value(self, gate: Gate) -> float | None:
        return self._value

    def difference(self, gate: Gate, metric: object, confidence: float) -> None:
        return None


@pytest.mark.parametrize("confidence", [None, 0.95])
@pytest.mark.parametrize("value", [0.001, math.inf])
@pytest.mark.parametrize(
    ("text", "baseline"),
    [
        ("kl<=1.1*baseline", math.inf),
        ("kl<=baseline", math.nan),
        ("kl>=baseline", -math.inf),
        ("kl<=10*baseline", 1e308),
    ],
)
def test_a_limit_that_is_not_finite_fails_and_says_why(
    text: str, baseline: float, value: float, confidence: float | None
) -> None:
    rules = Rules(excluded=0, allow_excluded=False, baseline=Known(baseline), confidence=confidence)
    (result,) = judge([parse(text)], {"kl": {"mean": value}}, rules)
    assert result.verdict == "fail"
    assert result.reason is not None
    assert "the limit is not finite" in result.reason
    assert f"{baseline:g} in the baseline" in result.reason
