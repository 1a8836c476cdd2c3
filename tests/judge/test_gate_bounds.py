"""Gates on lower bounds: nothing passes, or fails without a word, that the truth may contradict."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from klcli.judge.gate import Gate, GateResult, Rules, judge, parse_gate
from klcli.judge.intervals import Metric
from klcli.judge.metrics import COMPARE_METRICS
from klcli.judge.sequential import decide
from klcli.judge.until import Until
from tests.judge.test_until import TABLE

NUMBERS = (0.1, 0.2, 0.3)
FACTORS = (-1.0, 0.0, 0.5, 1.0, 2.0)
HIGHER = (0.0, 0.05, 0.1, 0.7, 5.0)
"""By how much a true number may be above its lower bound."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A baseline whose number is known without any error."""

    number: float

    def value(self, gate: Gate) -> float:
        return self.number

    def difference(self, gate: Gate, metric: Metric, confidence: float) -> tuple[float, float]:
        found = metric[gate.field]
        assert found is not None
        return found - gate.limit * self.number, found - gate.limit * self.number


def judged(text: str, metric: Metric, rules: Rules) -> GateResult:
    gate = parse_gate(text, COMPARE_METRICS)
    return judge([gate], {gate.metric: metric}, rules)[0]


def known(value: float) -> Metric:
    """A number without any error, as a mean and as a quantile."""
    ends = {f"{name}_{end}": value for name in ("ci", "p99") for end in ("low", "high")}
    return {"mean": value, "p99": value, **ends}


@pytest.mark.parametrize("confidence", [None, 0.95])
@pytest.mark.parametrize("field", ["mean", "p99"])
@pytest.mark.parametrize("operator", ["<=", ">="])
def test_a_limit_passes_a_lower_bound_only_if_the_truth_is_inside(
    operator: str, field: str, confidence: float | None
) -> None:
    bound = Rules(excluded=0, allow_excluded=False, lower_bounds=("kl",), confidence=confidence)
    for value, limit in itertools.product(NUMBERS, NUMBERS):
        result = judged(f"kl.{field}{operator}{limit}", known(value), bound)
        truths = [value + more for more in HIGHER]
        holds = [x <= limit if operator == "<=" else x >= limit for x in truths]
        check(result, holds)


@pytest.mark.parametrize("confidence", [None, 0.95])
@pytest.mark.parametrize("operator", ["<=", ">="])
@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_so_does_a_relative_limit_whichever_of_both_runs_is_a_bound(
    here: bool, there: bool, operator: str, confidence: float | None
) -> None:
    for value, number, factor in itertools.product(NUMBERS, NUMBERS, FACTORS):
        rules = Rules(
            excluded=0,
            allow_excluded=False,
            lower_bounds=("kl",) if here else (),
            baseline_bounds=("kl",) if there else (),
            confidence=confidence,
            baseline=Earlier(number),
        )
        result = judged(f"kl{operator}{factor}*baseline", known(value), rules)
        holds = []
        for more, more_there in itertools.product(HIGHER, HIGHER):
            x, y = value + more * here, factor * (number + more_there * there)
            holds.append(x <= y if operator == "<=" else x >= y)
        check(result, holds)


def check(result: GateResult, holds: list[bool]) -> None:
    """It passes if all truths are inside; it fails, with a reason where some are."""
    assert (result.verdict == "pass") == all(holds)
    if result.verdict != "pass":
        assert result.verdict == "fail"
        assert (result.reason is not None) == any(holds)
    if result.reason is not None:
        assert "only known to be at least" in result.reason


@pytest.mark.parametrize("text", ["kl.se<=1", "kl.se>=1", "kl.ci_low>=0", "kl.n_eff<=0.01"])
def test_an_error_of_a_lower_bound_says_nothing(text: str) -> None:
    rules = Rules(excluded=0, allow_excluded=False, lower_bounds=("kl",))
    result = judged(text, {"se": 0.5, "ci_low": 0.5, "n_eff": 0.5}, rules)
    assert result.verdict == "fail"
    assert "is open" in str(result.reason)


def test_a_baseline_that_is_a_bound_does_not_touch_a_limit_that_is_a_number() -> None:
    rules = Rules(excluded=0, allow_excluded=False, baseline_bounds=("kl",))
    assert judged("kl<=0.5", known(0.1), rules).verdict == "pass"
    assert judged("kl<=0.5", known(0.6), rules).reason is None


@pytest.mark.parametrize(
    ("text", "seen", "verdict", "has_reason"),
    [
        ("kl<=1", 0.1, "fail", True),
        ("kl<=1", 9.0, "fail", False),
        ("kl>=1", 9.0, "pass", False),
        ("kl>=1", 0.1, "fail", True),
    ],
)  # fmt: skip
def test_a_run_that_ends_early_judges_a_bound_no_otherwise(
    text: str, seen: float, verdict: str, has_reason: bool
) -> None:
    gate = parse_gate(text, COMPARE_METRICS)
    until = Until("decided", [gate], 0.05, None, TABLE, lower_bounds=("kl",))
    sizes = np.array(TABLE.window_tokens)
    for size in sizes.tolist():
        until.drawn["kl"].add(seen * size, size)
    (result,) = until.results()
    assert decide(until.band("kl"), gate.operator, gate.limit) is not None
    assert (result.verdict, result.reason is not None) == (verdict, has_reason)
