"""A shard of a run: it says that it is one wherever it is shown, and is not judged."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import klcli as package
from klcli.errors import KlcliError
from klcli.runs.format import RUN
from klcli.storage import manifest as manifests
from tests.running import Outcome, Run

SCOPE = ("--context", "64", "--limit", "12", "--batch-tokens", "128")


def models(fixtures: Path) -> tuple[str, str]:
    return str(fixtures / "models/reference"), str(fixtures / "models/candidate")


def compared(fixtures: Path, **options: Any) -> package.Report:
    texts = [fixtures / "corpus.txt"]
    return package.compare(
        *models(fixtures), texts, context=64, limit=12, batch_tokens=128, **options
    )


@pytest.fixture(scope="module")
def whole() -> package.Report:
    return compared(Path(__file__).parents[2] / "fixtures")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of two shards, each with the report that was printed beside it."""
    folder, fixtures = tmp_path_factory.mktemp("shards"), Path(__file__).parents[2] / "fixtures"
    made = [folder / "1.run", folder / "2.run"]
    for number, path in enumerate(made, 1):
        report = compared(fixtures, run=str(path), shard=f"{number}/2")
        path.with_suffix(".json").write_text(json.dumps(report.to_dict()), encoding="utf-8")
    return made


def rows_of(done: Outcome) -> list[dict[str, str]]:
    assert done.code == 0, done.err
    return list(csv.DictReader(io.StringIO(done.out)))


def forget_the_shard(folder: Path) -> None:
    """As klcli 0.1.0 wrote it: the report neither says its shard nor has a checksum."""
    manifest = RUN.read(folder)
    del manifest["files"]["report.json"]
    manifests.save(folder, manifest)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (folder / "report.json").write_text(json.dumps({**report, "shard": None}), encoding="utf-8")


def test_the_numbers_of_a_shard_are_of_its_own_tokens(
    klcli: Run, shards: list[Path], whole: package.Report
) -> None:
    found = [json.loads(klcli("report", shard, "--format", "json").out) for shard in shards]
    printed = [json.loads(s.with_suffix(".json").read_text(encoding="utf-8")) for s in shards]
    assert found == printed
    tokens = [report["counts"]["tokens"] for report in found]
    assert sum(tokens) == whole.counts["tokens"]
    sums = [t * r["metrics"]["kl"]["mean"] for t, r in zip(tokens, found, strict=True)]
    assert sum(sums) / sum(tokens) == pytest.approx(whole.metrics["kl"]["mean"], rel=1e-9)


def test_the_tables_of_tokens_of_all_shards_are_that_of_the_whole(
    klcli: Run, shards: list[Path], fixtures: Path
) -> None:
    parts = [rows_of(klcli("report", shard, "--format", "csv")) for shard in shards]
    command = ("compare", *models(fixtures), fixtures / "corpus.txt", *SCOPE)
    whole = rows_of(klcli(*command, "--format", "csv"))
    assert all(float(row["kl"]) > 0 for part in parts for row in part)

    def place(row: dict[str, str]) -> tuple[int, int]:
        return int(row["window"]), int(row["position"])

    assert sorted([*parts[0], *parts[1]], key=place) == sorted(whole, key=place)


@pytest.mark.parametrize("format_", ["table", "markdown"])
def test_it_is_shown_as_a_shard(klcli: Run, shards: list[Path], format_: str) -> None:
    done = klcli("report", shards[0], "--format", format_)
    assert "1/2 of a run" in done.out
    assert "this is shard 1/2 of a run" in " ".join((done.out + done.err).split())


def test_its_report_says_so(klcli: Run, shards: list[Path], whole: package.Report) -> None:
    report = json.loads(klcli("report", shards[1], "--format", "json").out)
    assert report["shard"] == "2/2"
    assert report["signature"].endswith("|shard:2/2")
    assert [w["code"] for w in report["warnings"]].count("shard") == 1
    facts = klcli("inspect", shards[1].with_suffix(".json"), "--format", "json")
    assert json.loads(facts.out)["shard"] == "2/2"
    assert whole.shard is None


@pytest.mark.parametrize("saved", ["1.run", "1.json", "1.run/report.json"])
def test_it_is_not_gated(klcli: Run, shards: list[Path], saved: str) -> None:
    done = klcli("report", shards[0].parent / saved, "--gate", "kl<=1")
    assert (done.code, done.out) == (2, "")
    assert "klcli merge" in done.err
    assert "shard 1/2" in done.err


def test_it_is_not_gated_as_it_is_made(klcli: Run, fixtures: Path, tmp_path: Path) -> None:
    command = ("compare", *models(fixtures), fixtures / "corpus.txt", *SCOPE)
    done = klcli(*command, "--shard", "1/2", "--run", tmp_path / "a", "--gate", "kl<=1")
    assert (done.code, done.out) == (2, "")
    assert "klcli merge" in done.err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("saved", ["1.run", "1.json", "1.run/report.json"])
def test_it_is_not_a_baseline(klcli: Run, fixtures: Path, shards: list[Path], saved: str) -> None:
    logits = [fixtures / f"logits/{name}.npz" for name in ("truth", "lstm")]
    given = ("--baseline", shards[0].parent / saved, "--gate", "kl<=2*baseline")
    done = klcli("compare", *logits, "--limit", "1", *given)
    assert (done.code, done.out) == (2, "")
    assert "nor be a baseline" in done.err


def test_one_of_an_earlier_klcli_is_known_by_its_folder(shards: list[Path], tmp_path: Path) -> None:
    old = Path(shutil.copytree(shards[0], tmp_path / "old.run"))
    forget_the_shard(old)
    assert package.report(old).shard == "1/2"
    for saved in (old, old / "report.json"):
        with pytest.raises(KlcliError, match="klcli merge"):
            package.report(saved, gates=["kl<=1"])


def test_the_only_shard_is_the_whole_run(fixtures: Path, tmp_path: Path) -> None:
    report = compared(fixtures, run=str(tmp_path / "a.run"), shard="1/1", gates=["kl<=1"])
    assert (report.shard, report.verdict) == (None, "pass")


def test_a_run_that_lacks_windows_is_an_error(shards: list[Path], tmp_path: Path) -> None:
    """A manifest may be sealed and say too much: what was not scored is never taken for zeros."""
    run = Path(shutil.copytree(shards[0], tmp_path / "a.run"))
    manifest = RUN.read(run)
    manifests.save(run, {**manifest, "request": {**manifest["request"], "shard": None}})
    with pytest.raises(KlcliError, match=r"lacks \d+ of 768 tokens"):
        package.report(run)
