"""A recording gives back what the model said, bit for bit, or one clear error."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from klcli.align import align
from klcli.choices import DocumentSplit
from klcli.errors import KlcliError, MismatchError, OutputError, SourceError
from klcli.measure.evaluate import evaluate
from klcli.measure.scores import TokenScores
from klcli.sources.hf.causal import CausalSource
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.tokenizer import vocabulary_of
from klcli.sources.options import LoadOptions, RecordingFormat
from klcli.sources.recording import writer
from klcli.sources.recording.reader import RecordingSource, open_recording
from klcli.sources.recording.writer import Recorded, record
from klcli.text.datasets import read_dataset
from klcli.text.scope import Scope
from klcli.text.windows import WindowTable
from tests.sources.test_causal import CONFIGS, LLAMA, TOKENS, Biased, Headless, steepened, tokenizer

BATCH_TOKENS = 512
OTHER = Path(__file__).parents[2] / "fixtures" / "other.txt"
ROW = 64 * 4
"""Bytes of a hidden state of the fixture models in float32."""

Live = Callable[..., ModelSource]


@pytest.fixture(scope="module")
def live(fixtures: Path) -> Live:
    """The models of the fixtures, each loaded once in a dtype."""

    @cache
    def load(name: str = "reference", dtype: str = "float32") -> ModelSource:
        return loaded(fixtures / "models" / name, dtype=dtype)

    return load


@pytest.fixture(scope="module")
def short(live: Live, corpus_start: Path) -> WindowTable:
    """Three windows of 33 tokens: 99 rows."""
    return table_of(live(), corpus_start, context=33, limit=3)


@pytest.fixture(scope="module")
def corpus_start(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first hundred tokens and more of the corpus."""
    path = tmp_path_factory.mktemp("text") / "start.txt"
    path.write_bytes((fixtures / "corpus.txt").read_bytes()[:600])
    return path


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 40 hidden states, which end within windows and within batches."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 40 * ROW)


def loaded(folder: Path, **options: Any) -> ModelSource:
    return load_model(str(folder), LoadOptions(device="cpu", **options))


def table_of(
    source: ModelSource, *texts: Path, documents: DocumentSplit = "file", **scope: Any
) -> WindowTable:
    corpora = [read_dataset(str(text), documents) for text in texts]
    return align([source], corpora, Scope(**scope)).table


def make(source: ModelSource, table: WindowTable, folder: Path, **options: Any) -> Recorded:
    """Record; kind ``hidden`` unless another is wanted."""
    wanted = RecordingFormat(kind=options.pop("kind", "hidden"), top_k=options.pop("top_k", 8))
    settings: dict[str, Any] = {"batch_tokens": BATCH_TOKENS, "software": {"klcli": "test"}}
    return record(source, table, folder, wanted, **(settings | options))


def opened(folder: Path) -> RecordingSource:
    return open_recording(str(folder), LoadOptions(device="cpu"))


def scores(
    *sources: Any, table: WindowTable | None = None, batch_tokens: int = BATCH_TOKENS
) -> TokenScores:
    """Score one source or compare two, on the windows that they bring if none are given."""
    table = table or align(sources, [], Scope()).table
    return evaluate(table, sources, batch_tokens=batch_tokens, vocabulary_size=112).scores


def assert_same(found: TokenScores, expected: TokenScores) -> None:
    """Every number of every token is the same, bit for bit."""
    assert set(found.columns) == set(expected.columns)
    for name in expected.columns:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def files_of(folder: Path) -> dict[str, bytes]:
    """What a recording consists of; the lock holds nothing."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest, which is JSON in the strict sense."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (folder / "manifest.json").read_text(encoding="utf-8")
    return dict(json.loads(text, parse_constant=refuse))


# The same numbers


SCOPES: dict[str, dict[str, Any]] = {
    "several windows a batch, the last one short": {"context": 50},
    "a batch of several blocks": {},
    "llama.cpp": {"protocol": "llama.cpp", "context": 64},
    "overlapping": {"context": 64, "stride": 24},
    "a BOS in each window": {"context": 64, "bos": "window"},
    "a BOS before each document": {"bos": "document"},
    "many documents": {"documents": "line", "context": 16},
}


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_a_recording_stands_for_its_model_whatever_the_windows(
    live: Live, corpus: Path, tmp_path: Path, scope: dict[str, Any]
) -> None:
    table = table_of(live(), corpus, **scope)
    make(live(), table, tmp_path / "rec", batch_tokens=2048)
    direct = scores(live(), live("candidate"), table=table, batch_tokens=2048)
    recorded = scores(opened(tmp_path / "rec"), live("candidate"), batch_tokens=2048)
    assert_same(recorded, direct)
    assert direct["kl"].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["hidden", "logits"])
def test_every_kind_and_dtype_gives_the_same_numbers_on_either_side_and_alone(
    live: Live, corpus: Path, fixtures: Path, tmp_path: Path, kind: str, dtype: str
) -> None:
    models = {name: live(name, dtype) for name in ("reference", "candidate")}
    table = table_of(models["reference"], corpus, fixtures / "other.txt").limited(5)
    recordings = {}
    for name, model in models.items():
        done = make(model, table, tmp_path / name, kind=kind)
        assert (done.kind, done.rows, done.rows_before) == (kind, table.tokens, 0)
        recordings[name] = opened(tmp_path / name)
    direct = scores(*models.values(), table=table)
    assert_same(scores(recordings["reference"], models["candidate"]), direct)
    assert_same(scores(models["reference"], recordings["candidate"]), direct)
    assert_same(scores(*recordings.values()), direct)
    alone = scores(models["candidate"], table=table)
    assert_same(scores(recordings["candidate"]), alone)


@pytest.mark.parametrize("kind", ["hidden", "logits", "topk"])
def test_where_shards_end_changes_nothing(
    live: Live, short: WindowTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make(live(), short, tmp_path / "one", kind=kind)
    monkeypatch.setattr(writer, "SHARD_BYTES", 1000)
    make(live(), short, tmp_path / "many", kind=kind)
    assert len(list((tmp_path / "one").glob("shard-*"))) == 1
    assert len(list((tmp_path / "many").glob("shard-*"))) > 5
    one, many = (scores(opened(tmp_path / n), live("candidate")) for n in ("one", "many"))
    assert_same(many, one)


def test_another_batch_size_reads_the_same_rows(
    live: Live, short: WindowTable, tmp_path: Path
) -> None:
    make(live(), short, tmp_path / "rec", kind="logits", batch_tokens=70)
    make(live("candidate"), short, tmp_path / "other", kind="logits", batch_tokens=70)
    sides = [opened(tmp_path / name) for name in ("rec", "other")]
    assert_same(scores(*sides, batch_tokens=1), scores(*sides, batch_tokens=2048))


def test_a_limit_takes_the_first_windows_of_each_corpus(
    live: Live, corpus: Path, fixtures: Path, tmp_path: Path
) -> None:
    table = table_of(live(), corpus, fixtures / "other.txt", context=64).limited(4)
    make(live(), table, tmp_path / "rec")
    source = opened(tmp_path / "rec")
    limited = align([source, live("candidate")], [], Scope(limit=2)).table
    assert [len(window.targets) for window in limited.windows] == [64] * 4
    direct = scores(live(), live("candidate"), table=table.limited(2))
    assert_same(scores(source, live("candidate"), table=limited), direct)


def test_a_recording_needs_neither_its_place_nor_its_model(
    fixtures: Path, live: Live, short: WindowTable, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(fixtures / "models" / "reference", model)
    make(loaded(model), short, tmp_path / "rec")
    shutil.rmtree(model)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "rec").rename(tmp_path / "elsewhere" / "moved")
    source = opened(tmp_path / "elsewhere" / "moved")
    assert source.vocabulary.fingerprint == live().vocabulary.fingerprint
    assert (source.vocabulary.bos_id, source.vocabulary.eos_id) == (1, 1)
    direct = scores(live(), live("candidate"), table=short)
    assert_same(scores(source, live("candidate")), direct)


def test_a_corpus_beside_a_recording_must_be_its_text(
    live: Live, corpus: Path, fixtures: Path, tmp_path: Path
) -> None:
    make(live(), table_of(live(), corpus, context=64).limited(2), tmp_path / "rec")
    source = opened(tmp_path / "rec")
    given = align([source], [read_dataset(str(corpus))], Scope())
    assert given.table.documents[0].ids.tolist() == source.windows.documents[0].ids.tolist()
    with pytest.raises(MismatchError, match=r"other\.txt has 1025 tokens and .*rec has 3585"):
        align([source], [read_dataset(str(fixtures / "other.txt"))], Scope())


def test_the_text_of_a_llama_cpp_recording_is_its_text_for_all_that_a_newline_is_dropped(
    live: Live, corpus: Path, tmp_path: Path
) -> None:
    make(live(), table_of(live(), corpus, protocol="llama.cpp", context=64), tmp_path / "rec")
    source = opened(tmp_path / "rec")
    given = align([source], [read_dataset(str(corpus))], Scope()).table
    assert_same(scores(source, table=given), scores(source))


def test_the_text_is_tokenised_as_it_was_for_the_recording(live: Live, tmp_path: Path) -> None:
    text = tmp_path / "special.txt"
    text.write_text("The dog sleeps.<|endoftext|>The cat sleeps.", encoding="utf-8")
    make(live(), table_of(live(), text, special_tokens="parse"), tmp_path / "rec")
    source = opened(tmp_path / "rec")
    given = align([source], [read_dataset(str(text))], Scope()).table
    assert given.windows[0].inputs.tolist() == source.windows.windows[0].inputs.tolist()


# Families


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of the words that the tiny models know."""
    path = tmp_path_factory.mktemp("words") / "words.txt"
    numbers = np.random.default_rng(3).integers(2, TOKENS, 150)
    path.write_text(" ".join(f"w{number}" for number in numbers), encoding="utf-8")
    return path


GEMMA3 = ("Gemma3TextConfig", LLAMA | {"head_dim": 8, "final_logit_softcapping": 3.0})
FAMILIES = ["gpt2", "llama", "qwen2", "gemma2", "gemma3", "phi", "gptj", "padded", "granite"]


def family(name: str, **changes: Any) -> ModelSource:
    """A tiny random model of a family; always the same one."""
    config, values = (CONFIGS | {"gemma3": GEMMA3})[name]
    return random_model(
        transformers.AutoModelForCausalLM.from_config,
        getattr(transformers, config)(**{**values, **changes}),
    )


def random_model(make: Any, config: Any) -> ModelSource:
    torch.manual_seed(0)
    model = make(config).eval()
    if model.get_output_embeddings() is not None:
        model = steepened(model)
    return CausalSource("tiny", model, vocabulary_of(tokenizer(), "tiny"))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_hidden_states_and_the_head_of_a_family_give_its_own_logits(
    name: str, words: Path, tmp_path: Path
) -> None:
    source = family(name)
    table = table_of(source, words, context=40)
    done = make(source, table, tmp_path / "rec", kind="auto")
    assert (done.kind, done.reason) == ("hidden", None)
    recorded, direct = scores(opened(tmp_path / "rec"), source), scores(source, source, table=table)
    assert_same(recorded, direct)
    assert not recorded["kl"].any()
    assert direct["nll_reference"].std() > 0.1, "near-uniform logits would prove nothing"


class WithHead(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """A Llama whose output embeddings do something else."""

    head: type[torch.nn.Linear]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head.__class__ = self.head


class Adapted(WithHead):
    """Has a low-rank step beside its projection."""

    class head(torch.nn.Linear):  # noqa: D106
        def forward(self, hidden: Tensor) -> Tensor:
            step = torch.linspace(-1, 1, self.in_features)
            return super().forward(hidden) + (hidden @ step)[..., None] * self.weight[:, 0]


class Rounding(WithHead):
    """Rounds what its projection is given: no matrix does the same."""

    class head(torch.nn.Linear):  # noqa: D106
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden.round())


def test_a_head_with_an_adapter_is_stored_as_it_acts(words: Path, tmp_path: Path) -> None:
    source = random_model(Adapted, transformers.LlamaConfig(**LLAMA))
    table = table_of(source, words, context=40)
    assert make(source, table, tmp_path / "rec", kind="auto").kind == "hidden"
    assert scores(opened(tmp_path / "rec"), source)["kl"].max() <= 1e-7


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Headless, "cannot be run apart"),
        (Biased, "run apart it differs by"),
        (Rounding, "stored it differs by"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_head_that_does_not_stand_alone_is_said_and_the_logits_are_recorded(
    kind: Any, reason: str, words: Path, tmp_path: Path
) -> None:
    source = random_model(kind, transformers.LlamaConfig(**LLAMA))
    table = table_of(source, words, context=40)
    with pytest.raises(SourceError, match=f"--kind hidden: .*{reason}.*--kind logits"):
        make(source, table, tmp_path / "rec", kind="hidden")
    assert not (tmp_path / "rec").exists()
    done = make(source, table, tmp_path / "rec", kind="auto")
    assert done.kind == "logits"
    assert done.reason is not None
    assert reason in done.reason
    assert manifest_of(tmp_path / "rec")["kind"] == "logits"
    assert_same(scores(opened(tmp_path / "rec"), source), scores(source, source, table=table))


# What is in it


@pytest.mark.parametrize("kind", ["hidden", "logits", "topk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_reader_of_safetensors_opens_it(
    live: Live, short: WindowTable, tmp_path: Path, kind: str, dtype: str
) -> None:
    make(live(dtype=dtype), short, tmp_path, kind=kind)
    shard = load_file(tmp_path / "shard-00000.safetensors")
    shapes = {name: (*tensor.shape, str(tensor.dtype)) for name, tensor in shard.items()}
    assert (
        shapes
        == {
            "hidden": {"hidden": (99, 64, f"torch.{dtype}")},
            "logits": {"logits": (99, 112, f"torch.{dtype}")},
            "topk": {
                "ids": (99, 8, "torch.int32"),
                "log_probs": (99, 8, "torch.float32"),
                "log_rest": (99, "torch.float32"),
            },
        }[kind]
    )
    assert (tmp_path / "head.safetensors").exists() == (kind == "hidden")


def test_the_manifest_says_what_was_recorded(
    live: Live, corpus: Path, fixtures: Path, tmp_path: Path, small_shards: None
) -> None:
    table = table_of(live(), corpus, fixtures / "other.txt", context=33).limited(3)
    make(live(), table, tmp_path)
    manifest = manifest_of(tmp_path)
    assert (manifest["format"], manifest["format_version"]) == ("klcli.recording", 1)
    assert (manifest["kind"], manifest["complete"]) == ("hidden", True)
    assert manifest["model"] == live().provenance
    assert manifest["request"]["tokenizer"] == live().vocabulary.fingerprint
    assert manifest["request"]["digest"] == live().digest()
    assert manifest["protocol"]["name"] == "rolling"
    assert manifest["protocol"]["context"] == 33
    assert (manifest["width"], manifest["dtype"]) == (112, "float32")
    assert (manifest["rows"], manifest["batch_tokens"]) == (198, BATCH_TOKENS)
    assert manifest["self_kl"]["largest"] <= max(1e-7, 2 * manifest["self_kl"]["noise"])
    assert [shard["rows"] for shard in manifest["shards"]] == [40, 40, 40, 40, 38]
    for one, text in zip(manifest["corpora"], (corpus, fixtures / "other.txt"), strict=True):
        assert one == {"name": str(text), "sha256": hashlib.sha256(text.read_bytes()).hexdigest()}


@pytest.mark.parametrize("kind", ["hidden", "logits", "topk"])
def test_the_manifest_has_the_size_and_the_sha256_of_every_file(
    live: Live, short: WindowTable, tmp_path: Path, small_shards: None, kind: str
) -> None:
    done = make(live(), short, tmp_path, kind=kind)
    manifest, files = manifest_of(tmp_path), files_of(tmp_path)
    assert done.bytes == sum(map(len, files.values()))
    del files["manifest.json"]
    shards = {f"shard-{n:05}.safetensors": entry for n, entry in enumerate(manifest["shards"])}
    entries = manifest["files"] | shards
    assert set(entries) == set(files)
    for name, content in files.items():
        assert entries[name]["bytes"] == len(content)
        assert entries[name]["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_head_is_stored_once_and_a_token_costs_its_hidden_state(
    live: Live, short: WindowTable, tmp_path: Path
) -> None:
    make(live(), short, tmp_path)
    assert load_file(tmp_path / "head.safetensors")["weight"].shape == (112, 64)
    header = 200
    assert (tmp_path / "shard-00000.safetensors").stat().st_size <= 99 * ROW + header


@pytest.mark.parametrize("k", [1, 8, 111, 112, 1000])
def test_a_list_has_the_most_probable_ids_and_what_is_left(
    live: Live, short: WindowTable, tmp_path: Path, k: int
) -> None:
    make(live(), short, tmp_path, kind="topk", top_k=k)
    shard = load_file(tmp_path / "shard-00000.safetensors")
    kept = min(k, 112)
    assert shard["ids"].shape == shard["log_probs"].shape == (99, kept)
    assert (shard["log_probs"].diff(dim=-1) <= 0).all(), "best first"
    mass = shard["log_probs"].double().exp().sum(-1) + shard["log_rest"].double().exp()
    torch.testing.assert_close(mass, torch.ones(99, dtype=torch.float64), atol=1e-6, rtol=0)
    assert (shard["log_rest"].isneginf()).all() == (kept == 112)


def test_two_recordings_of_one_thing_are_the_same_to_the_byte(
    live: Live, short: WindowTable, fixtures: Path, tmp_path: Path, small_shards: None
) -> None:
    make(live(), short, tmp_path / "one")
    make(loaded(fixtures / "models" / "reference"), short, tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


# Made again


def test_a_complete_recording_made_again_is_left_untouched(
    live: Live, short: WindowTable, tmp_path: Path, small_shards: None
) -> None:
    make(live(), short, tmp_path)
    names = {path.name for path in tmp_path.iterdir()} - {"lock"}
    for name in names:
        os.utime(tmp_path / name, (0, 0))
    told: list[tuple[int, int]] = []
    done = make(live(), short, tmp_path, progress=lambda *now: told.append(now))
    assert (done.rows, done.rows_before, told) == (99, 99, [])
    assert {(tmp_path / name).stat().st_mtime for name in names} == {0}


Change = Callable[[Live, Path], dict[str, Any]]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda live, text: {"kind": "logits"}, "kind was topk and is logits"),
        (lambda live, text: {"top_k": 9}, "top_k was 8 and is 9"),
        (lambda live, text: {"batch_tokens": 256}, "batch_tokens was 512 and is 256"),
        (lambda live, text: {"source": live("candidate")}, "digest was"),
        (lambda live, text: {"source": live(dtype="bfloat16")}, "dtype was float32 and is bf"),
        (
            lambda live, text: {"table": table_of(live(), text, context=32, limit=3)},
            "context was 33 and is 32",
        ),
        (
            lambda live, text: {"table": table_of(live(), text, context=33, limit=2)},
            "limit was 3 and is 2",
        ),
        (
            lambda live, text: {"table": table_of(live(), OTHER, context=33, limit=3)},
            "corpora.0 was",
        ),
    ],
    ids=["kind", "k", "batches", "weights", "dtype", "context", "limit", "text"],
)
def test_other_arguments_are_refused_by_name(
    live: Live,
    short: WindowTable,
    corpus_start: Path,
    tmp_path: Path,
    change: Change,
    named: str,
    complete: bool,
) -> None:
    arguments: dict[str, Any] = {"source": live(), "table": short, "kind": "topk"}
    if complete:
        make(**arguments, folder=tmp_path)
    else:
        with pytest.raises(SourceError, match="out of memory"):
            make(**arguments, folder=tmp_path, progress=stop)
    before = files_of(tmp_path)
    with pytest.raises(OutputError, match="holds another recording") as caught:
        make(**(arguments | change(live, corpus_start)), folder=tmp_path)
    assert named in str(caught.value)
    assert files_of(tmp_path) == before


def stop(_done: int, _total: int) -> None:
    """Fails as a model does that runs out of memory."""
    raise SourceError("out of memory")


@pytest.mark.parametrize(
    ("name", "setting"), [("gemma2", "final_logit_softcapping"), ("llama", "rms_norm_eps")]
)
def test_the_same_weights_under_another_config_are_another_model(
    name: str, setting: str, words: Path, tmp_path: Path
) -> None:
    source, changed = family(name), family(name, **{setting: 0.5})
    assert source.digest() != changed.digest()
    table = table_of(source, words, context=40)
    assert scores(source, changed, table=table)["kl"].max() > 1e-4
    make(source, table, tmp_path)
    with pytest.raises(OutputError, match="holds another recording"):
        make(changed, table, tmp_path)


# Broken off


class Killed(BaseException):
    """Ends a recording as a kill does: nothing is cleaned up."""


class Disk:
    """Counts what is made lasting, a flush or a renaming, and breaks off before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.broken_at: int | None = None
        self.error: BaseException = Killed()
        fsync, replace = os.fsync, Path.replace
        monkeypatch.setattr(os, "fsync", lambda file: self._step(lambda: fsync(file)))
        monkeypatch.setattr(Path, "replace", lambda a, b: self._step(lambda: replace(a, b)))

    def _step(self, act: Callable[[], object]) -> None:
        if self.steps == self.broken_at:
            self.broken_at = None
            raise self.error
        self.steps += 1
        act()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """What is written, to be broken off."""
    return Disk(monkeypatch)


def is_whole(folder: Path) -> bool:
    try:
        opened(folder)
    except SourceError:
        return False
    return True


@pytest.mark.parametrize(
    "error",
    [Killed(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))],
    ids=["killed", "disk full"],
)
@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_a_recording_broken_off_anywhere_is_not_whole_and_goes_on_to_the_same_bytes(
    live: Live,
    short: WindowTable,
    tmp_path: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    error: BaseException,
) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 70 * (ROW if kind == "hidden" else 68))
    make(live(), short, tmp_path / "whole", kind=kind)
    whole, steps = files_of(tmp_path / "whole"), disk.steps
    assert steps == 2 * (len(whole) + 3), "every file, and the manifest again for each shard"
    disk.error = error
    for step in range(steps):
        folder = tmp_path / str(step)
        disk.steps, disk.broken_at = 0, step
        with pytest.raises(Killed if isinstance(error, Killed) else OutputError) as caught:
            make(live(), short, folder, kind=kind)
        if not isinstance(error, Killed):
            assert "No space left on device" in str(caught.value)
            assert not list(folder.glob("*.tmp"))
        assert not is_whole(folder), f"broken off at step {step}"
        assert make(live(), short, folder, kind=kind).rows == 99
        assert files_of(folder) == whole, f"broken off at step {step}"


def test_a_recording_that_is_killed_again_and_again_comes_to_its_end(
    live: Live, short: WindowTable, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 10 * ROW)
    make(live(), short, tmp_path / "whole")
    kills, kept = 0, []
    while kills < 20:
        disk.steps, disk.broken_at = 0, 9
        try:
            kept.append(make(live(), short, tmp_path / "rec").rows_before)
        except Killed:
            kills += 1
        else:
            break
    assert kills == 6
    assert kept == [99], "the last kill came between the last shard and the word complete"
    assert files_of(tmp_path / "rec") == files_of(tmp_path / "whole")


def test_what_was_recorded_is_not_run_again(
    live: Live, short: WindowTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 33 * ROW)
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        if done == 66:
            raise SourceError("out of memory")

    with pytest.raises(SourceError, match="out of memory"):
        make(live(), short, tmp_path, batch_tokens=33, progress=tell)
    assert told == [(0, 99), (33, 99), (66, 99)]
    done = make(live(), short, tmp_path, batch_tokens=33, progress=lambda *now: told.append(now))
    assert (done.rows_before, done.rows) == (66, 99)
    assert told[3:] == [(66, 99), (99, 99)]


def test_a_shard_that_does_not_fit_is_not_half_there(
    live: Live, corpus_start: Path, tmp_path: Path
) -> None:
    """The limit of the size of a file stands for a full disk: what is written breaks off."""
    table = table_of(live(), corpus_start, context=33)
    resource = pytest.importorskip("resource")
    make(live(), table, tmp_path / "whole", kind="logits")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write to"):
            make(live(), table, tmp_path / "rec", kind="logits")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    missing = set(files_of(tmp_path / "whole")) - set(files_of(tmp_path / "rec"))
    assert missing == {"shard-00000.safetensors"}
    with pytest.raises(SourceError, match="is incomplete"):
        opened(tmp_path / "rec")
    make(live(), table, tmp_path / "rec", kind="logits")
    assert files_of(tmp_path / "rec") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("name", [".klcli-0123456789abcdef.tmp", "shard-00000.safetensors.tmp"])
def test_temporary_files_of_a_killed_run_are_removed(
    live: Live, short: WindowTable, tmp_path: Path, disk: Disk, name: str
) -> None:
    disk.broken_at = 8
    with pytest.raises(Killed):
        make(live(), short, tmp_path)
    (tmp_path / name).write_bytes(b"half of a")
    make(live(), short, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_an_incomplete_recording_is_refused_with_what_to_do(
    live: Live, short: WindowTable, tmp_path: Path, disk: Disk, small_shards: None
) -> None:
    disk.broken_at = 16
    with pytest.raises(Killed):
        make(live(), short, tmp_path)
    with pytest.raises(SourceError, match=r"is incomplete \(80 of 99 rows\): run the same klcli"):
        opened(tmp_path)


# Another process, another's folder


HOLD = """
import filelock, sys
with filelock.FileLock(sys.argv[1], timeout=0):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_record_to_one_folder_and_a_lock_dies_with_its_process(
    live: Live, short: WindowTable, tmp_path: Path
) -> None:
    make(live(), short, tmp_path / "rec")
    before = files_of(tmp_path / "rec")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "rec" / "lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=r"another process is writing to .*rec"):
            make(live("candidate"), short, tmp_path / "rec")
        holder.kill()
    assert files_of(tmp_path / "rec") == before
    assert make(live(), short, tmp_path / "rec").rows_before == 99


@pytest.mark.parametrize("name", ["notes.txt", "draft.tmp", "manifest.json", "config.json"])
def test_a_folder_that_holds_something_else_is_refused_and_left_as_it_was(
    live: Live, short: WindowTable, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("{}")
    (tmp_path / "other.tmp").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KlcliError, match=r"is not a recording|holds \S+ and is not a recording"):
        make(live(), short, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_empty_folder_can_be_recorded_to(live: Live, short: WindowTable, tmp_path: Path) -> None:
    assert make(live(), short, tmp_path).rows == 99


@pytest.mark.parametrize("place", ["file", "file/rec", "missing/rec"])
def test_a_place_that_cannot_be_a_folder_is_an_error(
    live: Live, short: WindowTable, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=f"cannot write the recording to .*{place}"):
        make(live(), short, tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


# Damage


@pytest.fixture
def rec(live: Live, short: WindowTable, tmp_path: Path, small_shards: None) -> Path:
    """A recording to spoil."""
    make(live(), short, tmp_path / "rec")
    return tmp_path / "rec"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def make_a_folder_of_it(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [truncate, lengthen, empty, alter, remove, make_a_folder_of_it]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name",
    [
        "shard-00000.safetensors",
        "shard-00002.safetensors",
        "head.safetensors",
        "windows.safetensors",
        "tokenizer.json",
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    live: Live, rec: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(rec / name)
    with pytest.raises(SourceError) as caught:
        scores(opened(rec), live("candidate"))
    assert str(caught.value).startswith(str(rec / name))
    assert "\n" not in str(caught.value)


def test_shards_that_changed_places_are_an_error(live: Live, rec: Path) -> None:
    (rec / "shard-00000.safetensors").rename(rec / "x")
    (rec / "shard-00001.safetensors").rename(rec / "shard-00000.safetensors")
    (rec / "x").rename(rec / "shard-00001.safetensors")
    with pytest.raises(SourceError, match=r"shard-00000\.safetensors was altered"):
        scores(opened(rec), live("candidate"))


@pytest.mark.parametrize("damage", [truncate, remove])
@pytest.mark.parametrize(
    "name", ["shard-00001.safetensors", "head.safetensors", "windows.safetensors"]
)
def test_recording_again_mends_what_is_damaged_or_says_that_it_is(
    live: Live, short: WindowTable, rec: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """It must not report a complete recording that cannot be read."""
    whole = files_of(rec)
    damage(rec / name)
    error = error_of(lambda: make(live(), short, rec))
    assert files_of(rec) == whole if error is None else name in str(error)


def error_of(act: Callable[[], object]) -> KlcliError | None:
    try:
        act()
    except KlcliError as error:
        return error
    return None


def edit(folder: Path, **changes: Any) -> None:
    manifest = manifest_of(folder) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_torn_manifest_is_an_error_for_reader_and_writer(
    live: Live, short: WindowTable, rec: Path, keep: float
) -> None:
    path = rec / "manifest.json"
    text = path.read_text()
    path.write_text(text[: int(len(text) * keep)])
    with pytest.raises(SourceError, match=r"cannot read the recording .*rec"):
        opened(rec)
    with pytest.raises(KlcliError, match=r"cannot read the recording .*rec"):
        make(live(), short, rec)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "is not a recording of klcli"),
        ("null", "is not a recording of klcli"),
        ('{"manifest_version": 3, "name": "a browser extension"}', "is not a recording of klcli"),
        ('{"format": "klcli.report", "format_version": 1}', "is not a recording of klcli"),
        ("\xff", "cannot read the recording"),
        ("[" * 100_000, "manifest"),
        ('{"format": "klcli.recording", "format_version": 1}', "manifest"),
    ],
    ids=["list", "null", "foreign", "report", "not UTF-8", "deep", "keys missing"],
)
def test_a_foreign_manifest_is_an_error(rec: Path, content: str, says: str) -> None:
    (rec / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SourceError, match=says):
        opened(rec)


@pytest.mark.parametrize("version", [4, "1", None])
def test_a_recording_of_another_version_is_refused(rec: Path, version: object) -> None:
    edit(rec, format_version=version)
    with pytest.raises(SourceError, match=r"is a recording of version .* reads versions up to 3"):
        opened(rec)


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": None},
        {"shards": []},
        {"files": {}},
        {"kind": "dreams"},
        {"dtype": "float99"},
        {"head": None},
        {"rows_per_shard": 0},
        {"rows_per_shard": 7},
        {"model": {}},
        {"vocabulary": {}},
        {"documents": []},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_manifest_that_was_tampered_with_is_one_clear_error(
    live: Live, rec: Path, changes: dict[str, Any]
) -> None:
    """Also where the numbers would only be others, as with another dtype."""
    edit(rec, **changes)
    with pytest.raises(SourceError, match="rec"):
        scores(opened(rec), live("candidate"))


def test_a_shard_of_another_kind_is_an_error(
    live: Live, short: WindowTable, rec: Path, tmp_path: Path
) -> None:
    """Even where the manifest vouches for it."""
    path = rec / "shard-00000.safetensors"
    save_file({"logits": torch.zeros(40, 112)}, path)
    shards = manifest_of(rec)["shards"]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    shards[0] |= {"bytes": path.stat().st_size, "sha256": sha256}
    edit(rec, shards=shards)
    with pytest.raises(SourceError, match="rec"):
        scores(opened(rec), live("candidate"))


def test_a_recording_of_another_tokenizer_is_a_mismatch_that_names_both(
    rec: Path, fixtures: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(fixtures / "models" / "candidate", tmp_path / "foreign"))
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    data = json.loads(text)
    vocabulary = data["model"]["vocab"]
    one, two = list(vocabulary)[20:22]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(data), encoding="utf-8")
    foreign = loaded(folder)
    recording: Any = opened(rec)
    for sides in ([recording, foreign], [foreign, recording]):
        with pytest.raises(MismatchError, match="the vocabularies differ: 2 of 1") as caught:
            align(sides, [], Scope())
        assert str(rec) in str(caught.value)
        assert str(folder) in str(caught.value)
