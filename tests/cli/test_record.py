"""`klcli record`, and what can be done with what it leaves."""

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import transformers

import klcli as package
from klcli.errors import UsageError
from klcli.sources.recording import writer
from tests.running import Outcome, Run

WINDOWS = ("--context", "64", "--limit", "2")
TOKENS = 128


@pytest.fixture
def base(klcli: Run, reference: Path, corpus: Path, tmp_path: Path) -> Path:
    """A recording of the reference: two windows of 64 tokens."""
    path = tmp_path / "base.rec"
    assert klcli("record", reference, corpus, "-o", path, *WINDOWS).code == 0
    return path


def report_of(klcli: Run, *arguments: str | Path) -> dict[str, Any]:
    done = klcli(*arguments, "--format", "json", "--quiet")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def assert_refused(done: Outcome, code: int, *says: str) -> None:
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert [line for line in done.err.splitlines() if line.startswith("Error: ")]
    text = " ".join(done.err.split())
    for words in says:
        assert words in text


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


# Record, then compare


def test_a_recording_gives_the_report_of_its_model(
    klcli: Run, base: Path, reference: Path, candidate: Path, corpus: Path
) -> None:
    live = report_of(klcli, "compare", reference, candidate, corpus, *WINDOWS)
    recorded = report_of(klcli, "compare", base, candidate)
    for part in ("metrics", "counts", "corpora", "outliers", "protocol", "signature", "warnings"):
        assert recorded[part] == live[part], part
    assert recorded["reference"] == live["reference"] | {
        "recording": str(base),
        "recording_kind": "hidden",
    }


def test_two_recordings_are_compared_without_a_model(
    klcli: Run, base: Path, fixtures: Path, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(fixtures / "models" / "candidate", model)
    klcli("record", model, corpus, "-o", tmp_path / "other.rec", "--kind", "logits", *WINDOWS)
    live = report_of(klcli, "compare", reference, model, corpus, *WINDOWS)
    shutil.rmtree(model)
    recorded = report_of(klcli, "compare", base, tmp_path / "other.rec")
    assert recorded["metrics"] == live["metrics"]


def test_a_recording_has_the_perplexity_of_its_model(
    klcli: Run, base: Path, reference: Path, corpus: Path
) -> None:
    live = report_of(klcli, "perplexity", reference, corpus, *WINDOWS)
    recorded = report_of(klcli, "perplexity", base)
    assert recorded["metrics"] == live["metrics"]
    assert recorded["metrics"]["bits_per_byte"]["value"] > 0


def test_the_first_windows_of_a_recording_can_be_compared(
    klcli: Run, base: Path, reference: Path, candidate: Path, corpus: Path
) -> None:
    live = report_of(
        klcli, "compare", reference, candidate, corpus, "--context", "64", "--limit", "1"
    )
    recorded = report_of(klcli, "compare", base, candidate, "--limit", "1")
    assert recorded["metrics"] == live["metrics"]
    assert recorded["counts"]["tokens"] == 64


def test_the_windows_of_a_recording_are_its_own(klcli: Run, base: Path, candidate: Path) -> None:
    done = klcli("compare", base, candidate, "--context", "32")
    assert_refused(done, 2, f"the windows come from {base}", "--context")


def test_the_corpus_may_be_given_again_and_no_other(
    klcli: Run, base: Path, candidate: Path, corpus: Path, fixtures: Path
) -> None:
    given = report_of(klcli, "compare", base, candidate, corpus)
    assert given["metrics"] == report_of(klcli, "compare", base, candidate)["metrics"]
    assert_refused(
        klcli("compare", base, candidate, fixtures / "other.txt"), 1, "other.txt", "3585"
    )


def test_a_longer_text_is_not_that_of_a_llama_cpp_recording(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    longer = tmp_path / "longer.txt"
    longer.write_text(corpus.read_text() + "The dog sleeps.\n" * 40, encoding="utf-8")
    options = ("--protocol", "llama.cpp", *WINDOWS)
    klcli("record", reference, corpus, "-o", tmp_path / "rec", *options)
    assert klcli("compare", tmp_path / "rec", candidate, corpus).code == 0
    assert_refused(klcli("compare", tmp_path / "rec", candidate, longer), 1, "longer.txt")


def test_lists_of_top_tokens_are_recorded_as_long_as_wanted(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, tmp_path: Path
) -> None:
    options = ("--kind", "topk", "--top-k", "6", *WINDOWS)
    done = klcli("record", reference, corpus, "-o", tmp_path / "rec", *options)
    assert f"{tmp_path / 'rec'}: topk, 128 tokens (128 new)" in done.err
    report = report_of(klcli, "compare", tmp_path / "rec", candidate)
    assert report["lower_bounds"] == ["kl", "kl_reverse", "jsd", "tv"]


# What it says


def test_the_summary_is_on_stderr_and_counts_what_is_new(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    arguments = ("record", reference, corpus, "-o", tmp_path / "rec", *WINDOWS)
    first = klcli(*arguments)
    size = sum(map(len, files_of(tmp_path / "rec").values()))
    summary = f"{tmp_path / 'rec'}: hidden, 128 tokens (128 new), {size:,} bytes\n"
    scored, first_summary = first.err.splitlines(keepends=True)
    assert (first.code, first.out, first_summary) == (0, "", summary)
    assert scored.startswith("128 tokens in ")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "rec").glob("*.*")}
    again = klcli(*arguments)
    assert (again.code, again.out, again.err) == (0, "", summary.replace("(128 new)", "(0 new)"))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_quiet_says_nothing(klcli: Run, reference: Path, corpus: Path, tmp_path: Path) -> None:
    done = klcli("record", reference, corpus, "-o", tmp_path / "rec", "--quiet", *WINDOWS)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_a_head_that_does_not_stand_alone_is_a_warning_with_its_reason(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = transformers.GPT2LMHeadModel.forward

    def louder(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", louder)
    arguments = ("record", reference, corpus, "-o", tmp_path / "rec", *WINDOWS)
    refused = klcli(*arguments, "--kind", "hidden")
    assert_refused(refused, 1, "--kind hidden:", "does not stand alone", "--kind logits")
    assert not (tmp_path / "rec").exists()
    _, warning, summary = klcli(*arguments).err.splitlines()
    assert warning.startswith("Warning: the logits are recorded, for the output head does not")
    assert "nats" in warning
    assert ": logits, 128 tokens" in summary


# Broken off


@pytest.fixture
def interrupted(
    klcli: Run,
    reference: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Outcome, Path]:
    """What Ctrl-C leaves behind while the third shard is written."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 8192)
    fsync, calls = os.fsync, iter(range(1000))

    def press(file: int) -> None:
        if next(calls) == 8:
            raise KeyboardInterrupt
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", press)
        done = klcli("record", reference, corpus, "-o", tmp_path / "rec", *WINDOWS)
    return done, tmp_path / "rec"


def test_ctrl_c_exits_130_and_the_same_command_goes_on(
    klcli: Run, interrupted: tuple[Outcome, Path], reference: Path, corpus: Path, tmp_path: Path
) -> None:
    done, folder = interrupted
    assert (done.code, done.out, done.err.strip()) == (130, "", "Interrupted.")
    again = klcli("record", reference, corpus, "-o", folder, *WINDOWS)
    assert again.code == 0
    assert "128 tokens (64 new)" in again.err
    klcli("record", reference, corpus, "-o", tmp_path / "whole", *WINDOWS)
    assert files_of(folder) == files_of(tmp_path / "whole")


def test_what_is_incomplete_is_not_compared_and_says_what_to_do(
    klcli: Run, interrupted: tuple[Outcome, Path], candidate: Path
) -> None:
    _, folder = interrupted
    done = klcli("compare", folder, candidate)
    assert_refused(done, 1, f"{folder} is incomplete (64 of 128 rows)", "klcli record again")
    facts = json.loads(klcli("inspect", folder, "--format", "json").out)
    assert (facts["complete"], facts["rows"], facts["rows_in_all"]) == (False, 64, 128)


def test_other_arguments_are_refused_by_name(
    klcli: Run, base: Path, reference: Path, candidate: Path, corpus: Path
) -> None:
    before = files_of(base)
    for model, option, says in (
        (candidate, WINDOWS, "digest was"),
        (reference, (*WINDOWS, "--dtype", "bfloat16"), "dtype was float32 and is bfloat16"),
        (reference, ("--context", "32", "--limit", "2"), "context was 64 and is 32"),
        (reference, ("--context", "64"), "limit was 2 and is None"),
        (reference, (*WINDOWS, "--kind", "logits"), "kind was hidden and is logits"),
        (reference, (*WINDOWS, "--batch-tokens", "64"), "batch_tokens was 2048 and is 64"),
    ):
        done = klcli("record", model, corpus, "-o", base, *option)
        assert_refused(done, 1, "holds another recording", says)
    assert files_of(base) == before


# What cannot be recorded


@pytest.mark.parametrize("place", ["missing/rec", "file", "file/rec"])
def test_a_place_that_cannot_be_written_is_found_before_the_model_is_loaded(
    klcli: Run, corpus: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    done = klcli("record", "no-such-model", corpus, "-o", tmp_path / place)
    assert_refused(done, 1, str(tmp_path / place))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_write_protected_is_an_error(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is write-protected to root")
    (tmp_path / "locked").mkdir(mode=0o500)
    done = klcli("record", reference, corpus, "-o", tmp_path / "locked" / "rec", *WINDOWS)
    assert_refused(done, 1, "cannot write the recording to", "is write-protected")


def test_only_a_model_can_be_recorded(
    klcli: Run, base: Path, fixtures: Path, corpus: Path, tmp_path: Path
) -> None:
    for source in (base, fixtures / "logits" / "reference.npz"):
        done = klcli("record", source, corpus, "-o", tmp_path / "rec")
        assert_refused(done, 1, str(source))
        assert not (tmp_path / "rec").exists()


def test_a_corpus_and_a_place_are_required(klcli: Run, reference: Path, corpus: Path) -> None:
    assert klcli("record", reference, "-o", "x").code == 2
    assert klcli("record", reference, corpus).code == 2


@pytest.mark.parametrize(
    "option",
    [
        ("--protocol", "rolling"),
        ("--kind", "topk"),
        ("--stride", "32"),
        ("--score-from", "3"),
    ],
    ids=lambda option: option[0],
)
def test_a_base_file_of_llama_cpp_has_its_one_protocol(
    klcli: Run, corpus: Path, tmp_path: Path, option: tuple[str, str]
) -> None:
    done = klcli("record", "no-such-model", corpus, "-o", tmp_path / "base.kld", *option)
    assert_refused(done, 2, ".kld", option[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"kind": "dreams"}, {"kind": "topk", "top_k": 0}], ids=str)
def test_a_value_that_is_no_choice_is_a_usage_error(
    reference: Path, corpus: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        package.record(str(reference), corpus, str(tmp_path / "rec"), limit=1, **options)


# Inspect


def facts_of(klcli: Run, path: Path) -> dict[str, Any]:
    """What both formats say; they say the same."""
    table, data = klcli("inspect", path), klcli("inspect", path, "--format", "json")
    assert (table.code, data.code) == (0, 0), table.err + data.err
    assert table.err == data.err == ""
    facts = dict(json.loads(data.out))
    names = [line.split("  ")[0] for line in table.out.splitlines()]
    assert names == [name.replace("_", " ") for name in facts]
    return facts


def test_inspect_says_what_a_recording_holds(
    klcli: Run, base: Path, reference: Path, corpus: Path
) -> None:
    facts = facts_of(klcli, base)
    expected = {
        "kind": "recording of hidden",
        "complete": True,
        "source": str(reference),
        "dtype": "float32",
        "architecture": "GPT2LMHeadModel",
        "corpora": [str(corpus)],
        "rows": TOKENS,
        "rows_in_all": TOKENS,
        "vocabulary_width": 112,
        "shards": 1,
        "head_bytes": (base / "head.safetensors").stat().st_size,
    }
    assert expected.items() <= facts.items()
    assert facts["bytes_per_token"] == pytest.approx(256, abs=1)
    assert facts["self_kl"] <= max(1e-7, 2 * facts["noise"])
    assert "context 64" in facts["protocol"]
    sizes = {name: len(content) for name, content in files_of(base).items()}
    assert facts["bytes"] == sum(sizes.values()) - sizes["manifest.json"]


def test_inspect_runs_no_model_and_needs_none(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(reference, tmp_path / "model"))
    klcli("record", model, corpus, "-o", tmp_path / "rec", *WINDOWS)
    shutil.rmtree(model)
    assert facts_of(klcli, tmp_path / "rec")["rows"] == TOKENS


def test_inspect_says_what_logit_files_hold(klcli: Run, fixtures: Path) -> None:
    path = fixtures / "logits" / "reference.npz"
    facts = facts_of(klcli, path)
    assert {"source": str(path), "windows": 56, "rows": 3584}.items() <= facts.items()
    assert facts["bytes"] == path.stat().st_size


def test_inspect_says_what_a_base_file_holds(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    done = klcli("record", reference, corpus, "-o", tmp_path / "base.kld", *WINDOWS)
    assert done.code == 0, done.err
    assert f"{tmp_path / 'base.kld'}: llama.cpp base file, 62 tokens (62 new)" in done.err
    facts = facts_of(klcli, tmp_path / "base.kld")
    assert facts["kind"] == "llama.cpp base file"
    assert (facts["context"], facts["chunks"], facts["rows"]) == (64, 2, 62)


def test_inspect_says_what_a_list_of_top_tokens_holds(klcli: Run, tmp_path: Path) -> None:
    lines = [{"token": "a"}]
    lines += [{"token": "b", "top_logprobs": [{"token": "b", "logprob": -0.5}]}] * 3  # type: ignore[dict-item]
    path = tmp_path / "answer.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    facts = facts_of(klcli, path)
    assert {"kind": "top log-probabilities", "k": 1, "rows": 3}.items() <= facts.items()


def test_inspect_says_what_a_report_holds(
    klcli: Run, base: Path, candidate: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run.json"
    klcli("compare", base, candidate, "--output", run, "--gate", "kl<=1e-9")
    facts = facts_of(klcli, run)
    expected = {"kind": "report", "command": "compare", "tokens": TOKENS, "verdict": "fail"}
    assert expected.items() <= facts.items()
    assert facts["signature"] == json.loads(run.read_text())["signature"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("nowhere", None, "there is nothing at"),
        ("foreign.json", '{"kl": 1}', "is not a klcli report"),
        ("cut.json", '{"format": "klcli.report"', "cannot read"),
        ("corpus.txt", "The dog sleeps.", "is not a recording, run, logit file or report"),
        ("corpus.jsonl", '{"text": "The dog sleeps."}\n', "line 1 is not a position"),
        ("empty.npz", "", "empty.npz"),
    ],
)
def test_inspect_of_what_klcli_does_not_know_is_one_clear_error(
    klcli: Run, tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert_refused(klcli("inspect", tmp_path / name), 1, says)


def test_inspect_of_a_model_says_what_runs_it(klcli: Run, reference: Path) -> None:
    assert_refused(klcli("inspect", reference), 1, str(reference), "klcli perplexity runs a model")


@pytest.mark.parametrize(
    "manifest", ["{", "[]", '{"format": "klcli.recording", "format_version": 1}']
)
def test_inspect_of_a_damaged_recording_is_one_clear_error(
    klcli: Run, base: Path, manifest: str
) -> None:
    (base / "manifest.json").write_text(manifest)
    assert_refused(klcli("inspect", base), 1, str(base))


# One model at a time


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.mark.parametrize(
    "options",
    [(), ("--protocol", "llama.cpp", "--context", "32"), ("--dtype", "bfloat16")],
    ids=str,
)
def test_one_model_at_a_time_gives_the_same_report(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, scratch: Path, options: tuple[str]
) -> None:
    arguments = ("compare", reference, candidate, corpus, *options, "--limit", "3")
    both = report_of(klcli, *arguments)
    one = report_of(klcli, *arguments, "--one-at-a-time")
    assert one["metrics"]["kl"]["mean"] > 0
    for report in (both, one):
        del report["environment"]["command_line"]
    for part in sorted(both):
        assert one[part] == both[part], part
    assert list(scratch.iterdir()) == []


def test_one_model_at_a_time_has_the_same_warnings(
    klcli: Run, reference: Path, candidate: Path, tmp_path: Path
) -> None:
    text = tmp_path / "special.txt"
    text.write_text("The dog sleeps.<|endoftext|>The cat sleeps.", encoding="utf-8")
    arguments = ("compare", reference, candidate, text)
    both = report_of(klcli, *arguments)["warnings"]
    assert "special_tokens_in_text" in [warning["code"] for warning in both]
    assert report_of(klcli, *arguments, "--one-at-a-time")["warnings"] == both


def test_one_model_at_a_time_takes_what_is_recorded_already(
    klcli: Run, base: Path, candidate: Path
) -> None:
    plain = report_of(klcli, "compare", base, candidate)
    assert (
        report_of(klcli, "compare", base, candidate, "--one-at-a-time")["metrics"]
        == plain["metrics"]
    )


def test_an_error_leaves_no_temporary_recording(
    klcli: Run, reference: Path, corpus: Path, scratch: Path
) -> None:
    done = klcli("compare", reference, "no-such-model", corpus, "--one-at-a-time", *WINDOWS)
    assert_refused(done, 1, "no-such-model")
    assert list(scratch.iterdir()) == []


def test_one_model_at_a_time_lets_go_of_the_first_before_it_loads_the_second(
    klcli: Run, reference: Path, candidate: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as Python sees: what the first model held can be used for the second."""
    alive: list[int] = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def count(*args: Any, **options: Any) -> Any:
        models = [o for o in gc.get_objects() if type(o) is transformers.GPT2LMHeadModel]
        alive.append(len(models))
        return load(*args, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", count)
    arguments = ("compare", reference, candidate, corpus, *WINDOWS, "--quiet")
    assert klcli(*arguments, "--one-at-a-time").code == 0
    before, after = alive
    assert after == before


# Memory


PEAK = r"""
import re, sys
from klcli.api import compare
from klcli.measure import columns

columns.IN_MEMORY = 2**20
compare(*sys.argv[1:])
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
"""
"""Compares, and says how many kilobytes were resident at most. What ``getrusage`` says of a process
counts those of the one that started it."""

BYTES_A_TOKEN = 64
"""What an added token may cost beside 5 % of the whole.

Measured with torch 2.13 on a CPU, from 36 to 358 thousand tokens: 14 to 27. A token keeps its id,
its place in the text and its words, 12 bytes. Statistics read a column of 8 bytes at a time and
sort copies of it, so that from 108 thousand to 1.1 million tokens it is 82. All columns of a token
have some 120.
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_recording(
    reference: Path,
    candidate: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither shards nor columns are held; both limits are low, to come to bear in short texts."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells a process' own peak")
    monkeypatch.setattr(writer, "SHARD_BYTES", 2**20)
    peaks, tokens = [], []
    for times in (10, 100):
        text, recording = tmp_path / f"{times}.txt", tmp_path / f"{times}.rec"
        text.write_text(times * corpus.read_text(encoding="utf-8"), encoding="utf-8")
        tokens.append(package.record(str(reference), text, str(recording)).rows)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(recording), str(candidate)],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(1024 * int(done.stdout))
    assert tokens == [35_849, 358_499]
    assert peaks[1] <= 1.05 * peaks[0] + BYTES_A_TOKEN * (tokens[1] - tokens[0])
