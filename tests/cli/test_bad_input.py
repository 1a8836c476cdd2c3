"""Bad input: one clear message, the right exit code, no traceback, nothing half-written."""

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.running import Outcome, Run


def assert_refused(done: Outcome, code: int, *says: str) -> None:
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    text = " ".join(done.err.split())
    assert text.count("Error:") == 1
    for words in says:
        assert words in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no corpus at"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"text\0more", "is not text"),
        (b"\xff\xfe\x00", "is not"),
        (b"The", "nothing to score"),
    ],
    ids=["missing", "empty", "blank", "binary", "not-utf-8", "one-token"],
)
def test_a_corpus_that_cannot_be_scored(
    klcli: Run, reference: Path, candidate: Path, tmp_path: Path, content: bytes | None, says: str
) -> None:
    corpus = tmp_path / "corpus.txt"
    if content is not None:
        corpus.write_bytes(content)
    assert_refused(klcli("compare", reference, candidate, corpus), 1, says, str(corpus.name))


def test_too_little_text_for_llama_cpp(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text(corpus.read_text(encoding="utf-8")[:600], encoding="utf-8")
    done = klcli("perplexity", reference, short, "--protocol", "llama.cpp", "--context", "128")
    assert_refused(done, 1, "short.txt has 1", "needs 256", "--context 128")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such-model", "no-such-model"),
        ("./no/such/folder", "no model at"),
        ("missing.gguf", "no model at"),
        ("missing.npz", "no logit file at"),
    ],
)
def test_an_unknown_model(klcli: Run, corpus: Path, name: str, says: str) -> None:
    assert_refused(klcli("perplexity", name, corpus), 1, says)


def test_a_folder_without_a_model(klcli: Run, corpus: Path, tmp_path: Path) -> None:
    assert_refused(klcli("perplexity", tmp_path, corpus), 1, "config.json")


def test_no_corpus(klcli: Run, reference: Path) -> None:
    assert_refused(klcli("perplexity", reference), 2, "CORPUS")


def test_a_context_beyond_the_model(klcli: Run, reference: Path, corpus: Path) -> None:
    assert_refused(klcli("perplexity", reference, corpus, "--context", "4096"), 2, "4096", "128")


def test_logit_files_of_other_tokens(klcli: Run, fixtures: Path, tmp_path: Path) -> None:
    with np.load(fixtures / "logits/candidate.npz") as saved:
        logits, tokens = saved["logits"], saved["tokens"].copy()
    tokens[1, 4] = (tokens[1, 4] + 1) % 112
    np.savez(tmp_path / "other.npz", logits=logits, tokens=tokens)
    done = klcli("compare", fixtures / "logits/reference.npz", tmp_path / "other.npz")
    assert_refused(done, 1, "the tokens differ", "reference.npz", "other.npz")


def test_logit_files_of_other_shapes(klcli: Run, fixtures: Path, tmp_path: Path) -> None:
    with np.load(fixtures / "logits/candidate.npz") as saved:
        np.savez(tmp_path / "short.npz", logits=saved["logits"][:9], tokens=saved["tokens"][:9])
    done = klcli("compare", fixtures / "logits/reference.npz", tmp_path / "short.npz")
    assert_refused(done, 1, "56 windows of 64 rows", "9 windows of 64 rows")


def test_a_logit_file_without_tokens_beside_a_model(
    klcli: Run, fixtures: Path, reference: Path, tmp_path: Path
) -> None:
    with np.load(fixtures / "logits/candidate.npz") as saved:
        np.savez(tmp_path / "bare.npz", logits=saved["logits"])
    assert_refused(klcli("compare", reference, tmp_path / "bare.npz"), 1, "tokens", "--token-ids")


def test_two_logit_files_without_tokens_still_have_a_divergence(
    klcli: Run, fixtures: Path, tmp_path: Path
) -> None:
    for name in ("reference", "candidate"):
        with np.load(fixtures / f"logits/{name}.npz") as saved:
            np.save(tmp_path / f"{name}.npy", saved["logits"])
    done = klcli("compare", tmp_path / "reference.npy", tmp_path / "candidate.npy")
    assert done.code == 0
    assert "kl                0.00101" in done.out
    assert "does not say which tokens" in " ".join(done.out.split())


class Trap:
    """A pickle that would leave a file behind if it ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_a_pickle_never_runs(klcli: Run, fixtures: Path, tmp_path: Path, suffix: str) -> None:
    trap, path = tmp_path / "it-ran", tmp_path / f"trap{suffix}"
    array = np.array([Trap(trap)], dtype=object)
    if suffix == ".npy":
        np.save(path, array, allow_pickle=True)
    elif suffix == ".npz":
        np.savez(path, allow_pickle=True, logits=array)
    else:
        path.write_bytes(pickle.dumps(Trap(trap)))
    assert_refused(klcli("compare", fixtures / "logits/reference.npz", path), 1, "pickle")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("output", "code", "says"),
    [
        ("missing/run.json", 1, "missing"),
        ("run.xlsx", 2, ".json"),
        ("folder.json", 1, "it is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    klcli: Run, tmp_path: Path, output: str, code: int, says: str
) -> None:
    (tmp_path / "folder.json").mkdir()
    done = klcli("compare", "no-model", "none", "none.txt", "--output", tmp_path / output)
    assert_refused(done, code, says)


@pytest.mark.parametrize(
    ("output", "module", "extra"),
    [
        ("kl.svg", "vl_convert", "html"),
        ("kl.png", "altair", "html"),
        ("tokens.parquet", "pyarrow", "parquet"),
    ],
)
def test_an_output_whose_package_is_missing_is_refused_before_the_work(
    klcli: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    module: str,
    extra: str,
) -> None:
    hide(module, monkeypatch)
    done = klcli("compare", "no-model", "none", "none.txt", "--output", tmp_path / output)
    assert_refused(done, 2, f"needs {module}: pip install 'klcli[{extra}]'")


def test_a_page_that_cannot_be_made_is_not_opened(
    klcli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("jinja2", monkeypatch)
    done = klcli("report", "none.json", "--open")
    assert_refused(done, 2, "--open needs jinja2: pip install 'klcli[html]'")


def hide(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module look as if it were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == module else find_spec(name)
    )


def test_an_error_leaves_no_output_behind(klcli: Run, reference: Path, tmp_path: Path) -> None:
    klcli("perplexity", reference, tmp_path / "missing.txt", "--output", tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


def test_hostile_names_are_shown_without_their_control_characters(
    klcli: Run, reference: Path
) -> None:
    done = klcli("perplexity", reference, "\x1b[31mred\u202e.txt")
    assert "\x1b" not in done.err
    assert "\u202e" not in done.err


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "klcli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def test_a_closed_stdin_is_an_error(reference: Path) -> None:
    command = f'"{sys.executable}" -m klcli perplexity "{reference}" - <&-'
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), 1, "stdin is closed")


@pytest.mark.parametrize(
    ("options", "code"),
    [(("--format", "jsonl"), 0), (("--tokens", "all"), 0), (("--gate", "kl<=0"), 3)],
    ids=["jsonl", "table", "failed-gate"],
)
def test_a_reader_that_leaves_is_no_error(
    reference: Path, candidate: Path, corpus: Path, options: tuple[str, ...], code: int
) -> None:
    more = ["--tokens", "all"] if code else []
    process = start("compare", reference, candidate, corpus, "--quiet", *options, *more)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == code


@pytest.mark.parametrize(
    ("encoding", "words", "says"),
    [
        ("ascii", ["--limit", "1", "--details"], "KL(reference || candidate), in nats"),
        ("ascii", ["--context", "0\u2016"], "'0||'"),
        ("cp1252", ["--help"], "KL(REFERENCE||CANDIDATE) in nats"),
    ],
)
def test_a_console_of_another_alphabet_is_shown_what_it_has(
    reference: Path, candidate: Path, corpus: Path, encoding: str, words: list[str], says: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "klcli", "compare", reference, candidate, corpus, *words],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert says in " ".join((done.stdout + done.stderr).decode(encoding).split())


INTERRUPTED = """
import itertools, signal, sys
from transformers import GPT2Model

forward, passes = GPT2Model.forward, itertools.count()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

def interrupted(self, *words, **options):
    if next(passes) == 40:
        signal.raise_signal(signal.SIGINT)
    return forward(self, *words, **options)

GPT2Model.forward = interrupted
from klcli.cli import main
main(sys.argv[1:])
"""
"""klcli, interrupted as by Ctrl-C in the midst of some 56 passes."""


def test_ctrl_c_exits_130_and_writes_nothing(
    reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    output = ("--batch-tokens", "128", "--output", tmp_path / "run.json")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "compare", reference, candidate, corpus, *output],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["table", "json"])
def test_a_full_stdout_is_an_error(fixtures: Path, kind: str) -> None:
    logits = fixtures / "logits"
    command = (
        f'"{sys.executable}" -m klcli compare "{logits}/reference.npz" "{logits}/candidate.npz" '
        f"--quiet --format {kind} >/dev/full"
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), 1, "cannot write to stdout")


def test_a_closed_stdout_is_quiet_and_the_gate_still_decides(fixtures: Path) -> None:
    logits = fixtures / "logits"
    command = (
        f'"{sys.executable}" -m klcli compare "{logits}/reference.npz" "{logits}/candidate.npz" '
        "--quiet --gate 'kl<=0' >&-"
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")


def test_an_output_never_replaces_an_input(klcli: Run, reference: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "The dog sleeps."}\n', encoding="utf-8")
    before = text.read_bytes()
    done = klcli("perplexity", reference, text, "--output", tmp_path / "." / "text.jsonl")
    assert_refused(done, 2, "is an input of this run")
    assert text.read_bytes() == before


def test_a_text_in_the_place_of_a_model_is_said_to_be_none(
    klcli: Run, reference: Path, corpus: Path
) -> None:
    for given in ((reference, corpus), (corpus, reference, reference)):
        assert_refused(klcli("compare", *given), 1, corpus.name, "model")
