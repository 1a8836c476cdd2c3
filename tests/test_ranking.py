"""``klcli rank``: many candidates against one reference."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import klcli
from klcli.judge.clusters import Clusters
from klcli.judge.ranking import Candidate, Compared, Neighbour, ordered
from klcli.render.numbers import number
from klcli.render.ranking import WRITERS, render_terminal
from klcli.render.terminal import StreamConsole
from klcli.render.view import DEFAULT_VIEW
from klcli.text.order import natural
from klcli.workflow import run_beside
from tests.render.reports import HOSTILE
from tests.running import Run

LIMIT: Any = {"context": 64, "limit": 6}
OPTIONS = ("--context", "64", "--limit", "6")


@pytest.fixture
def models(fixtures: Path) -> Path:
    return fixtures / "models"


def rows_of(found: klcli.Ranking) -> dict[str, Candidate]:
    return {Path(one.source).name: one for one in found.candidates}


def compared(name: str, kl: list[float]) -> Compared:
    """A candidate with so much KL at each of 40 clusters of 5 tokens."""
    tokens = np.repeat(np.array(kl), 5)
    clusters = Clusters(sizes=np.full(len(kl), 5), follows=np.zeros(len(kl), dtype=np.bool_))
    metrics: Any = {"kl": {"mean": float(tokens.mean())}}
    return Compared(Candidate(source=name, metrics=metrics), tokens, clusters)


def noise(seed: int, around: float, spread: float = 0.01) -> list[float]:
    found: list[float] = (around + spread * np.random.default_rng(seed).normal(size=40)).tolist()
    return found


def neighbour(one: Candidate) -> Neighbour:
    assert one.above is not None
    return one.above


class TestOrder:
    def test_numbers_are_those_of_compare_to_the_last_bit(self, models: Path, corpus: Path) -> None:
        candidates = [models / "undertrained", models / "candidate"]
        found = klcli.rank(models / "reference", candidates, corpus, **LIMIT)
        assert [Path(one.source).name for one in found.candidates] == ["candidate", "undertrained"]
        for path in candidates:
            alone = klcli.compare(models / "reference", path, corpus, **LIMIT)
            assert rows_of(found)[path.name].metrics == alone.metrics
            assert rows_of(found)[path.name].model == alone.models["candidate"]

    def test_a_recording_is_a_reference_too(
        self, models: Path, corpus: Path, tmp_path: Path
    ) -> None:
        klcli.record(models / "reference", corpus, tmp_path / "base", **LIMIT)
        candidates = [models / "undertrained", models / "candidate"]
        live = klcli.rank(models / "reference", candidates, corpus, **LIMIT)
        found = klcli.rank(tmp_path / "base", candidates)
        assert [one.metrics for one in found.candidates] == [o.metrics for o in live.candidates]

    @pytest.mark.parametrize(
        "names", [["checkpoint-2", "checkpoint-10"], ["a", "a1", "b"], ["x9/step1", "x10/step0"]]
    )
    def test_natural_order_counts(self, names: list[str]) -> None:
        assert sorted(sorted(names), key=natural) == names


class TestNeighbours:
    def test_far_apart_they_differ_and_alike_they_do_not(self) -> None:
        few = noise(1, 0.1)
        more = (np.array(few) + np.array(noise(2, 0.0, 1e-4))).tolist()
        found = ordered([compared("far", noise(3, 0.5)), compared("b", more), compared("a", few)],
                        in_order=False)  # fmt: skip
        assert found[-1].source == "far"
        assert [neighbour(one).differs for one in found[1:]] == [False, True]
        assert neighbour(found[2]).difference == pytest.approx(0.4, abs=0.02)

    def test_two_that_are_alike_at_every_token_have_p_1(self) -> None:
        one, other = (compared(name, noise(1, 0.1)) for name in "ab")
        assert neighbour(ordered([one, other], in_order=False)[1]).p == 1.0

    def test_p_values_are_those_of_holm(self) -> None:
        rng = np.random.default_rng(0)
        several = [compared(f"{n}", (0.1 + 0.004 * n + 0.01 * rng.random(40)).tolist())
                   for n in range(5)]  # fmt: skip
        found = [neighbour(one) for one in ordered(several, in_order=False)[1:]]
        ascending = sorted(found, key=lambda one: one.p or 0.0)
        largest = 0.0
        for place, one in enumerate(ascending):
            assert one.p is not None
            largest = max(largest, min(1.0, (4 - place) * one.p))
            assert one.p_holm == largest

    def test_tokens_that_one_lacks_do_not_count(self) -> None:
        few, more = compared("a", noise(1, 0.1)), compared("b", noise(1, 0.2))
        assert few.kl is not None
        few.kl[:7] = np.nan
        assert neighbour(ordered([few, more], in_order=False)[1]).difference == pytest.approx(0.1)

    def test_of_other_tokens_or_of_an_infinite_kl_nothing_is_told(self) -> None:
        one, other = compared("a", noise(1, 0.1)), compared("b", noise(1, 0.2)[:39])
        assert ordered([one, other], in_order=False)[1].above is None
        other = compared("b", noise(1, 0.2))
        assert other.kl is not None
        other.kl[0] = np.inf
        assert ordered([one, other], in_order=False)[1].above is None


class TestFailures:
    def test_a_candidate_that_fails_is_a_row_that_says_why(
        self, models: Path, corpus: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "config.json").write_text("{}")
        candidates = [tmp_path / "broken", models / "masked-candidate", models / "candidate"]
        found = klcli.rank(models / "reference", candidates, corpus, **LIMIT)
        assert [one.error is None for one in found.candidates] == [True, False, False]
        assert "does not say which model" in (rows_of(found)["broken"].error or "")
        assert "masked" in (rows_of(found)["masked-candidate"].error or "")
        assert found.failed == list(found.candidates[1:])

    def test_so_is_one_for_which_memory_runs_out(
        self, models: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run_out(reference: Any, pair: Any, *others: Any) -> Any:
            if pair.specs[1].endswith("candidate"):
                raise MemoryError
            return run_beside(reference, pair, *others)

        monkeypatch.setattr("klcli.ranking.run_beside", run_out)
        candidates = [models / "candidate", models / "undertrained"]
        found = klcli.rank(models / "reference", candidates, corpus, **LIMIT)
        assert [one.error is None for one in found.candidates] == [True, False]
        assert "memory" in (found.candidates[1].error or "")

    def test_a_reference_that_fails_is_an_error(self, models: Path, corpus: Path) -> None:
        with pytest.raises(klcli.KlcliError, match="nowhere"):
            klcli.rank("/no/where/nowhere", [models / "candidate"], corpus)

    def test_a_candidate_named_twice_is_a_wrong_argument(self, models: Path, corpus: Path) -> None:
        with pytest.raises(klcli.KlcliError, match="is named twice"):
            klcli.rank(models / "reference", [models / "candidate"] * 2, corpus)

    def test_without_a_text_nothing_is_loaded(self, models: Path) -> None:
        with pytest.raises(klcli.KlcliError, match="name a CORPUS with --corpus"):
            klcli.rank(models / "reference", [models / "candidate"])


class TestKept:
    def test_what_is_done_is_not_scored_again(
        self, models: Path, corpus: Path, tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept"
        first = [models / "candidate", models / "undertrained"]
        told: list[tuple[int, int]] = []
        before = klcli.rank(models / "reference", first, corpus, run=kept, **LIMIT)
        [run] = kept.glob("candidate-*.run")
        parts = {path: path.stat().st_mtime_ns for path in kept.glob("*/*.safetensors")}
        shutil.copytree(models / "candidate", tmp_path / "third")
        again = klcli.rank(
            models / "reference", [*first, tmp_path / "third"], corpus, run=kept, **LIMIT,
            progress=lambda done, total: told.append((done, total)),
        )  # fmt: skip
        assert {path: path.stat().st_mtime_ns for path in parts} == parts
        assert rows_of(again)["candidate"].metrics == rows_of(before)["candidate"].metrics
        assert [one for one in told if one[0] == 0] == [(0, 384)]  # the third alone
        assert klcli.report(run).metrics == rows_of(before)["candidate"].metrics


class TestSteps:
    def test_checkpoints_stand_in_natural_order_with_the_gap_of_two_texts(
        self, models: Path, fixtures: Path, tmp_path: Path, klcli: Run
    ) -> None:
        for name, model in (("checkpoint-10", "candidate"), ("checkpoint-9", "undertrained")):
            shutil.copytree(models / model, tmp_path / "training" / name)
        texts = ("--corpus", fixtures / "other.txt", "--corpus", fixtures / "corpus.txt")
        done = klcli("rank", models / "reference", tmp_path / "training", *texts, *OPTIONS,
                     "--keep-order", "--format", "json")  # fmt: skip
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert [Path(one["source"]).name for one in found["candidates"]] == [
            "checkpoint-9", "checkpoint-10",
        ]  # fmt: skip
        table = klcli("rank", models / "reference", tmp_path / "training", *texts, *OPTIONS,
                      "--keep-order").out  # fmt: skip
        head = next(line for line in table.splitlines() if line.startswith("candidate"))
        assert "gap" in head.split()
        nll = [corpus["metrics"]["nll_candidate"]["mean"]
               for corpus in found["candidates"][0]["corpora"]]  # fmt: skip
        first = found["candidates"][0]
        assert first["metrics"] == first["corpora"][0]["metrics"]
        row = next(line for line in table.splitlines() if line.startswith("checkpoint-9"))
        assert number(nll[0] - nll[1]) in row.split()

    def test_two_texts_of_one_name_have_a_column_each(
        self, models: Path, fixtures: Path, tmp_path: Path, klcli: Run
    ) -> None:
        for name, text in (("held-out", "other.txt"), ("train", "corpus.txt")):
            (tmp_path / name).mkdir()
            shutil.copy(fixtures / text, tmp_path / name / "text.txt")
        texts = [x for n in ("held-out", "train") for x in ("--corpus", tmp_path / n / "text.txt")]
        table = klcli("rank", models / "reference", models / "candidate", *texts, *OPTIONS,
                      "--keep-order", "--format", "markdown").out  # fmt: skip
        assert "| NLL held-out/text.txt | NLL train/text.txt | gap |" in table


class TestCommand:
    def test_files_hold_what_the_table_shows(
        self, models: Path, corpus: Path, tmp_path: Path, klcli: Run
    ) -> None:
        endings = (".json", ".csv", ".md", ".html", ".svg", ".png")
        outputs = [x for e in endings for x in ("--output", tmp_path / f"rank{e}")]
        done = klcli("rank", models / "reference", models / "candidate", models / "undertrained",
                     "--corpus", corpus, *OPTIONS, *outputs, "--gate", "kl<=0.1")  # fmt: skip
        assert done.code == 3, done.err
        assert "1 of 2 candidates passed every gate" in done.out
        rows = list(csv.DictReader((tmp_path / "rank.csv").open(encoding="utf-8")))
        kept = json.loads((tmp_path / "rank.json").read_text())["candidates"]
        assert [float(row["kl"]) for row in rows] == [one["metrics"]["kl"]["mean"] for one in kept]
        assert [row["verdict"] for row in rows] == ["pass", "fail"]
        page = (tmp_path / "rank.html").read_text(encoding="utf-8")
        for text in (page, (tmp_path / "rank.md").read_text(encoding="utf-8"), done.out):
            assert "undertrained" in text
        assert "<script" not in page
        assert (tmp_path / "rank.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "rank.svg").read_text(encoding="utf-8").startswith("<svg")

    def test_a_candidate_that_fails_beats_a_failed_gate(
        self, models: Path, corpus: Path, klcli: Run
    ) -> None:
        done = klcli("rank", models / "reference", models / "undertrained", "/no/such/model",
                     "--corpus", corpus, *OPTIONS, "--gate", "kl<=0.1")  # fmt: skip
        assert done.code == 1
        assert "✗ model  no model at '/no/such/model'" in done.out
        assert "✗ FAIL" in done.out

    def test_hostile_names_and_errors_show_as_text(self) -> None:
        hostile = [Candidate(source=f"a/{name}", error=name) for name in HOSTILE.values()]
        found = klcli.Ranking(
            reference={"source": "<script>\x1b[31m"}, protocol={}, environment={}, corpora=[],
            candidates=hostile,
        )  # fmt: skip
        screen = io.StringIO()
        render_terminal(found, StreamConsole(file=screen, width=80, force_terminal=False))
        for format_ in ("markdown", "csv", "json"):
            stream = io.BytesIO()
            WRITERS[format_](found, stream, DEFAULT_VIEW)
            screen.write(stream.getvalue().decode())
        shown = screen.getvalue().replace("\u2060", "")  # which keeps addresses of Markdown apart
        assert all(line.isprintable() for line in shown.split("\n"))
        page = io.BytesIO()
        WRITERS["html"](found, page, DEFAULT_VIEW)
        assert "<script" not in page.getvalue().decode()
