"""Lists of top tokens: lower bounds, held to coarser distributions written out, and labelled."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klcli.api import record
from klcli.errors import MismatchError
from klcli.measure.kernels import exact, topk
from klcli.measure.kernels.sides import Side, TopK, Truncated, Whole, divergences
from klcli.sources.rows import TopBlock
from tests.measure import oracle
from tests.running import Run

Floats = npt.NDArray[np.float64]

INF = math.inf
BOUNDED = ("kl", "kl_reverse", "jsd", "tv")
TOLERANCE = 1e-6


def log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), dim=-1)


def random_rows(rows: int, width: int, seed: int, spread: float = 3.0) -> Tensor:
    """Random distributions, some of them peaked, as ln p."""
    generator = torch.Generator().manual_seed(seed)
    return log_softmax(spread * torch.randn(rows, width, generator=generator))


def top_of(log_p: Tensor, k: int) -> TopBlock:
    """The list of the k most probable ids, in float64."""
    values, ids = log_p.topk(k, dim=-1)
    rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(dim=-1)
    return exactly_known(ids, values, rest, torch.full((len(ids),), k))


def exactly_known(ids: Tensor, log_probs: Tensor, log_rest: Tensor, ranked: Tensor) -> TopBlock:
    """A list that was not rounded."""
    return TopBlock(ids, log_probs, torch.zeros_like(log_probs), log_rest, log_rest, ranked)


def one(ids: list[int], probabilities: list[float]) -> TopBlock:
    """One row that lists these ids; what is missing of 1 is the rest."""
    rest = 1 - math.fsum(probabilities)
    return exactly_known(
        torch.tensor([ids]),
        torch.tensor([probabilities], dtype=torch.float64).log(),
        torch.tensor([rest], dtype=torch.float64).clamp(min=0).log(),
        torch.tensor([len(ids)]),
    )


def whole(probabilities: list[float]) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def coarse(log_p: Tensor, ids: list[int]) -> Floats:
    """Probabilities of some ids, and what all others have together."""
    p = np.exp(log_p.numpy())
    others = np.delete(p, ids).sum()
    return np.append(p[ids], others)


def written_out(p: Floats, q: Floats) -> dict[str, float]:
    """The textbook sums over plain probabilities."""

    def kl(a: Floats, b: Floats) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(a > 0, a * np.log(a / b), 0.0).sum())

    m = (p + q) / 2
    return {
        "kl": kl(p, q),
        "kl_reverse": kl(q, p),
        "jsd": (kl(p, m) + kl(q, m)) / 2,
        "tv": float(np.abs(p - q).sum() / 2),
    }


def assert_figures(found: dict[str, Tensor], row: int, expected: dict[str, float]) -> None:
    for name in BOUNDED:
        assert float(found[name][row]) == pytest.approx(expected[name], abs=1e-12), name


def exactly(log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
    nowhere = torch.full(log_p.shape[:1], -1)
    return exact.divergences(log_p, log_q, nowhere)


# Against the coarser distributions, written out


P, Q = random_rows(20, 50, 1), random_rows(20, 50, 2)


@pytest.mark.parametrize("k", [1, 2, 7, 49])
def test_a_whole_distribution_and_a_list_are_compared_over_the_ids_of_the_list(k: int) -> None:
    of_p, of_q = top_of(P, k), top_of(Q, k)
    forward = topk.divergences(*topk.share_with_whole(P, of_q))
    backward = topk.divergences(*topk.share_with_whole(Q, of_p)[::-1])
    for row in range(len(P)):
        ids = of_q.ids[row].tolist()
        assert_figures(forward, row, written_out(coarse(P[row], ids), coarse(Q[row], ids)))
        ids = of_p.ids[row].tolist()
        assert_figures(backward, row, written_out(coarse(P[row], ids), coarse(Q[row], ids)))


@pytest.mark.parametrize(("k", "other"), [(1, 1), (3, 3), (10, 4), (4, 10), (49, 49), (50, 20)])
def test_two_lists_are_compared_over_the_ids_of_both(k: int, other: int) -> None:
    of_p, of_q = top_of(P, k), top_of(Q, other)
    found = topk.divergences(*topk.share_of_lists(of_p, of_q))
    shared = [
        sorted(set(a) & set(b)) for a, b in zip(of_p.ids.tolist(), of_q.ids.tolist(), strict=True)
    ]
    assert max(k, other) == 50 or any(len(ids) < min(k, other) for ids in shared)
    for row, ids in enumerate(shared):
        assert_figures(found, row, written_out(coarse(P[row], ids), coarse(Q[row], ids)))


def test_an_example_on_paper() -> None:
    p, q = topk.share_of_lists(one([7, 3], [0.5, 0.3]), one([3, 9], [0.6, 0.2]))
    assert p.low[0].exp().tolist() == pytest.approx([0.0, 0.3, 0.7])
    assert q.low[0].exp().tolist() == pytest.approx([0.0, 0.6, 0.4])
    found = topk.divergences(p, q)
    assert float(found["tv"]) == pytest.approx(0.3)
    kl = 0.3 * math.log(0.3 / 0.6) + 0.7 * math.log(0.7 / 0.4)
    assert float(found["kl"]) == pytest.approx(kl)


def test_lists_without_a_common_id_tell_nothing() -> None:
    found = topk.divergences(*topk.share_of_lists(one([1, 2], [0.5, 0.3]), one([3, 4], [0.6, 0.2])))
    assert [float(found[name]) for name in BOUNDED] == [0.0] * 4


# Lower bounds


log_probabilities = st.lists(
    st.tuples(st.floats(-30, 5), st.floats(-30, 5)), min_size=2, max_size=12
)


@settings(deadline=None, max_examples=60)
@given(log_probabilities, st.integers(1, 12), st.integers(1, 12))
def test_no_bound_is_above_the_truth(logits: list[tuple[float, float]], k: int, other: int) -> None:
    both = log_softmax(torch.tensor(logits).T)
    p, q = both[:1], both[1:]
    of_p, of_q = top_of(p, min(k, len(logits))), top_of(q, min(other, len(logits)))
    true = exactly(p, q)
    for shared in (
        topk.share_with_whole(p, of_q),
        topk.share_with_whole(q, of_p)[::-1],
        topk.share_of_lists(of_p, of_q),
    ):
        found = topk.divergences(*shared)
        for name in BOUNDED:
            assert -TOLERANCE <= float(found[name]) <= float(true[name]) + TOLERANCE, name


@pytest.mark.parametrize("name", BOUNDED)
def test_a_longer_list_knows_more(name: str) -> None:
    bounds = torch.stack(
        [topk.divergences(*topk.share_with_whole(P, top_of(Q, k)))[name] for k in (1, 2, 5, 20, 50)]
    )
    assert (bounds.diff(dim=0) >= -1e-12).all()
    torch.testing.assert_close(bounds[-1], exactly(P, Q)[name], atol=1e-12, rtol=0)
    assert (bounds[0] < bounds[-1]).all()


@pytest.mark.parametrize("spread", [0.1, 3.0, 12.0])
def test_lists_of_everything_give_the_exact_values(spread: float) -> None:
    p, q = random_rows(9, 30, 3, spread), random_rows(9, 30, 4, spread)
    of_p, of_q = top_of(p, 30), top_of(q, 30)
    assert of_p.log_rest.isneginf().all()
    true = exactly(p, q)
    for shared in (
        topk.share_with_whole(p, of_q),
        topk.share_with_whole(q, of_p)[::-1],
        topk.share_of_lists(of_p, of_q),
    ):
        found = topk.divergences(*shared)
        for name in BOUNDED:
            torch.testing.assert_close(found[name], true[name], atol=1e-10, rtol=1e-9)
    assert float(true["kl"][0]) == pytest.approx(oracle.kl(p[0].numpy(), q[0].numpy()), rel=1e-9)


@pytest.mark.parametrize("k", [1, 5, 50])
def test_equal_lists_differ_by_exactly_0(k: int) -> None:
    top = top_of(P, k)
    found = topk.divergences(*topk.share_of_lists(top, TopBlock(*(t.clone() for t in top))))
    for name in BOUNDED:
        assert not found[name].any(), name


@pytest.mark.parametrize("k", [1, 5, 50])
def test_a_distribution_against_its_own_list_differs_by_rounding_alone(k: int) -> None:
    top = top_of(P, k)
    stored = top._replace(
        log_probs=top.log_probs.float().double(),
        log_rest=top.log_rest.float().double(),
        log_least_rest=top.log_rest.float().double(),
    )
    found = topk.divergences(*topk.share_with_whole(P, stored))
    for name in BOUNDED:
        assert found[name].abs().max() < TOLERANCE, name


def test_a_rest_of_nothing_against_something_is_infinite_and_the_other_way_round_is_not() -> None:
    none, some = one([0, 1], [0.75, 0.25]), one([0, 1], [0.5, 0.25])
    forward = topk.divergences(*topk.share_of_lists(some, none))
    assert float(forward["kl"]) == INF
    backward = topk.divergences(*topk.share_of_lists(none, some))
    assert float(backward["kl"]) == pytest.approx(0.75 * math.log(1.5))
    assert float(backward["kl_reverse"]) == INF
    assert 0 < float(backward["jsd"]) <= math.log(2)


# What pads a list, and what lies outside


def padded(top: TopBlock, columns: int) -> TopBlock:
    """The same list with places that hold nothing."""
    rows = len(top.ids)
    return exactly_known(
        torch.cat([top.ids, torch.full((rows, columns), -1)], dim=-1),
        torch.cat([top.log_probs, torch.full((rows, columns), -INF).double()], dim=-1),
        top.log_rest,
        top.ranked,
    )


def test_places_that_hold_nothing_change_nothing() -> None:
    of_p, of_q = top_of(P, 5), top_of(Q, 5)
    with_whole = topk.divergences(*topk.share_with_whole(P, of_q))
    of_lists = topk.divergences(*topk.share_of_lists(of_p, of_q))
    for name in BOUNDED:
        found = topk.divergences(*topk.share_with_whole(P, padded(of_q, 3)))[name]
        torch.testing.assert_close(found, with_whole[name], atol=1e-15, rtol=1e-12)
        for lists in (
            (padded(of_p, 2), of_q),
            (of_p, padded(of_q, 4)),
            (padded(of_p, 1), padded(of_q, 1)),
        ):
            found = topk.divergences(*topk.share_of_lists(*lists))[name]
            torch.testing.assert_close(found, of_lists[name], atol=1e-15, rtol=1e-12)
    targets = Q.argmax(dim=-1)
    for name, values in topk.predictions(of_p, targets).items():
        found = topk.predictions(padded(of_p, 3), targets)[name]
        torch.testing.assert_close(found, values, equal_nan=True)


def test_a_row_that_lists_nothing_known_is_all_rest() -> None:
    nothing = exactly_known(
        torch.tensor([[-1, -1]]),
        torch.full((1, 2), -INF).double(),
        torch.zeros(1).double(),
        torch.tensor([0]),
    )
    found = topk.divergences(*topk.share_with_whole(whole([0.9, 0.1]), nothing))
    assert float(found["kl"]) == pytest.approx(0.0, abs=1e-15)
    said = topk.predictions(nothing, torch.tensor([0]))
    assert int(said["top1"]) == -1
    assert math.isnan(said["nll"])


def test_an_id_beyond_the_width_of_the_other_side_counts_as_rest() -> None:
    p, q = topk.share_with_whole(whole([0.6, 0.4]), one([0, 5], [0.5, 0.3]))
    assert q.low.exp()[0].tolist() == pytest.approx([0.5, 0.0, 0.5])
    assert p.low.exp()[0].tolist() == pytest.approx([0.6, 0.0, 0.4])


def test_the_lists_are_not_renormalised_without_their_rest() -> None:
    found = topk.divergences(*topk.share_of_lists(one([0], [0.2]), one([0], [0.1])))
    kl = 0.2 * math.log(2) + 0.8 * math.log(0.8 / 0.9)
    assert float(found["kl"]) == pytest.approx(kl)


# One side


def test_the_nll_is_exact_where_the_token_is_listed_and_not_known_elsewhere() -> None:
    log_p = random_rows(40, 50, 5)
    targets = torch.randint(0, 50, (40,), generator=torch.Generator().manual_seed(6))
    top = top_of(log_p, 6)
    found = topk.predictions(top, targets)
    true = exact.predictions(log_p, targets)
    listed = (top.ids == targets[:, None]).any(dim=-1)
    assert 0 < int(listed.sum()) < 40
    assert torch.equal(found["nll"][listed], true["nll"][listed])
    assert torch.equal(found["rank"][listed], true["rank"][listed].to(found["rank"].dtype))
    assert found["nll"][~listed].isnan().all()
    assert (found["rank"][~listed] == -1).all()
    assert torch.equal(found["top1"], true["top1"].to(found["top1"].dtype))
    torch.testing.assert_close(found["confidence"], true["confidence"])
    assert found["entropy"].isnan().all()
    assert (true["nll"][~listed] >= -top.log_rest[~listed] - 1e-12).all()


def test_a_token_that_is_not_known_is_not_the_one_that_pads_a_list() -> None:
    top = padded(one([3, 4], [0.5, 0.3]), 2)
    found = topk.predictions(top, torch.tensor([-1]))
    assert math.isnan(found["nll"])
    assert int(found["rank"]) == -1
    assert int(found["top1"]) == 3


def test_a_certain_token_has_the_nll_0_and_not_minus_0() -> None:
    nll = topk.predictions(one([3], [1.0]), torch.tensor([3]))["nll"]
    assert math.copysign(1.0, float(nll)) == 1.0


# Sides


def listed(log_p: Tensor, k: int) -> TopK:
    return TopK(top_of(log_p, k))


@pytest.mark.parametrize("k", [4, 5])
def test_the_overlap_of_the_top_five_needs_five(k: int) -> None:
    targets = torch.full((20,), -1)
    lists: list[tuple[Side, Side]] = [
        (Whole(P, P), listed(Q, k)),
        (listed(P, k), Whole(Q, Q)),
        (listed(P, k), listed(Q, k)),
        (listed(P, k), listed(Q, 9)),
    ]
    true = divergences(Whole(P, P), Whole(Q, Q), targets)["overlap_5"]
    for p, q in lists:
        found = divergences(p, q, targets)["overlap_5"]
        assert found.isnan().all() if k < 5 else torch.equal(found, true)


def test_delta_p_and_the_difference_of_nll_are_known_where_both_know_the_token() -> None:
    targets = Q.argmax(dim=-1)
    found = divergences(listed(P, 3), listed(Q, 3), targets)
    true = divergences(Whole(P, P), Whole(Q, Q), targets)
    known = (top_of(P, 3).ids == targets[:, None]).any(dim=-1)
    assert 0 < int(known.sum()) < 20
    for name in ("delta_p", "nll_difference"):
        torch.testing.assert_close(found[name][known], true[name][known])
        assert found[name][~known].isnan().all()


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("place", ["log_probs", "log_rest"])
def test_a_row_with_nan_or_infinity_is_no_distribution(place: str, value: float) -> None:
    top = top_of(P, 3)
    broken = top._replace(**{place: getattr(top, place).clone()})
    getattr(broken, place)[4] = value
    assert torch.nonzero(~TopK(broken).usable()).flatten().tolist() == [4]


def test_a_list_beside_a_base_file_of_llama_cpp_is_a_mismatch() -> None:
    targets = torch.full((20,), -1)
    sides: list[tuple[Side, Side]] = [
        (Truncated(P), listed(Q, 3)),
        (listed(P, 3), Truncated(Q)),
    ]
    for p, q in sides:
        with pytest.raises(MismatchError, match=r"base file of llama\.cpp"):
            divergences(p, q, targets)


# The report says so


@pytest.fixture(scope="module")
def folder(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of the fixture models: lists of six, and of all ids."""
    path = tmp_path_factory.mktemp("lists")
    for model, name, k in (
        ("reference", "reference.rec", 6),
        ("candidate", "candidate.rec", 6),
        ("candidate", "all.rec", 112),
    ):
        record(
            str(fixtures / "models" / model), fixtures / "corpus.txt", str(path / name),
            kind="topk", top_k=k, context=64, limit=3,
        )  # fmt: skip
    return path


def report_of(klcli: Run, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = klcli("compare", *arguments, "--format", "json", "--quiet")
    assert done.code == code, done.err
    return dict(json.loads(done.out))


def test_the_bounds_of_recorded_lists_are_below_the_figures_of_the_models(
    klcli: Run, folder: Path, reference: Path, candidate: Path, corpus: Path
) -> None:
    options = ("--context", "64", "--limit", "3")
    true = report_of(klcli, reference, candidate, corpus, *options)["metrics"]
    everything = report_of(klcli, reference, folder / "all.rec")
    for sides in (
        (reference, folder / "candidate.rec"),
        (folder / "reference.rec", candidate),
        (folder / "reference.rec", folder / "candidate.rec"),
    ):
        report = report_of(klcli, *sides)
        assert report["lower_bounds"] == list(BOUNDED)
        for name in BOUNDED:
            for field in ("mean", "max"):
                bound = report["metrics"][name][field]
                assert 0 < bound < true[name][field]
                found = everything["metrics"][name][field]
                assert found == pytest.approx(true[name][field], abs=TOLERANCE)
        assert report["metrics"]["top1_agreement"] == true["top1_agreement"]
        assert report["metrics"]["overlap_5"]["mean"] == true["overlap_5"]["mean"]


def test_a_comparison_of_whole_distributions_has_no_lower_bounds(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    options = ("--context", "64", "--limit", "1")
    assert report_of(klcli, reference, candidate, corpus, *options)["lower_bounds"] == []
    assert "≥" not in klcli("compare", reference, candidate, corpus, *options).out


def test_every_bound_is_labelled_wherever_it_is_shown(
    klcli: Run, folder: Path, candidate: Path, tmp_path: Path
) -> None:
    outputs = {ending: tmp_path / f"run{ending}" for ending in (".md", ".csv", ".jsonl", ".json")}
    options = [str(x) for path in outputs.values() for x in ("--output", path)]
    table = klcli(
        "compare", folder / "reference.rec", candidate, "--tokens", "all", "--details", *options
    ).out
    outliers = klcli("compare", folder / "reference.rec", candidate, "--details").out
    for text in (table, outliers, outputs[".md"].read_text(encoding="utf-8")):
        assert "KL(reference ‖ candidate), in nats, a lower bound" in text
        for label in ("KL(ref ‖ cand)", "KL(cand ‖ ref)", "Jensen–Shannon", "total variation"):
            assert f"≥ {label}" in text
        assert "≥ NLL" not in text
    assert re.search("≥ KL +NLL ref", table)
    assert re.findall(r"^ +1  KL (\S)", outliers, re.MULTILINE) == ["≥"]
    assert "| ≥ KL |" in outputs[".md"].read_text(encoding="utf-8")
    names = next(csv.reader(outputs[".csv"].read_text(encoding="utf-8").splitlines()))
    keys = list(json.loads(outputs[".jsonl"].read_text(encoding="utf-8").splitlines()[0]))
    assert keys == names
    for name in BOUNDED:
        assert f"{name}_lower_bound" in names
        assert name not in names
    assert "nll_reference" in names
    assert json.loads(outputs[".json"].read_text())["lower_bounds"] == list(BOUNDED)


def test_several_texts_have_labelled_columns(
    klcli: Run, fixtures: Path, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    record(
        str(reference), [corpus, fixtures / "other.txt"], str(tmp_path / "rec"),
        kind="topk", top_k=6, context=64, limit=1,
    )  # fmt: skip
    assert "≥ KL mean" in klcli("compare", tmp_path / "rec", candidate).out


@pytest.mark.parametrize(
    ("gate", "code", "verdict"),
    [
        ("kl<=100", 3, "fail"),
        ("kl.p99<=100", 3, "fail"),
        ("tv.mean<=1", 3, "fail"),
        ("jsd<=1", 3, "fail"),
        ("kl_reverse.max<=100", 3, "fail"),
        ("kl>=1e-9", 0, "pass"),
        ("kl>=100", 3, "fail"),
        ("top1_agreement>=0.5", 0, "pass"),
    ],
)
def test_a_bound_can_show_that_a_limit_is_passed_and_never_that_it_is_kept(
    klcli: Run, folder: Path, candidate: Path, gate: str, code: int, verdict: str
) -> None:
    report = report_of(klcli, folder / "reference.rec", candidate, "--gate", gate, code=code)
    [result] = report["gates"]
    assert result["verdict"] == report["verdict"] == verdict
    says = "is only known to be at least this: the limit cannot be shown to hold"
    assert (says in (result["reason"] or "")) == ("<=" in gate)
    assert isinstance(result["value"], float)


def test_what_is_not_known_is_said_and_no_mean_is_made_of_the_rest(
    klcli: Run, folder: Path, candidate: Path
) -> None:
    report = report_of(klcli, folder / "reference.rec", candidate)
    warnings = {one["code"]: one["message"] for one in report["warnings"]}
    assert warnings["lower_bounds"].startswith(
        "only the most probable tokens of the reference are known"
    )
    assert re.match(r"\d+ of 192 tokens .* list of the reference", warnings["unlisted_targets"])
    metrics = report["metrics"]
    assert metrics["nll_reference"]["mean"] is None
    assert metrics["nll_difference"]["mean"] is None
    assert metrics["perplexity_reference"]["value"] is None
    assert metrics["entropy_reference"]["mean"] is None
    assert metrics["nll_candidate"]["mean"] > 0
    both = report_of(klcli, folder / "reference.rec", folder / "candidate.rec")
    messages = [one["message"] for one in both["warnings"]]
    assert any("of the reference and the candidate are known" in message for message in messages)


def test_the_perplexity_of_a_list_is_not_known_and_a_gate_on_it_fails(
    klcli: Run, folder: Path
) -> None:
    done = klcli(
        "perplexity", folder / "reference.rec", "--format", "json", "--gate", "perplexity<=1000"
    )
    assert done.code == 3
    report = json.loads(done.out)
    assert report["metrics"]["nll"]["mean"] is None
    assert report["gates"][0]["reason"] == "perplexity.value is not known in this run"
    assert report["lower_bounds"] == []
    warnings = {one["code"]: one["message"] for one in report["warnings"]}
    assert "lower_bounds" not in warnings
    assert "list of the model" in warnings["unlisted_targets"]


def test_a_list_of_everything_has_a_perplexity(
    klcli: Run, folder: Path, candidate: Path, corpus: Path
) -> None:
    listed, live = (
        json.loads(klcli("perplexity", *sides, "--format", "json", "--quiet").out)["metrics"]
        for sides in ((folder / "all.rec",), (candidate, corpus, "--context", "64", "--limit", "3"))
    )
    assert listed["nll"]["mean"] == pytest.approx(live["nll"]["mean"], abs=TOLERANCE)
    assert listed["perplexity"]["value"] == pytest.approx(live["perplexity"]["value"], rel=1e-6)
