"""What is wrong with a command is said before torch and transformers are loaded."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.running import Outcome

PROGRAM = """
import contextlib, io, json, sys
sys.modules["torch"] = sys.modules["transformers"] = None  # to import one is an ImportError
from klcli.cli import main

found = {}
for name, arguments in json.load(sys.stdin).items():
    sys.stdin = io.TextIOWrapper(io.BytesIO())
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as exit_:
            found[name] = exit_.code, out.getvalue(), err.getvalue()
        except ImportError as error:
            found[name] = -1, out.getvalue(), f"imports {error.name}"
sys.__stdout__.write(json.dumps(found))
"""
"""Runs many commands in a process that has neither torch nor transformers."""

CASES: dict[str, tuple[str, int, str]] = {
    "no corpus": ("compare model model-4bit", 2, "name a CORPUS"),
    "no corpus for perplexity": ("perplexity model", 2, "name a CORPUS"),
    "no corpus for layers": ("layers model model-4bit", 2, "name a CORPUS"),
    "a missing corpus": ("compare model model-4bit nowhere.txt", 1, "no corpus at 'nowhere.txt'"),
    "a folder for a corpus": ("compare model model-4bit nothing", 1, "nothing is a folder without"),
    "no chat template": (
        "compare model model-4bit corpus.txt --chat-template no.jinja", 1,
        "cannot read the chat template no.jinja",
    ),
    "no calibration text": (
        "compare model model-4bit corpus.txt --calibration no.txt", 1, "no corpus at 'no.txt'",
    ),
    "a pair without its completion": (
        "compare model model-4bit corpus.txt --prompt-field a", 2, "go together: give both",
    ),
    "prompts for nobody": ("answer model -o new.jsonl", 2, "PROMPTS"),
    "answers over something else": (
        "answer model corpus.txt -o corpus.txt", 2, "is an input of this run",
    ),
    "answers of a recording": (
        "answer old.rec corpus.txt -o new.jsonl", 1, "is a recording, which cannot answer",
    ),
    "an empty corpus": ("compare model model-4bit empty.txt", 1, "empty.txt is empty"),
    "an empty stdin": ("perplexity model -", 1, "<stdin> is empty"),
    "stdin twice": ("perplexity model - -", 2, "name it once"),
    "a corpus that is not text": ("perplexity model latin.txt", 1, "latin.txt is not UTF-8"),
    "a corpus of broken JSON": ("record model broken.jsonl -o new.rec", 1, "line 1: not JSON"),
    "a corpus beside files": (
        "compare reference.npz candidate.npz corpus.txt", 2, "give --tokenizer",
    ),
    "a context beside a file": (
        "compare reference.npz model --context 64", 2, "the windows come from",
    ),
    "a protocol beside a recording": (
        "perplexity old.rec --protocol strided", 2, "leave out --protocol",
    ),
    "a name of nobody": ("compare model nobody corpus.txt", 1, "no model of that name"),
    "a path to nothing": ("perplexity ./no/such/model corpus.txt", 1, "no model at"),
    "a missing GGUF file": ("perplexity none.gguf corpus.txt", 1, "no model at 'none.gguf'"),
    "a missing logit file": ("compare none.npz model", 1, "no logit file at 'none.npz'"),
    "missing answers": ("compare none.jsonl model", 1, "no file of top log-probabilities at"),
    "a folder without a model": ("perplexity folder corpus.txt", 1, "it has no config.json"),
    "a text for a model": ("perplexity corpus.txt corpus.txt", 1, "is not a model"),
    "weights that are cut": ("perplexity cut corpus.txt", 1, "is cut short or damaged"),
    "a recording that is not complete": ("compare half.rec model", 1, "is incomplete"),
    "a missing adapter": (
        "compare model model corpus.txt --candidate-adapter folder", 1, "is not an adapter",
    ),
    "missing token ids": ("compare reference.npz candidate.npz --token-ids none.npy", 2, "none"),
    "a missing tokenizer": (
        "compare reference.npz candidate.npz --tokenizer nobody", 1, "no model of that name",
    ),
    "a device of nobody": ("perplexity model corpus.txt --device gpu", 2, "is not a device"),
    "a context of no tokens": ("perplexity model corpus.txt --context 0", 2, "--context"),
    "causal options": (
        "perplexity model corpus.txt --task masked --bos window", 2, "leave out --bos",
    ),
    "masked options": (
        "record model corpus.txt --task causal --pll word -o new.rec", 2, "leave out --pll",
    ),
    "a gate of the other command": ("perplexity model corpus.txt --gate kl<=1", 2, "kl"),
    "a gate that is none": ("compare model model-4bit corpus.txt --gate kl=1", 2, "kl=1"),
    "a gate without a baseline": (
        "compare model model-4bit corpus.txt --gate kl<=1.1*baseline", 2, "give --baseline",
    ),
    "a baseline that is a model": (
        "compare model model-4bit corpus.txt --baseline model", 1, "model",
    ),
    "a baseline that is a text": (
        "compare model model-4bit corpus.txt --baseline corpus.txt", 1, "corpus.txt",
    ),
    "a baseline of the other command": (
        "perplexity model corpus.txt --baseline first.run", 2, "is a run of klcli compare",
    ),
    "an ending of no format": ("compare model model-4bit corpus.txt --output run.xlsx", 2, ".json"),
    "an output that is an input": (
        "compare model model-4bit text.md --output text.md", 2, "is an input of this run",
    ),
    "an output to no folder": (
        "compare model model-4bit corpus.txt --output no/run.json", 1, "there is no folder",
    ),
    "a run in no folder": (
        "compare model model-4bit corpus.txt --run no/new.run", 1, "there is no folder",
    ),
    "a run in a folder of others": (
        "compare model model-4bit corpus.txt --run folder", 1, "is not a run",
    ),
    "another run": (
        "compare model model-4bit corpus.txt --run first.run", 1, "holds another run",
    ),
    "a run of other models": (
        "compare model model-4bit corpus.txt --run first.run --outliers 3 --limit 2", 1,
        "models.0.source was fixtures/models/reference and is model",
    ),
    "a shard of too few": (
        "compare model model-4bit corpus.txt --run new.run --shard 3/2", 2, "write I/N",
    ),
    "a shard that is not kept": (
        "compare model model-4bit corpus.txt --shard 1/2", 2, "give --run DIR",
    ),
    "a goal and a run": (
        "compare model model-4bit corpus.txt --until kl.mean+-0.1 --run new.run", 2, "--until",
    ),
    "a noise floor of a file": (
        "compare old.rec model --noise-floor batch", 2, "old.rec is not a model",
    ),
    "a recording in no folder": ("record model corpus.txt -o no/new.rec", 1, "there is no folder"),
    "a base file in no folder": ("record model corpus.txt -o no/new.kld", 1, "there is no folder"),
    "a recording of a recording": ("record old.rec corpus.txt -o new.rec", 1, "old.rec"),
    "layers of a file": ("layers reference.npz model corpus.txt", 1, "give the model itself"),
    "a run that is none": ("report model", 1, "model"),
    "a shard that is missing": ("merge nowhere.run -o new.run", 1, "nowhere.run"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of all kinds, good and bad."""
    folder = tmp_path_factory.mktemp("early")
    for name, path in (
        ("model", "models/reference"),
        ("model-4bit", "models/candidate"),
        ("reference.npz", "logits/reference.npz"),
        ("candidate.npz", "logits/candidate.npz"),
        ("corpus.txt", "corpus.txt"),
        ("text.md", "corpus.txt"),
        ("first.run", "saved/first.run"),
        ("old.rec", "saved/first.recording"),
    ):
        (folder / name).symlink_to(fixtures / path)
    (folder / "nothing").mkdir()
    (folder / "folder").mkdir()
    (folder / "folder" / "mine.txt").write_text("mine")
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "broken.jsonl").write_text("{")
    weights = shutil.copytree(fixtures / "models/reference", folder / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    _make_incomplete(shutil.copytree(fixtures / "saved/first.recording", folder / "half.rec"))
    return folder


def _make_incomplete(recording: Path) -> None:
    from klcli.storage import manifest as manifests

    manifest = json.loads((recording / "manifest.json").read_text())
    del manifest["sha256"]
    manifests.save(recording, {**manifest, "complete": False})


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> Mapping[str, Outcome]:
    """What became of every command."""
    before = sorted(folder.iterdir())
    found = run({name: line for name, (line, *_) in CASES.items()}, folder)
    assert sorted(folder.iterdir()) == before  # nothing was written
    return found


def run(lines: Mapping[str, str], folder: Path) -> Mapping[str, Outcome]:
    """Run commands in a folder, without torch."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps({name: line.split() for name, line in lines.items()}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    return {name: Outcome(*found) for name, found in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_before_torch_is_loaded(outcomes: Mapping[str, Outcome], name: str) -> None:
    _, code, says = CASES[name]
    done = outcomes[name]
    assert (done.code, done.out) == (code, ""), done.err
    assert "Error" in done.err
    assert says in " ".join(done.err.split())


def test_a_command_that_is_right_asks_for_torch(folder: Path) -> None:
    """Or the facts above would hold of anything."""
    line = "compare model model-4bit corpus.txt --run new.run --baseline first.run"
    assert run({"right": line}, folder)["right"].err == "imports torch"
