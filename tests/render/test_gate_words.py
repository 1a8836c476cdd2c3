"""What became of a gate, in words."""

import io
import math

import pytest

from klcli.render.gate_words import distance, gate_words
from klcli.render.github import render_github
from klcli.render.junit import render_junit
from klcli.render.plain import failure
from tests.render.reports import compare_report, gate


@pytest.mark.parametrize(
    ("value", "limit", "says"),
    [
        (0.272, 0.01, "27.2 × over"),
        (0.012, 0.01, "20 % over"),
        (0.01, 0.03, "3 × under"),
        (0.718, 0.98, "26.7 % under"),
        (0.5, 0.0, "0.5 over"),
        (-0.02, -0.01, "0.01 under"),
        (0.1, -0.1, "0.2 over"),
        (math.inf, 1.0, "inf over"),
        (1.0, 1.0, "exactly there"),
    ],
)
def test_the_distance_is_a_factor_where_that_makes_sense(
    value: float, limit: float, says: str
) -> None:
    assert distance(value, limit) == says


def test_a_failed_gate_says_its_limit_and_how_far_it_is_off() -> None:
    assert gate_words(gate("kl<=1%", 0.27, 0.01)) == "limit 0.01, 27 × over"


def test_against_a_baseline_it_says_all_three() -> None:
    one = gate("kl<=1.1*baseline", 0.11, 0.055, baseline=0.05)
    assert gate_words(one) == "baseline 0.05, limit 0.055, 2 × over"
    passed = gate("kl<=1.1*baseline", 0.05, 0.055, baseline=0.05, verdict="pass")
    assert gate_words(passed) == "baseline 0.05, limit 0.055"


def test_another_reason_stands_for_the_distance() -> None:
    assert gate_words(gate("kl<=1", None, 1.0, reason="not known")) == "not known"
    assert gate_words(gate("kl<=1", 0.5, 1.0, verdict="pass")) == ""


def test_every_output_says_the_same_words_of_a_gate() -> None:
    one = gate("kl<=1.1*baseline", 0.11, 0.055, baseline=0.05)
    report = compare_report(gates=[one], verdict="fail")
    says = "0.11, baseline 0.05, limit 0.055, 2 × over"
    printed, written = io.StringIO(), io.BytesIO()
    render_github(report, printed)
    render_junit(report, written)
    assert says in printed.getvalue()
    assert f'message="{says}"' in written.getvalue().decode()
    assert f"kl<=1.1*baseline  {says}" in failure(report)
