"""Ending a run early: which goals there are, and when they are reached."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from klcli.errors import UsageError
from klcli.judge.gate import parse_gate
from klcli.judge.metrics import BOUNDS, COMPARE_METRICS, PERPLEXITY_METRICS
from klcli.judge.until import MEANS, Precision, Until, parse_until
from klcli.measure.gathered import ScoredBatch
from klcli.text.cutting import plan_windows
from klcli.text.protocols import Protocol
from klcli.text.windows import TokenizedDocument, WindowTable

CONTEXT, WINDOWS = 8, 200


def table_of(tokens: int) -> WindowTable:
    """The windows of one document, of which each token but the first is scored."""
    ids = np.ones(tokens + 1, dtype=np.int64)
    document = TokenizedDocument(corpus=0, name="text", ids=ids, encoding=None)
    protocol = Protocol(
        name="rolling",
        context=CONTEXT,
        stride=CONTEXT,
        score_from=0,
        bos="none",
        special_tokens="text",
    )
    return plan_windows([document], protocol, None)


TABLE = table_of(CONTEXT * WINDOWS)


def until(goal: str, *gates: str, alpha: float = 0.05, kl_bound: float | None = None) -> Until:
    parsed = [parse_gate(gate, COMPARE_METRICS) for gate in gates]
    return Until(
        goal=parse_until(goal, parsed, known=COMPARE_METRICS),
        gates=parsed,
        alpha=alpha,
        kl_bound=kl_bound,
        table=TABLE,
    )


def batch_of(kl: Sequence[float], same: Sequence[bool] | None = None) -> ScoredBatch:
    """A batch whose tokens have these KLs; a NaN was excluded."""
    x = np.array(kl, dtype=np.float32)
    agrees = np.ones(len(x), dtype=np.bool_) if same is None else np.array(same)
    columns: dict[str, Any] = {
        "kl": x,
        "tv": np.minimum(x, 1),
        "top1_reference": np.zeros(len(x), dtype=np.int32),
        "top1_candidate": np.where(agrees, 0, 1).astype(np.int32),
        "excluded": np.isnan(x),
    }
    return ScoredBatch(
        batches=[0],
        index=np.arange(len(x)),
        columns=columns,
        alternatives={},
        padded_mass={},
        kinds={},
    )


def windows_until_over(watch: Until, *, per_batch: int = 1, seed: int = 0) -> int:
    """Feed KLs of about 0.5 until it is over; how many windows that took."""
    rng = np.random.default_rng(seed)
    for start in range(0, WINDOWS, per_batch):
        numbers = list(range(start, min(start + per_batch, WINDOWS)))
        if watch(numbers, batch_of(rng.uniform(0.4, 0.6, CONTEXT * len(numbers)).tolist())):
            return numbers[-1] + 1
    return WINDOWS


# Goals


@pytest.mark.parametrize("metric", ["kl", "top1_agreement", "nll_candidate", "jsd"])
@pytest.mark.parametrize("text", ["{}±0.01", "{}.mean±0.01", "{}+-1e-2", " {} ± .01 "])
def test_a_mean_and_a_distance_are_a_goal(metric: str, text: str) -> None:
    goal = parse_until(text.format(metric), [], known=COMPARE_METRICS)
    assert goal == Precision(metric=metric, distance=0.01)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "kl", "kl±", "kl±0", "kl±-1", "kl±nan", "kl±many", "kl.p99±0.1", "kl.max±0.1",
     "±0.1", "perplexity_ratio±0.1", "nll_difference±0.1", "nll±0.1", "kld±0.1", "Decided"],
)  # fmt: skip
def test_what_is_no_goal_is_a_usage_error_that_shows_one(text: str) -> None:
    with pytest.raises(UsageError, match=r"'kl\.mean±0\.001'"):
        parse_until(text, [], known=COMPARE_METRICS)


@pytest.mark.parametrize(
    "gate",
    ["kl.p99<=0.5", "kl.median<=0.5", "kl.max<=1", "kl.ci_high<=0.1", "kl<=1.1*baseline",
     "perplexity_ratio<=1.1", "nll_difference<=0.1", "delta_p>=0", "flips.net>=0"],
)  # fmt: skip
def test_what_cannot_be_decided_from_part_of_a_text_is_a_usage_error(gate: str) -> None:
    parsed = [parse_gate(text, COMPARE_METRICS) for text in ("kl<=1", gate)]
    with pytest.raises(UsageError, match="cannot be decided from part of the text") as error:
        parse_until("decided", parsed, known=COMPARE_METRICS)
    assert repr(gate) in str(error.value)


def test_there_must_be_something_to_decide() -> None:
    with pytest.raises(UsageError, match="give a --gate"):
        parse_until("decided", [], known=COMPARE_METRICS)


def test_the_metrics_of_the_other_command_are_not_offered() -> None:
    gate = parse_gate("perplexity<=24", PERPLEXITY_METRICS)
    with pytest.raises(UsageError, match=r"gate one of nll, entropy, against"):
        parse_until("decided", [gate], known=PERPLEXITY_METRICS)


def test_every_mean_that_can_be_a_goal_is_a_metric() -> None:
    known = COMPARE_METRICS.keys() | PERPLEXITY_METRICS.keys()
    assert set(MEANS) <= known
    assert {BOUNDS[metric][0] for metric in MEANS} == {0}


# Gates


def test_a_gate_far_off_is_decided_by_a_part_of_the_windows() -> None:
    passes, fails = until("decided", "kl<=5"), until("decided", "kl<=0.01")
    for watch, verdict in ((passes, "pass"), (fails, "fail")):
        assert windows_until_over(watch) < WINDOWS
        assert [one.verdict for one in watch.results()] == [verdict]
        assert watch.summary()["reached"] is True


def test_a_gate_at_the_mean_takes_all_windows_and_is_decided() -> None:
    watch = until("decided", "kl<=0.5001")
    assert windows_until_over(watch) > 0.9 * WINDOWS
    assert [one.verdict for one in watch.results()] != ["inconclusive"]


def test_an_open_gate_is_inconclusive() -> None:
    watch = until("decided", "kl<=0.5")
    assert not watch([0], batch_of([0.5] * CONTEXT))
    (result,) = watch.results()
    assert result.verdict == "inconclusive"
    assert result.value == pytest.approx(0.5)
    assert result.ci_low == pytest.approx(0.5 / WINDOWS)
    assert result.ci_high is None


def test_before_the_first_window_nothing_is_known() -> None:
    (result,) = until("decided", "kl<=0.5").results()
    assert (result.verdict, result.value) == ("inconclusive", None)


def test_several_gates_share_the_probability_of_an_error() -> None:
    alone = until("decided", "kl<=0.55", alpha=0.05)
    shared = until("decided", "kl<=0.55", "kl>=0.45", "kl<=9", "tv<=0.8", alpha=0.05)
    strict = until("decided", "kl<=0.55", alpha=0.0125)
    for watch in (alone, shared, strict):
        rng = np.random.default_rng(1)
        for number in range(50):
            watch([number], batch_of(rng.uniform(0.4, 0.6, CONTEXT).tolist()))
    assert shared.band("kl") == strict.band("kl")
    assert shared.band("kl").high > alone.band("kl").high
    assert shared.summary()["confidence"] == 0.95


def test_a_run_goes_on_until_every_gate_is_decided() -> None:
    easy, hard = until("decided", "kl<=5"), until("decided", "kl<=0.52")
    both = until("decided", "kl<=5", "kl<=0.52")
    used = [windows_until_over(one) for one in (easy, hard, both)]
    assert used[0] < used[1] <= used[2]


def test_windows_of_one_batch_are_counted_one_by_one() -> None:
    one, many = until("decided", "kl<=0.5"), until("decided", "kl<=0.5")
    kl = np.random.default_rng(2).uniform(0.4, 0.6, 40 * CONTEXT).tolist()
    for number in range(40):
        one([number], batch_of(kl[number * CONTEXT : (number + 1) * CONTEXT]))
    many(list(range(40)), batch_of(kl))
    assert many.drawn["kl"].sums == pytest.approx(one.drawn["kl"].sums)
    assert many.summary()["windows"] == 40
    assert many.summary()["tokens"] == 40 * CONTEXT
    assert many.band("kl").high == pytest.approx(one.band("kl").high)


def test_agreement_is_of_both_first_predictions() -> None:
    watch = until("decided", "top1_agreement>=0.9")
    watch([0], batch_of([0.5] * CONTEXT, [True, False] * (CONTEXT // 2)))
    assert watch.drawn["top1_agreement"].sums == [CONTEXT / 2]


# Precision


def test_a_mean_is_known_well_enough_when_half_of_its_band_is_so_narrow() -> None:
    watch = until("top1_agreement±0.2")
    used = windows_until_over(watch)
    band = watch.band("top1_agreement")
    assert used < WINDOWS
    assert (band.high - band.low) / 2 <= 0.2
    assert watch.summary()["goal"] == "top1_agreement.mean±0.2"


def test_a_finer_goal_takes_more_windows() -> None:
    used = [windows_until_over(until(f"kl±{distance}")) for distance in (0.2, 0.05, 0.02, 1e-9)]
    assert used == sorted(used)
    assert used[0] < used[-1] == WINDOWS


def test_gates_do_not_share_in_the_band_of_a_precision() -> None:
    alone, gated = until("kl±0.001"), until("kl±0.001", "kl<=1", "kl<=2")
    for watch in (alone, gated):
        for number in range(40):
            watch([number], batch_of([0.5] * CONTEXT))
    assert alone.band("kl") == gated.band("kl")


def test_a_bound_of_kl_makes_its_sequence_exact_in_the_small_too() -> None:
    asymptotic, bounded = until("kl±0.1"), until("kl±0.1", kl_bound=2.0)
    for watch in (asymptotic, bounded):
        watch([0], batch_of([0.5] * CONTEXT))
    assert asymptotic.band("kl").method == "asymptotic"
    assert bounded.band("kl").method == "bounded"
    assert bounded.band("kl").high <= 2.0 < asymptotic.band("kl").high


def test_a_bound_of_kl_is_none_of_nll() -> None:
    watch = until("nll_candidate±0.1", kl_bound=2.0)
    assert math.isinf(watch.drawn["nll_candidate"].upper)


# Excluded tokens


def broken(place: int = 3) -> ScoredBatch:
    kl = [0.5] * CONTEXT
    kl[place] = math.nan
    return batch_of(kl)


@pytest.mark.parametrize("gate", ["kl<=5", "kl>=0", "top1_agreement>=0", "top1_agreement<=1"])
def test_a_gate_does_not_pass_once_a_token_is_excluded(gate: str) -> None:
    watch = until("decided", gate)
    watch([0], broken())
    for number in range(1, WINDOWS):
        watch([number], batch_of([0.5] * CONTEXT))
        assert watch.results()[0].verdict != "pass"
    assert watch.results()[0].ci_low is None


def test_a_mean_with_an_excluded_token_is_never_known() -> None:
    watch = until("kl±100")
    assert not any(
        watch([n], broken() if n == 0 else batch_of([0.5] * CONTEXT)) for n in range(WINDOWS)
    )
    assert watch.summary()["reached"] is False
    assert watch.summary()["bands"]["kl"]["low"] is None


def test_an_infinite_kl_fails_a_gate_at_once() -> None:
    watch = until("decided", "kl<=5")
    assert watch([0], batch_of([math.inf, *[0.5] * (CONTEXT - 1)]))
    assert watch.results()[0].verdict == "fail"


# Corners


def test_an_excluded_token_fails_a_gate_at_once_and_says_so() -> None:
    watch = until("decided", "kl<=5")
    assert watch([0], broken())
    (result,) = watch.results()
    assert result.verdict == "fail"
    assert "excluded" in str(result.reason)


def test_a_kl_above_the_bound_that_was_given_is_noticed() -> None:
    watch = until("kl±0.1", kl_bound=0.25)
    with pytest.raises(UsageError, match="--kl-bound"):
        watch([0], batch_of([0.5] * CONTEXT))


def test_an_infinite_distance_is_no_goal() -> None:
    with pytest.raises(UsageError):
        parse_until("kl±inf", [], known=COMPARE_METRICS)
