"""The loop: whatever the windows, batches and blocks, every token gets its own numbers."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from klcli.measure import columns
from klcli.measure.evaluate import evaluate
from klcli.measure.kernels.constants import TOP
from klcli.measure.scores import CONFIDENCE_EDGES, TokenScores, score_columns
from klcli.sources.rows import HeadRows, Rows
from klcli.text.windows import Window
from tests.measure import fakes, oracle

TOKENS, WIDTH = 60, 37
IDS = torch.randint(0, WIDTH, (TOKENS,), generator=torch.Generator().manual_seed(5)).tolist()
P = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
Q = P + 0.3 * torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))


def scores_of(
    *sources: fakes.FakeSource, context: int = 8, batch_tokens: int = 24, **table: int
) -> TokenScores:
    return evaluate(
        fakes.table_of(IDS, context, **table),
        sources,
        batch_tokens=batch_tokens,
        vocabulary_size=WIDTH,
    ).scores


def test_every_token_has_the_figures_of_the_oracle() -> None:
    scores = scores_of(fakes.FakeSource(P), fakes.FakeSource(Q))
    assert len(scores) == TOKENS - 1
    for i in range(TOKENS - 1):
        p, q = P[i].numpy(), Q[i].numpy()
        assert scores["position"][i] == i + 1
        assert scores["token_id"][i] == IDS[i + 1]
        assert scores["kl"][i] == pytest.approx(oracle.kl(p, q), rel=1e-5)
        assert scores["kl_reverse"][i] == pytest.approx(oracle.kl(q, p), rel=1e-5)
        nll = -float(oracle.log_softmax(q)[IDS[i + 1]])
        assert scores["nll_candidate"][i] == pytest.approx(nll, abs=2e-7)


@pytest.mark.parametrize(("device", "ahead"), [("cpu", 1), ("cuda", 2)])
def test_a_device_has_begun_the_next_batch_when_one_is_measured(device: str, ahead: int) -> None:
    """What is begun: the rows that a source has been asked for, less those that are measured."""
    begun, seen = 0, []

    class Counting(fakes.FakeSource):
        def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
            nonlocal begun
            for batch in batches:
                begun += 1
                logits = torch.cat([self._of(window) for window in batch])
                yield HeadRows(logits, lambda hidden: hidden, 16)

    source = Counting(P)
    source.device = torch.device(device)
    table, done = fakes.table_of(IDS), iter(range(-1, 100))  # told once before the first
    evaluate(
        table,
        [source],
        batch_tokens=8,
        vocabulary_size=WIDTH,
        progress=lambda *_: seen.append(begun - next(done)),
    )
    assert set(seen[1:-1]) == {ahead}
    assert begun == len(seen) - 1 == 8


@pytest.mark.parametrize(
    ("context", "batch_tokens", "block"),
    [(8, 8, 512), (8, 1, 1), (59, 100, 16), (8, 1000, 2), (3, 7, 4)],
)
def test_neither_windows_nor_batches_nor_blocks_change_a_bit(
    context: int, batch_tokens: int, block: int
) -> None:
    one = scores_of(fakes.FakeSource(P), fakes.FakeSource(Q), context=59)
    other = scores_of(
        fakes.FakeSource(P, block),
        fakes.FakeSource(Q, 2 * block),
        context=context,
        batch_tokens=batch_tokens,
    )
    for name in set(one.columns) - {"window"}:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_stride_below_the_context_scores_every_token_once() -> None:
    scores = scores_of(fakes.FakeSource(P), context=8, stride=3)
    assert scores["position"].tolist() == list(range(1, TOKENS))


def test_one_source_alone_has_only_its_own_columns() -> None:
    scores = scores_of(fakes.FakeSource(P))
    assert not scores.paired
    assert set(scores.columns) == set(score_columns(paired=False))


def test_a_source_against_itself_differs_nowhere() -> None:
    scores = scores_of(fakes.FakeSource(P), fakes.FakeSource(P.clone()))
    assert not scores["kl"].any()
    assert (scores["overlap_5"] == 1).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_with_nan_or_infinity_is_excluded_and_no_other(value: float, side: int) -> None:
    logits = [P.clone(), Q.clone()]
    logits[side][10, 3] = value
    scores = scores_of(*(fakes.FakeSource(x) for x in logits))
    assert np.flatnonzero(scores["excluded"]).tolist() == [10]
    assert math.isnan(scores["kl"][10])
    assert np.isfinite(np.delete(scores["kl"], 10)).all()


def test_the_wider_side_is_cut_and_renormalised() -> None:
    padded = torch.cat([Q, torch.full((TOKENS, 3), 2.0)], dim=1)
    wide = scores_of(fakes.FakeSource(P), fakes.FakeSource(padded))
    narrow = scores_of(fakes.FakeSource(P), fakes.FakeSource(Q))
    np.testing.assert_array_equal(wide["kl"], narrow["kl"])


def test_mass_on_ids_without_a_token_is_reported() -> None:
    evaluation = evaluate(
        fakes.table_of(IDS),
        [fakes.FakeSource(torch.zeros(TOKENS, 50))],
        batch_tokens=8,
        vocabulary_size=40,
    )
    assert evaluation.padded_mass == {"reference": pytest.approx(0.2)}


def test_alternatives_are_kept_of_the_largest_kl_among_tokens_of_like_confidence() -> None:
    evaluation = evaluate(
        fakes.table_of(IDS),
        [fakes.FakeSource(P, 4), fakes.FakeSource(Q, 4)],
        batch_tokens=8,
        vocabulary_size=WIDTH,
        per_bin=4,
    )
    kl, kept = evaluation.scores["kl"], evaluation.alternatives
    bins = np.digitize(evaluation.scores["confidence_reference"], CONFIDENCE_EDGES)
    expected = {
        int(i)
        for one in np.unique(bins)
        for i in sorted(np.flatnonzero(bins == one), key=lambda i: -kl[i])[:4]
    }
    assert kept.index.tolist() == sorted(expected)
    assert set(np.argsort(-kl)[:4].tolist()) <= expected
    for row, index in enumerate(kept.index):
        p = torch.softmax(P[index].double(), 0)
        best = p.argsort(descending=True)[:TOP]
        assert kept.ids["reference"][row].tolist() == best.tolist()
        assert kept.probabilities["reference"][row] == pytest.approx(p[best].numpy())
        assert kept.row_of(int(index)) == row
    assert kept.row_of(int(np.argmin(kl))) is None


def test_progress_is_told_up_to_the_last_token() -> None:
    told: list[tuple[int, int]] = []
    evaluate(
        fakes.table_of(IDS),
        [fakes.FakeSource(P)],
        batch_tokens=8,
        vocabulary_size=WIDTH,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (TOKENS - 1, TOKENS - 1)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_columns_kept_in_a_file_are_the_same_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = fakes.FakeSource(P), fakes.FakeSource(Q)
    in_memory = scores_of(*sources, stride=3)
    monkeypatch.setattr(columns, "IN_MEMORY", 0)
    in_file = scores_of(*sources, stride=3)
    for name in in_memory.columns:
        np.testing.assert_array_equal(in_memory[name], in_file[name], err_msg=name)
        np.testing.assert_array_equal(in_file.part(name, 7, 31), in_memory[name][7:31])
        assert in_file[name].dtype == in_memory[name].dtype
