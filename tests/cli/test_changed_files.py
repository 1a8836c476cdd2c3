"""What predicts is changed, before a run goes on or while it is read: no number is made of both."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import klcli as package
from klcli.errors import KlcliError, OutputError, SourceError
from klcli.measure.evaluate import evaluate
from klcli.sources import Source, identity_of
from klcli.sources.opening import open_source
from klcli.sources.options import LoadOptions
from klcli.sources.stored import StoredSource
from klcli.storage import manifest as manifests
from klcli.storage.manifest import MANIFEST
from tests.running import Outcome, Run, timeless

WINDOWS, ROWS, WIDTH = 6, 8, 16
KINDS = (
    "p.npy", "f.npy", "p.npz", "p.pt", "p.safetensors", "p.kld", "p.jsonl",
    "hidden.recording", "logits.recording", "topk.recording",
)  # fmt: skip
Make = Callable[[str, int], Path]


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(WINDOWS, ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make(tmp_path: Path, fixtures: Path) -> Make:
    """Make a source of a kind, at one path; another seed gives other predictions."""

    def made(kind: str, seed: int) -> Path:
        path, logits = tmp_path / kind, logits_of(seed)
        tokens = torch.randint(
            WIDTH, (WINDOWS, ROWS + 1), generator=torch.Generator().manual_seed(0)
        )
        model = fixtures / "models" / ("reference", "candidate")[seed]
        if path.suffix == ".npy":
            order = np.asfortranarray if kind == "f.npy" else np.ascontiguousarray
            np.save(path, order(logits.numpy()))
            np.save(path.with_suffix(".tokens.npy"), tokens.numpy())
        elif path.suffix == ".npz":
            np.savez(path, logits=logits.numpy(), tokens=tokens.numpy())
        elif path.suffix == ".pt":
            torch.save({"logits": logits, "tokens": tokens}, path)
        elif path.suffix == ".safetensors":
            safetensors.torch.save_file({"logits": logits, "tokens": tokens}, path)
        elif path.suffix == ".jsonl":
            path.write_text("".join(lines(seed)), encoding="utf-8")
        elif path.suffix == ".kld":
            package.record(model, fixtures / "corpus.txt", path, context=16, limit=6)
        else:
            shutil.rmtree(path, ignore_errors=True)
            scope: dict[str, Any] = {"context": 16, "limit": 6, "kind": path.stem}
            package.record(model, fixtures / "corpus.txt", path, batch_tokens=16, **scope)
        return path

    return made


def lines(seed: int) -> Iterator[str]:
    yield json.dumps({"token": "a"}) + "\n"
    for position in range(1, 9):
        listed = {"a": -0.5 - seed, "b": -1.5 - position / 10}
        top = [{"token": token, "logprob": value} for token, value in listed.items()]
        yield json.dumps({"token": "a", "top_logprobs": top}) + "\n"


def main_file(path: Path) -> Path:
    """The file with the predictions."""
    return path / "shard-00000.safetensors" if path.is_dir() else path


def score(source: Source) -> float:
    table = source.windows
    assert table is not None
    found = evaluate(table, [source], batch_tokens=16, vocabulary_size=source.width)
    return float(found.scores["nll"].sum())


def opened(path: Path) -> Source:
    return open_source(str(path), LoadOptions(device="cpu"))


# Before a run goes on


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_does_not_go_on_with_another_file_at_the_same_path(
    klcli: Run, make: Make, tmp_path: Path, kind: str
) -> None:
    command = ("perplexity", make(kind, 0), "--run", tmp_path / "a.run", "--format", "json")
    first = klcli(*command)
    assert first.code == 0, first.err
    assert klcli(*command).out == first.out
    make(kind, 1)
    refused = klcli(*command)
    assert (refused.code, refused.out) == (1, "")
    assert "models.0.digest was" in refused.err
    assert klcli("report", tmp_path / "a.run", "--format", "json").out == first.out


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_is_of_what_is_in_the_file(make: Make, kind: str) -> None:
    first = identity_of(opened(make(kind, 0)))
    os.utime(main_file(make(kind, 0)))
    assert identity_of(opened(make(kind, 0))) == first
    other = identity_of(opened(make(kind, 1)))
    assert other["digest"] != first["digest"]
    assert len(first["digest"]) == 64


def test_a_run_that_was_begun_without_digests_does_not_go_on(
    klcli: Run, make: Make, tmp_path: Path
) -> None:
    """As klcli 0.1.0 began them: its runs are shown, but nobody knows what the file was."""
    run = tmp_path / "a.run"
    command = ("perplexity", make("p.npz", 0), "--run", run)
    shown = klcli(*command).out
    manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    del manifest["request"]["models"][0]["digest"], manifest["sha256"]
    manifests.save(run, manifest)
    refused = klcli(*command)
    assert refused.code == 1
    assert "models.0.digest was not noted and is" in " ".join(refused.err.split())
    assert "klcli 0.1.0" in refused.err
    assert klcli("report", run).out == shown


# Weights


@pytest.fixture
def model(tmp_path: Path, reference: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "model"))


def change_one_number(model: Path) -> None:
    """One of the numbers that a sample at a fixed stride does not see."""
    path = model / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    largest = max(tensors, key=lambda name: tensors[name].numel())
    tensors[largest].view(-1)[1] += 0.5
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def test_a_run_does_not_go_on_with_other_weights(
    klcli: Run, model: Path, corpus: Path, tmp_path: Path
) -> None:
    scope = ("--context", "64", "--limit", "2", "--run", tmp_path / "a.run")
    assert klcli("perplexity", model, corpus, *scope).code == 0
    change_one_number(model)
    refused = klcli("perplexity", model, corpus, *scope)
    assert refused.code == 1
    assert "models.0.digest was" in refused.err


def test_models_that_are_loaded_one_at_a_time_are_held_by_their_weights(
    klcli: Run, model: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    command = ("compare", model, candidate, corpus, "--context", "64", "--limit", "2")
    kept = ("--run", tmp_path / "a.run", "--format", "json")
    apart = klcli(*command, *kept, "--one-at-a-time")
    assert apart.code == 0, apart.err
    assert timeless(klcli(*command, *kept).out) == timeless(apart.out)
    change_one_number(model)
    refused = klcli(*command, *kept, "--one-at-a-time")
    assert refused.code == 1
    assert "models.0.digest was" in refused.err


@pytest.mark.parametrize("command", ["perplexity", "record"])
def test_weights_that_change_while_a_model_runs_are_an_error(
    model: Path, corpus: Path, tmp_path: Path, command: str
) -> None:
    """Those in the machine's memory are mapped: what is written to the file is in the model."""

    def change(_: int, __: int) -> None:
        rewrite(model / "model.safetensors")

    scope: dict[str, Any] = {"context": 16, "limit": 4, "batch_tokens": 16, "progress": change}
    place = {"output": tmp_path / "r"} if command == "record" else {}
    with pytest.raises(SourceError, match=r"model\.safetensors changed while it was read"):
        getattr(package, command)(model, corpus, **place, device="cpu", **scope)


def test_a_recording_does_not_go_on_with_other_weights(
    klcli: Run, model: Path, corpus: Path, tmp_path: Path
) -> None:
    command = ("record", model, corpus, "--context", "64", "--limit", "2", "-o", tmp_path / "r")
    assert klcli(*command).code == 0
    assert "(0 new)" in klcli(*command).err
    change_one_number(model)
    refused = klcli(*command)
    assert refused.code == 1
    assert "digest was" in refused.err


def test_a_recording_of_an_earlier_klcli_does_not_go_on(
    klcli: Run, model: Path, corpus: Path, tmp_path: Path
) -> None:
    command = ("record", model, corpus, "--context", "64", "--limit", "2", "-o", tmp_path / "r")
    assert klcli(*command).code == 0
    manifest = json.loads((tmp_path / "r" / MANIFEST).read_text(encoding="utf-8"))
    del manifest["request"]["digest"], manifest["sha256"]
    manifest["request"]["weights"] = "a sample"
    manifests.save(tmp_path / "r", manifest)
    refused = klcli(*command)
    assert refused.code == 1
    assert "digest was not noted" in refused.err
    assert "klcli 0.1.0" in refused.err
    assert klcli("perplexity", tmp_path / "r").code == 0


# While it is read


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path: Path) -> None:
    """Other bytes in the same file, of the same length."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size - 16)
        file.write(b"\x01" * 16)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


def replace(path: Path) -> None:
    """Another file of the same bytes at the same path, with the time of the first."""
    other, before = path.with_name("other"), path.stat()
    shutil.copyfile(path, other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [cut, rewrite, replace, remove])
def test_a_file_that_changes_while_it_is_read_is_an_error_that_names_it(
    make: Make, kind: str, change: Callable[[Path], None]
) -> None:
    path = make(kind, 0)
    source = opened(path)
    table = source.windows
    assert table is not None
    if path.is_dir():  # its shards are opened when they are read
        next(iter(source.rows([table.windows[:1]]))).block(0, 1)
    change(main_file(path))
    with pytest.raises(SourceError, match=main_file(path).name):
        score(source)


@pytest.mark.parametrize("kind", ["hidden.recording", "logits.recording", "topk.recording"])
def test_a_recording_that_is_made_anew_while_it_is_read_is_an_error(make: Make, kind: str) -> None:
    path = make(kind, 0)
    source = opened(path)
    make(kind, 1)
    with pytest.raises(SourceError):
        score(source)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_alone_is_read(make: Make, kind: str) -> None:
    assert np.isfinite(score(opened(make(kind, 0))))


def test_what_was_read_of_a_file_that_changed_is_not_kept(make: Make, tmp_path: Path) -> None:
    """Or the parts of a run would be of two files, where the first is put back."""
    path, run = make("p.npz", 0), tmp_path / "a.run"

    def change(done: int, _: int) -> None:
        if done == ROWS:
            rewrite(path)

    with pytest.raises(KlcliError, match="changed while it was read"):
        package.perplexity(path, run=str(run), batch_tokens=ROWS, progress=change)
    manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    assert not manifest["complete"]
    assert [part["name"] for part in manifest["parts"]] == ["part-00000.safetensors"]
    kept = safetensors.torch.load_file(run / "part-00000.safetensors")
    assert len(kept["index"]) == ROWS


def test_it_ends_the_command_with_one_line(
    klcli: Run, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("p.npy", 0)

    def changed(*args: Any, **options: Any) -> Any:
        cut(path)
        return evaluate(*args, **options)

    monkeypatch.setattr("klcli.workflow.evaluate", changed)
    done: Outcome = klcli("perplexity", path)
    assert (done.code, done.out) == (1, "")
    assert "p.npy changed while it was read (its size was" in " ".join(done.err.split())


def test_every_source_has_a_digest() -> None:
    """A reader that leaves it out cannot be made."""

    class Forgetful(StoredSource):
        def check_unchanged(self) -> None: ...

    with pytest.raises(TypeError, match="digest"):
        Forgetful()  # type: ignore[abstract]


def test_the_difference_is_said_field_by_field(make: Make, tmp_path: Path) -> None:
    run = str(tmp_path / "a.run")
    package.perplexity(make("p.npz", 0), run=run)
    with pytest.raises(OutputError) as refused:
        package.perplexity(make("p.npz", 0), run=run, limit=2)
    assert "limit was None and is 2" in str(refused.value)
    assert "digest" not in str(refused.value)
