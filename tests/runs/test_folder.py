"""A run in a folder: the same as one in memory, whenever it was killed and however it was split."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import safetensors.numpy
import torch

from klcli.errors import KlcliError, MismatchError, OutputError, SourceError, UsageError
from klcli.hooks import Progress
from klcli.measure.evaluate import evaluate
from klcli.measure.gathered import Evaluation
from klcli.measure.shard import WHOLE, Shard, parse_shard
from klcli.runs import folder as runs
from klcli.runs.folder import (
    RunFacts,
    RunFolder,
    check_shards,
    join_runs,
    joined,
    open_run,
    writing,
)
from klcli.runs.format import RUN
from klcli.sources.conditions import Conditions
from klcli.storage.files import put
from klcli.text.vocabulary import NumberedTokens
from tests.measure import fakes

TOKENS, WIDTH = 60, 37
IDS = torch.randint(0, WIDTH, (TOKENS,), generator=torch.Generator().manual_seed(5)).tolist()
P = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
Q = P + 0.3 * torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))
SAID = ("name", "context", "stride", "score_from", "bos", "special_tokens", "documents")
TABLE = replace(fakes.table_of(IDS), protocol=dict.fromkeys(SAID))
BATCHES = 8
"""Batches of 8 tokens, one window each."""
REQUEST = {"models": ["p", "q"], "batch_tokens": 8, "shard": None}
FACTS = RunFacts(
    paired=True,
    outliers=2,
    vocabulary_size=WIDTH,
    conditions=Conditions(
        models={"reference": {"source": "p"}, "candidate": {"source": "q"}},
        environment={"klcli": "1"},
    ),
    notices=(),
)


class Killed(Exception):
    """The process is gone."""


def kill_after(batches: int) -> Progress:
    """Progress that is the end after so many batches."""
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        if len(told) == 1 + batches:  # the first call comes before the first batch
            raise Killed

    return progress


def score(
    store: RunFolder | None = None,
    *,
    shard: Shard = WHOLE,
    progress: Progress | None = None,
) -> Evaluation:
    return evaluate(
        TABLE,
        [fakes.FakeSource(P), fakes.FakeSource(Q)],
        batch_tokens=8,
        vocabulary_size=WIDTH,
        per_bin=FACTS.per_bin,
        shard=shard,
        store=store,
        progress=progress,
    )


def open_folder(folder: Path, **changed: Any) -> "contextlib.AbstractContextManager[RunFolder]":
    return writing(folder, {**REQUEST, **changed}, TABLE, NumberedTokens(WIDTH), FACTS)


def keep(folder: Path, *, shard: str | None = None, progress: Progress | None = None) -> Evaluation:
    """Score a run, or a shard of it, in a folder, and complete it."""
    with open_folder(folder, shard=shard) as store:
        part = WHOLE if shard is None else parse_shard(shard)
        found = score(store, shard=part, progress=progress)
        store.complete({"made up": True})
    return found


def assert_same(one: Evaluation, other: Evaluation) -> None:
    assert set(one.scores.columns) == set(other.scores.columns)
    for name in one.scores.columns:
        np.testing.assert_array_equal(one.scores[name], other.scores[name], err_msg=name)
        assert one.scores[name].dtype == other.scores[name].dtype
    np.testing.assert_array_equal(one.alternatives.index, other.alternatives.index)
    for side in ("reference", "candidate"):
        np.testing.assert_array_equal(one.alternatives.ids[side], other.alternatives.ids[side])
        np.testing.assert_array_equal(
            one.alternatives.probabilities[side], other.alternatives.probabilities[side]
        )
    assert one.padded_mass == other.padded_mass
    assert one.kinds == other.kinds


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part for every two batches."""
    monkeypatch.setattr(runs, "PART_ROWS", 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a.run"


# Kept, and read again


@pytest.mark.parametrize("rows", [1, 16, 10**6])
def test_a_kept_run_is_the_one_in_memory_bit_for_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(runs, "PART_ROWS", rows)
    in_memory = score()
    assert_same(keep(folder), in_memory)
    assert_same(open_run(folder).evaluation(), in_memory)
    assert len(manifest_of(folder)["parts"]) == {1: BATCHES, 16: BATCHES // 2}.get(rows, 1)


def test_a_part_is_written_when_it_gets_late(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PART_SECONDS", -1.0)
    keep(folder)
    assert len(manifest_of(folder)["parts"]) == BATCHES


def test_what_a_report_needs_beside_the_columns_is_kept(folder: Path) -> None:
    keep(folder)
    saved = open_run(folder)
    assert saved.facts.paired
    assert saved.names.size == WIDTH
    assert [window.targets.tolist() for window in saved.table.windows] == [
        window.targets.tolist() for window in TABLE.windows
    ]
    assert saved.table.protocol == TABLE.protocol
    assert json.loads((folder / "report.json").read_text()) == {"made up": True}
    assert saved.facts == FACTS


def test_a_run_of_the_first_release_says_its_outliers_by_what_it_kept() -> None:
    manifest = FACTS.to_manifest()
    del manifest["outliers"]
    assert RunFacts.from_manifest(manifest) == FACTS


# Killed


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("batches", [1, 2, 5, BATCHES])
def test_a_killed_run_goes_on_behind_what_is_there(folder: Path, batches: int) -> None:
    with pytest.raises(Killed):
        keep(folder, progress=kill_after(batches))
    told: list[int] = []
    again = keep(folder, progress=lambda done, total: told.append(done))
    assert len(told) == (1 + BATCHES - batches if batches < BATCHES else 0)
    assert_same(again, score())
    assert_same(open_run(folder).evaluation(), score())


@pytest.mark.usefixtures("small_parts")
def test_what_a_killed_process_had_not_written_is_scored_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # SIGKILL lets nobody flush
        patch.setattr(RunFolder, "flush", _only(RunFolder.flush, 2))
        with pytest.raises(Killed):
            keep(folder, progress=kill_after(7))
    assert len(manifest_of(folder)["parts"]) == 2
    told: list[int] = []
    assert_same(keep(folder, progress=lambda done, total: told.append(done)), score())
    assert len(told) == 1 + BATCHES - 4


def _only(flush: Any, times: int) -> Any:
    """A flush that works so many times."""
    calls: list[None] = []

    def limited(store: RunFolder) -> None:
        calls.append(None)
        if len(calls) <= times:
            flush(store)

    return limited


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("writes", range(7))
def test_a_run_interrupted_while_it_writes_keeps_every_batch_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    done = list[None]()

    def interrupted(*given: Any) -> Any:
        entry = put(*given)
        done.append(None)
        if len(done) == writes + 1:
            raise KeyboardInterrupt
        return entry

    monkeypatch.setattr(runs, "put", interrupted)
    monkeypatch.setattr("klcli.storage.manifest.put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep(folder)
    assert_same(keep(folder), score())
    assert_same(open_run(folder).evaluation(), score())
    parts = manifest_of(folder)["parts"]
    assert sorted(number for part in parts for number in batches_of(folder / part["name"])) == list(
        range(BATCHES)
    )


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_the_manifest_does_not_know_is_written_anew(folder: Path) -> None:
    with pytest.raises(Killed):
        keep(folder, progress=kill_after(4))
    (folder / "part-00002.safetensors").write_bytes(b"half of a")
    assert_same(keep(folder), score())
    assert_same(open_run(folder).evaluation(), score())


def test_a_run_killed_before_its_manifest_begins_anew(folder: Path) -> None:
    folder.mkdir()
    for name in ("lock", "windows.safetensors", "tokenizer.json", "manifest.json.tmp"):
        (folder / name).write_bytes(b"half of a")
    assert_same(keep(folder), score())
    assert_same(open_run(folder).evaluation(), score())


def test_a_complete_run_is_scored_no_more(folder: Path) -> None:
    keep(folder)
    told: list[int] = []
    assert_same(keep(folder, progress=lambda done, total: told.append(done)), score())
    assert told == []


# Refused


def test_an_incomplete_run_cannot_be_read(folder: Path) -> None:
    with pytest.raises(Killed):
        keep(folder, progress=kill_after(3))
    assert RUN.is_at(folder)
    with pytest.raises(SourceError, match=r"is incomplete: run the same command again"):
        open_run(folder)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"batch_tokens": 16}, "batch_tokens was 8 and is 16"),
        ({"models": ["p", "r"]}, r"\(models.1 was q and is r\)"),
        ({"shard": "1/2"}, "shard was None and is 1/2"),
    ],
)
def test_a_run_does_not_go_on_with_other_arguments(
    folder: Path, changed: dict[str, Any], says: str
) -> None:
    keep(folder)
    with pytest.raises(OutputError, match=says), open_folder(folder, **changed):
        pass
    assert_same(open_run(folder).evaluation(), score())


def test_a_run_does_not_go_on_with_another_text(folder: Path) -> None:
    keep(folder)
    other = fakes.table_of(IDS[::-1])
    names = NumberedTokens(WIDTH)
    with (
        pytest.raises(OutputError, match="windows was"),
        writing(folder, REQUEST, other, names, FACTS),
    ):
        pass


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("damage", [_flip, _truncate, _remove])
@pytest.mark.parametrize("name", ["part-00001.safetensors", "windows.safetensors"])
def test_an_altered_file_is_noticed(folder: Path, name: str, damage: Any) -> None:
    keep(folder)
    damage(folder / name)
    with pytest.raises(KlcliError, match=name):
        open_run(folder).evaluation()


@pytest.mark.usefixtures("small_parts")
def test_a_run_does_not_go_on_behind_an_altered_part(folder: Path) -> None:
    with pytest.raises(Killed):
        keep(folder, progress=kill_after(5))
    _flip(folder / "part-00000.safetensors")
    with pytest.raises(KlcliError, match="part-00000"):
        keep(folder)


def test_an_altered_manifest_is_noticed(folder: Path) -> None:
    keep(folder)
    altered = manifest_of(folder) | {"vocabulary_size": 36}
    (folder / "manifest.json").write_text(json.dumps(altered))
    with pytest.raises(SourceError, match="damaged or was altered"):
        open_run(folder)


def test_a_run_of_a_later_klcli_is_said_to_be_one(folder: Path) -> None:
    keep(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest_of(folder) | {"format_version": 99}))
    with pytest.raises(SourceError, match=r"version 99.*use the klcli that wrote it"):
        open_run(folder)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"format": "klcli.recording"}'])
def test_a_foreign_folder_is_not_a_run(folder: Path, content: str | None) -> None:
    folder.mkdir()
    if content is not None:
        (folder / "manifest.json").write_text(content)
    assert not RUN.is_at(folder)
    with pytest.raises(SourceError, match="run"):
        open_run(folder)


def test_nothing_is_written_where_something_else_is(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match=r"thesis\.tex"), open_folder(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_is_said(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(OutputError, match="it is a file"), open_folder(folder):
        pass
    with (
        pytest.raises(OutputError, match="there is no folder"),
        open_folder(folder.parent / "missing" / "a.run"),
    ):
        pass


def test_two_processes_do_not_write_to_one_folder(folder: Path) -> None:
    folder.mkdir()
    with (
        filelock.FileLock(folder / "lock", is_singleton=False),
        pytest.raises(OutputError, match="another process"),
        open_folder(folder),
    ):
        pass


# Shards


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """The folders of three shards of one run."""
    folders = [tmp_path / f"part{number}" for number in (1, 2, 3)]
    for number, one in enumerate(folders, 1):
        keep(one, shard=f"{number}/3")
    return folders


def opened(folders: Sequence[Path]) -> list[runs.SavedRun]:
    return [open_run(one) for one in folders]


def test_the_shards_together_are_the_run(shards: list[Path], folder: Path) -> None:
    saved = opened(shards)
    check_shards(saved)
    assert_same(joined(saved, FACTS.per_bin), score())
    join_runs(saved, folder, {"made up": True})
    assert_same(open_run(folder).evaluation(), score())
    assert open_run(folder).manifest["request"]["shard"] is None


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_the_order_of_shards_does_not_matter(shards: list[Path], order: Sequence[int]) -> None:
    saved = opened([shards[number] for number in order])
    check_shards(saved)
    assert_same(joined(saved, FACTS.per_bin), score())


def test_each_shard_has_tokens_of_its_own(tmp_path: Path) -> None:
    parts = [keep(tmp_path / f"s{n}", shard=f"{n}/3") for n in (1, 2, 3)]
    positions = [one.scores["position"].tolist() for one in parts]
    assert sorted(p for one in positions for p in one) == list(range(1, TOKENS))
    for one in parts:
        assert len(one.scores) == one.table.tokens < TOKENS - 1


def test_a_merge_that_was_killed_goes_on(
    shards: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = runs._read_parts

    def dying(place: Path, manifest: Any) -> Iterator[Any]:
        if place == shards[2]:
            raise Killed
        return read(place, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_read_parts", dying)
        with pytest.raises(Killed):
            join_runs(opened(shards), folder, {"made up": True})
    join_runs(opened(shards), folder, {"made up": True})
    assert_same(open_run(folder).evaluation(), score())
    parts = open_run(folder).manifest["parts"]
    assert sorted(number for part in parts for number in batches_of(folder / part["name"])) == list(
        range(BATCHES)
    )


def batches_of(part: Path) -> list[int]:
    """The numbers of the batches in a part."""
    return [int(number) for number in safetensors.numpy.load_file(str(part))["batches"]]


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ([0, 1], "shard 3/3 is missing"),
        ([1, 2], "shard 1/3 is missing"),
        ([0, 0, 2], "shard 2/3 is missing"),
        ([0, 1, 2, 2], "4 folders are named and the run has 3 shards"),
        ([], "name the folders"),
    ],
)
def test_a_shard_that_is_missing_or_there_twice_is_said(
    shards: list[Path], chosen: list[int], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        check_shards(opened([shards[number] for number in chosen]))


def test_a_shard_of_another_run_is_said(shards: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    with open_folder(other, shard="3/3", models=["p", "r"]) as store:
        score(store, shard=Shard(3, 3))
        store.complete({})
    with pytest.raises(MismatchError, match=r"different runs \(models differ\)"):
        check_shards(opened([*shards[:2], other]))


def test_a_shard_of_another_split_is_said(shards: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    keep(other, shard="3/4")
    with pytest.raises(UsageError, match="shard 3/3 is missing"):
        check_shards(opened([*shards[:2], other]))


def test_a_whole_run_is_its_only_shard(folder: Path) -> None:
    keep(folder)
    check_shards(opened([folder]))


def test_shards_are_not_merged_into_one_of_them(shards: list[Path]) -> None:
    before = shutil.copytree(shards[0], shards[0].with_name("copy"))
    with pytest.raises(OutputError, match="another run"):
        join_runs(opened(shards), shards[0], {})
    for path in before.iterdir():
        assert path.read_bytes() == (shards[0] / path.name).read_bytes()


@pytest.mark.parametrize(("text", "expected"), [("1/1", (1, 1)), ("3/16", (3, 16))])
def test_a_shard_is_a_number_and_how_many_there_are(text: str, expected: tuple[int, int]) -> None:
    assert parse_shard(text) == expected


@pytest.mark.parametrize(
    "text", ["", "3", "0/3", "4/3", "-1/3", "1/0", "1/3/5", "one/three", " 1/3"]
)
def test_what_is_not_a_shard_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="as in 3/16"):
        parse_shard(text)


def test_a_shard_without_a_batch_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are 8 batches for 99 shards"):
        keep(tmp_path / "last", shard="99/99")
