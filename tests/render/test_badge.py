import io
import json
import math

import pytest

from klcli.judge.report import Report
from klcli.render.badge import render_badge
from tests.render.reports import compare_metrics, compare_report, perplexity_report


def badge_of(report: Report) -> dict[str, object]:
    stream = io.StringIO()
    render_badge(report, stream)
    return dict(json.loads(stream.getvalue()))


def test_a_badge_is_what_shields_reads() -> None:
    assert badge_of(compare_report()) == {
        "schemaVersion": 1,
        "label": "KL",
        "message": "0.0123 nats",
        "color": "blue",
    }


@pytest.mark.parametrize(
    ("verdict", "colour"), [("pass", "brightgreen"), ("fail", "red"), ("inconclusive", "yellow")]
)
def test_a_verdict_has_a_colour_and_a_word(verdict: str, colour: str) -> None:
    badge = badge_of(compare_report(verdict=verdict))
    assert (badge["message"], badge["color"]) == (f"0.0123 nats, {verdict}", colour)


@pytest.mark.parametrize(
    ("kl", "message"), [(None, "unknown nats"), (math.inf, "inf nats"), (0.0, "0 nats")]
)
def test_a_badge_of_any_kl_has_a_message(kl: float | None, message: str) -> None:
    assert badge_of(compare_report(metrics=compare_metrics(kl)))["message"] == message


def test_a_lower_bound_is_marked() -> None:
    assert badge_of(compare_report(lower_bounds=["kl"]))["message"] == "≥ 0.0123 nats"


def test_one_model_has_a_badge_of_its_perplexity() -> None:
    badge = badge_of(perplexity_report())
    assert (badge["label"], badge["message"]) == ("perplexity", "8.51")
