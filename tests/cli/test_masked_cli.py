"""Masked language models on the command line."""

import csv
import io
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.running import Outcome, Run

PIECE = 62
"""What a model of the fixtures reads at once in the figures, without [CLS] and [SEP]."""
TOKENS = 29


@pytest.fixture
def reference(fixtures: Path) -> Path:
    """A tiny trained masked model."""
    return fixtures / "models" / "masked-reference"


@pytest.fixture
def candidate(fixtures: Path) -> Path:
    """The same model, rounded to 4 bits."""
    return fixtures / "models" / "masked-candidate"


@pytest.fixture
def causal(fixtures: Path) -> Path:
    """A model that predicts the next token."""
    return fixtures / "models" / "reference"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """The beginning of the corpus in three lines, 29 tokens of it with the newlines."""
    path = tmp_path / "text.txt"
    path.write_text(
        "Look, many hungry cats that the cat follows run together!\n"
        "Does the mouse run with a house?\n"
        "Two red tired children sleep.\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def lines(text: Path) -> tuple[Path | str, ...]:
    """The text with each line a document, which is short and fast."""
    return text, "--documents", "line"


@pytest.fixture(scope="module")
def figures(fixtures: Path) -> dict[str, Any]:
    """What fixtures/make_masked.py computed with code of its own."""
    return dict(json.loads((fixtures / "figures-masked.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def figure_pieces(
    fixtures: Path, tmp_path_factory: pytest.TempPathFactory, figures: dict[str, Any]
) -> Path:
    """The corpus cut where the figures cut it, each piece a document."""
    folder = fixtures / "models" / "masked-reference"
    text = (fixtures / "corpus.txt").read_bytes().decode()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    assert len(offsets) == figures["tokens"]
    cuts = [start for start, _ in offsets[::PIECE]] + [len(text)]
    pieces = [text[first:last] for first, last in pairwise(cuts)]
    assert len(pieces) == figures["pieces"]
    assert "".join(pieces) == text
    path = tmp_path_factory.mktemp("pieces") / "pieces.jsonl"
    path.write_text("".join(json.dumps({"text": p}) + "\n" for p in pieces), encoding="utf-8")
    return path


def report_of(klcli: Run, *arguments: str | Path) -> dict[str, Any]:
    done = klcli(*arguments, "--format", "json", "--quiet")
    assert done.code == 0, done.err
    assert done.err == ""
    return dict(json.loads(done.out))


def error_of(done: Outcome, code: int) -> str:
    """The message of a command that failed in one clean line."""
    assert (done.code, done.out) == (code, "")
    assert "Traceback" not in done.err
    assert [line for line in done.err.splitlines() if line.startswith("Error: ")]
    return done.err


# Numbers


@pytest.mark.parametrize("spacing", [pytest.param(None, marks=pytest.mark.slow), 16, 8, 4])
def test_numbers_are_those_of_independent_code(
    klcli: Run,
    reference: Path,
    candidate: Path,
    figure_pieces: Path,
    figures: dict[str, Any],
    spacing: int | None,
) -> None:
    options = () if spacing is None else ("--mask-every", str(spacing))
    known = figures["one" if spacing is None else f"every_{spacing}"]
    report = report_of(klcli, "compare", reference, candidate, figure_pieces, *options)
    assert report["counts"]["tokens"] == figures["tokens"]
    assert report["counts"]["windows"] == report["counts"]["documents"] == figures["pieces"]
    metrics = report["metrics"]
    assert metrics["kl"]["mean"] == pytest.approx(
        known["masked-candidate"]["kl_from_reference"], abs=1e-6
    )
    for side in ("reference", "candidate"):
        expected = known[f"masked-{side}"]
        assert metrics[f"nll_{side}"]["mean"] == pytest.approx(expected["nll"], abs=1e-6)
        perplexity = metrics[f"perplexity_{side}"]["value"]
        assert perplexity == pytest.approx(expected["perplexity"], abs=5e-6)


def test_pseudo_perplexity_is_that_of_independent_code(
    klcli: Run, candidate: Path, figure_pieces: Path, figures: dict[str, Any]
) -> None:
    report = report_of(klcli, "perplexity", candidate, figure_pieces, "--mask-every", "4")
    known = figures["every_4"]["masked-candidate"]
    metrics = report["metrics"]
    assert metrics["nll"]["mean"] == pytest.approx(known["nll"], abs=1e-6)
    assert metrics["perplexity"]["value"] == pytest.approx(known["perplexity"], abs=5e-6)


def test_a_model_against_itself_is_equal_at_every_token(
    klcli: Run, reference: Path, text: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.csv"
    report = report_of(klcli, "compare", reference, reference, text, "--output", tokens)
    rows = list(csv.DictReader(io.StringIO(tokens.read_text(encoding="utf-8"))))
    assert len(rows) == report["counts"]["tokens"] == TOKENS
    assert {row["kl"] for row in rows} == {"0.0"}
    assert report["metrics"]["top1_agreement"]["value"] == 1


def test_every_token_of_a_text_longer_than_a_window_is_scored(
    klcli: Run, reference: Path, corpus: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start.txt"
    start.write_bytes(corpus.read_bytes()[:400])
    report = report_of(klcli, "perplexity", reference, start)
    counts = report["counts"]
    assert (counts["tokens"], counts["windows"], counts["bytes"]) == (86, 6, 400)
    limited = report_of(klcli, "perplexity", reference, start, "--limit", "2")
    assert (limited["counts"]["tokens"], limited["counts"]["windows"]) == (32, 2)


def test_both_ways_of_holding_models_in_memory_give_the_same(
    klcli: Run, reference: Path, candidate: Path, lines: tuple[Path | str, ...]
) -> None:
    both = report_of(klcli, "compare", reference, candidate, *lines)
    one = report_of(klcli, "compare", reference, candidate, *lines, "--one-at-a-time")
    assert both["metrics"] == one["metrics"]
    assert both["protocol"] == one["protocol"]


def test_a_word_of_the_fixtures_is_one_token(
    klcli: Run, reference: Path, lines: tuple[Path | str, ...]
) -> None:
    original = report_of(klcli, "perplexity", reference, *lines)
    word = report_of(klcli, "perplexity", reference, *lines, "--pll", "word")
    assert (original["protocol"]["pll"], word["protocol"]["pll"]) == ("original", "word")
    assert original["metrics"] == word["metrics"]
    assert original["signature"] != word["signature"]


# What is shown


def test_compare_makes_a_table_that_calls_pseudo_what_is_pseudo(
    klcli: Run, reference: Path, candidate: Path, lines: tuple[Path | str, ...]
) -> None:
    done = klcli("compare", reference, candidate, *lines, "--details")
    assert done.code == 0, done.err
    found = done.out.splitlines()
    assert "KL(reference ‖ candidate), in nats, at every masked token" in found
    assert "windows    masked, context 66, stride 16, PLL original" in found
    for label in (
        "pseudo-NLL reference",
        "pseudo-NLL candidate",
        "pseudo-perplexity reference",
        "pseudo-perplexity candidate",
    ):
        assert any(line.startswith(label) for line in found), label
    assert max(map(len, found)) <= 80
    assert "\x1b" not in done.out


def test_perplexity_makes_a_table_that_calls_pseudo_what_is_pseudo(
    klcli: Run, reference: Path, lines: tuple[Path | str, ...]
) -> None:
    done = klcli("perplexity", reference, *lines, "--details")
    assert done.code == 0, done.err
    found = done.out.splitlines()
    assert "Pseudo-perplexity" in found
    assert any(line.startswith("pseudo-NLL ") for line in found)
    [head] = [line for line in found if line.startswith("corpus ") and "95 % low" in line]
    assert head.split()[2:4] == ["pseudo-NLL", "pseudo-perplexity"]
    assert max(map(len, found)) <= 80


def test_a_causal_model_has_no_pseudo_numbers(klcli: Run, causal: Path, text: Path) -> None:
    for command in (("compare", causal, causal, text), ("perplexity", causal, text)):
        done = klcli(*command)
        assert "pseudo" not in done.out.lower()
        assert "masked" not in done.out
        assert "forward rows" not in done.err


def test_markdown_calls_pseudo_what_is_pseudo(
    klcli: Run, reference: Path, candidate: Path, lines: tuple[Path | str, ...]
) -> None:
    compared = klcli("compare", reference, candidate, *lines, "--format", "markdown").out
    assert compared.startswith("# KL(reference ‖ candidate), in nats, at every masked token")
    assert "| pseudo-NLL reference |" in compared
    scored = klcli("perplexity", reference, *lines, "--format", "markdown").out
    assert scored.startswith("# Pseudo-perplexity")
    assert "| corpus | tokens | pseudo-NLL | pseudo-perplexity |" in scored


@pytest.mark.parametrize("command", ["compare", "perplexity"])
def test_keys_of_the_json_are_those_of_a_causal_model(
    klcli: Run, reference: Path, causal: Path, text: Path, command: str
) -> None:
    def keys(model: Path) -> dict[str, Any]:
        models = (model, model) if command == "compare" else (model,)
        report = report_of(klcli, command, *models, text)
        parts = ("metrics", "counts", "environment")
        return {"report": set(report)} | {part: set(report[part]) for part in parts}

    assert keys(reference) == keys(causal)


def test_the_json_says_how_tokens_were_hidden(
    klcli: Run, reference: Path, candidate: Path, lines: tuple[Path | str, ...]
) -> None:
    report = report_of(klcli, "compare", reference, candidate, *lines, "--mask-every", "5")
    assert report["protocol"] == {
        "name": "masked",
        "context": 66,
        "stride": 16,
        "pll": "original",
        "mask_every": 5,
        "special_tokens": "text",
        "score_from": None,
        "bos": None,
        "documents": "line",
        "limit": None,
    }
    assert {report[side]["kind"] for side in ("reference", "candidate")} == {"masked"}
    assert (report["format"], report["format_version"]) == ("klcli.report", 1)
    assert "|pll:original|mask_every:5|" in report["signature"]


def test_tables_of_tokens_have_a_line_a_token(
    klcli: Run, reference: Path, candidate: Path, lines: tuple[Path | str, ...]
) -> None:
    report = report_of(klcli, "compare", reference, candidate, *lines)
    done = klcli("compare", reference, candidate, *lines, "--format", "jsonl")
    rows = [json.loads(line) for line in done.out.splitlines()]
    table = klcli("compare", reference, candidate, *lines, "--format", "csv").out
    others = list(csv.DictReader(io.StringIO(table)))
    assert len(rows) == len(others) == report["counts"]["tokens"]
    for name, value in (("kl", "kl"), ("nll_candidate", "nll_candidate")):
        mean = math.fsum(row[name] for row in rows) / len(rows)
        assert mean == pytest.approx(report["metrics"][value]["mean"], rel=1e-12)
        assert [float(row[name]) for row in others] == [row[name] for row in rows]
    assert "".join(row["token"] for row in rows[:5]) == "Look, many hungry cats"
    assert [row["position"] for row in rows[:3]] == [0, 1, 2]


def test_several_outputs_are_written_in_one_run(
    klcli: Run,
    reference: Path,
    candidate: Path,
    lines: tuple[Path | str, ...],
    tmp_path: Path,
) -> None:
    names = ["run.json", "tokens.csv", "tokens.jsonl", "run.md"]
    outputs = [part for name in names for part in ("--output", tmp_path / name)]
    assert klcli("compare", reference, candidate, *lines, *outputs).code == 0
    assert all((tmp_path / name).stat().st_size for name in names)


def test_a_user_is_told_how_long_it_will_take_and_of_the_approximation(
    klcli: Run, reference: Path, lines: tuple[Path | str, ...]
) -> None:
    exact = klcli("perplexity", reference, *lines).err
    assert f"{TOKENS - 3} tokens, hidden in {TOKENS - 3} forward rows of up to " in exact
    assert "approximation" not in exact
    every = klcli("perplexity", reference, *lines, "--mask-every", "4")
    assert f"{TOKENS - 3} tokens, hidden in 12 forward rows of up to " in every.err
    said = "! an approximation: every 4th token was hidden at once"
    assert said in " ".join(every.out.split())
    assert klcli("perplexity", reference, *lines, "--mask-every", "4", "--quiet").err == ""
    report = report_of(klcli, "perplexity", reference, *lines, "--mask-every", "4")
    assert "mask_every" in {warning["code"] for warning in report["warnings"]}


# Gates


@pytest.mark.parametrize(
    ("gate", "code", "verdict"),
    [
        ("kl.mean<=0.5", 0, "pass"),
        ("kl.mean<=1e-6", 3, "fail"),
        ("top1_agreement>=0.1", 0, "pass"),
        ("perplexity_ratio<=0.5", 3, "fail"),
    ],
)
def test_gates_of_a_comparison(
    klcli: Run,
    reference: Path,
    candidate: Path,
    lines: tuple[Path | str, ...],
    gate: str,
    code: int,
    verdict: str,
) -> None:
    done = klcli(
        "compare", reference, candidate, *lines, "--gate", gate, "--format", "json", "--quiet"
    )
    assert (done.code, json.loads(done.out)["verdict"]) == (code, verdict)


@pytest.mark.parametrize(("gate", "code"), [("perplexity<=100", 0), ("perplexity<=1.5", 3)])
def test_gates_of_a_pseudo_perplexity(
    klcli: Run, reference: Path, lines: tuple[Path | str, ...], gate: str, code: int
) -> None:
    assert klcli("perplexity", reference, *lines, "--gate", gate).code == code


# What does not go together


@pytest.mark.parametrize("order", [1, -1])
def test_a_masked_and_a_causal_model_are_not_compared(
    klcli: Run, reference: Path, causal: Path, text: Path, order: int
) -> None:
    message = error_of(klcli("compare", *(reference, causal)[::order], text), 1)
    assert f"{reference} is masked" in message
    assert f"{causal} is causal" in message


@pytest.mark.parametrize("name", ["reference.npz", "truth.npz"])
def test_a_masked_model_is_not_compared_with_a_logit_file_of_a_causal_one(
    klcli: Run, reference: Path, fixtures: Path, name: str
) -> None:
    message = error_of(klcli("compare", fixtures / "logits" / name, reference), 1)
    assert f"{name} is causal and {reference} is masked" in message


@pytest.mark.parametrize(
    "options",
    [
        ("--bos", "document"),
        ("--bos", "none"),
        ("--protocol", "rolling"),
        ("--protocol", "llama.cpp"),
        ("--score-from", "0"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "perplexity"])
def test_options_of_causal_models_are_a_usage_error(
    klcli: Run, reference: Path, text: Path, command: str, options: tuple[str, str]
) -> None:
    models = (reference, reference) if command == "compare" else (reference,)
    message = error_of(klcli(command, *models, text, *options), 2)
    assert f"{reference} is a masked model: leave out {options[0]}" in message


@pytest.mark.parametrize(
    "options", [("--pll", "word"), ("--pll", "original"), ("--mask-every", "2")]
)
def test_options_of_masked_models_are_a_usage_error_with_a_causal_one(
    klcli: Run, causal: Path, text: Path, options: tuple[str, str]
) -> None:
    for command in (("compare", causal, causal, text), ("perplexity", causal, text)):
        message = error_of(klcli(*command, *options), 2)
        assert f"{causal} is a causal model: leave out {options[0]}" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pll", "word", "--mask-every", "2"), "--mask-every hides single tokens"),
        (("--context", "67"), "--context 67 is more than the 66 tokens the model can read"),
        (("--context", "2"), "--context 2 is too short"),
        (("--context", "10", "--stride", "9"), "--stride 9 is more than the 8 tokens of text"),
        (("--mask-every", "0"), "0 is not in the range x>=1"),
        (("--pll", "sentence"), "'sentence' is not one of 'original', 'word'"),
    ],
)
def test_values_that_make_no_sense_are_a_usage_error(
    klcli: Run, reference: Path, text: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in " ".join(error_of(klcli("perplexity", reference, text, *options), 2).split())


def test_a_model_can_be_called_causal_and_then_is_found_to_be_none(
    klcli: Run, reference: Path, text: Path
) -> None:
    message = error_of(klcli("perplexity", reference, text, "--task", "causal"), 1)
    assert "is not a causal model: a token changes what it predicts before it" in message


def test_a_causal_model_cannot_be_called_masked(klcli: Run, causal: Path, text: Path) -> None:
    message = error_of(klcli("perplexity", causal, text, "--task", "masked"), 1)
    assert f"cannot load {causal}" in message


def test_a_model_can_be_called_what_it_is(
    klcli: Run, reference: Path, lines: tuple[Path | str, ...]
) -> None:
    named = report_of(klcli, "perplexity", reference, *lines, "--task", "masked")
    assert named["metrics"] == report_of(klcli, "perplexity", reference, *lines)["metrics"]


# Recordings


@pytest.fixture
def recorded(klcli: Run, tmp_path: Path) -> Callable[..., Path]:
    """Record a model."""

    def record(name: str, *arguments: str | Path) -> Path:
        done = klcli("record", *arguments, "-o", tmp_path / name)
        assert (done.code, done.out) == (0, ""), done.err
        assert "forward rows" in done.err
        return tmp_path / name

    return record


@pytest.mark.parametrize("options", [(), ("--mask-every", "3")], ids=["original", "every 3rd"])
@pytest.mark.parametrize("kind", ["hidden", "logits"])
def test_a_recording_stands_for_its_model(
    klcli: Run,
    reference: Path,
    candidate: Path,
    lines: tuple[Path | str, ...],
    recorded: Callable[..., Path],
    kind: str,
    options: tuple[str, ...],
) -> None:
    live = report_of(klcli, "compare", reference, candidate, *lines, *options)
    base = recorded("base", reference, *lines, *options, "--kind", kind)
    other = recorded("other", candidate, *lines, *options, "--kind", kind)
    for sides in ((base, candidate), (base, other), (reference, other)):
        found = report_of(klcli, "compare", *sides)
        assert found["metrics"] == live["metrics"]
        assert found["protocol"] == live["protocol"]
    alone = report_of(klcli, "perplexity", base)
    assert (
        alone["metrics"] == report_of(klcli, "perplexity", reference, *lines, *options)["metrics"]
    )
    assert "pseudo-perplexity" in klcli("perplexity", base).out


def test_a_recording_with_its_text_again(
    klcli: Run,
    reference: Path,
    candidate: Path,
    lines: tuple[Path | str, ...],
    recorded: Callable[..., Path],
) -> None:
    base = recorded("base", reference, *lines)
    report = report_of(klcli, "compare", base, candidate, *lines)
    assert report["metrics"] == report_of(klcli, "compare", base, candidate)["metrics"]


def test_inspect_shows_what_was_recorded(
    klcli: Run, reference: Path, lines: tuple[Path | str, ...], recorded: Callable[..., Path]
) -> None:
    base = recorded("base", reference, *lines, "--mask-every", "3")
    done = klcli("inspect", base)
    assert done.code == 0
    assert "BertForMaskedLM" in done.out
    assert "masked" in done.out
    assert "mask_every 3" in done.out
    facts = json.loads(klcli("inspect", base, "--format", "json").out)
    assert facts["rows"] == TOKENS - 3


def test_a_recording_made_again_is_left_untouched(
    klcli: Run, reference: Path, lines: tuple[Path | str, ...], recorded: Callable[..., Path]
) -> None:
    base = recorded("base", reference, *lines)
    again = klcli("record", reference, *lines, "-o", base)
    assert again.code == 0
    assert f"hidden, {TOKENS - 3} tokens (0 new)" in again.err


@pytest.mark.parametrize("options", [("--pll", "word"), ("--mask-every", "3")])
def test_recordings_that_hid_other_tokens_are_not_compared_nor_gone_on_with(
    klcli: Run,
    reference: Path,
    candidate: Path,
    lines: tuple[Path | str, ...],
    recorded: Callable[..., Path],
    options: tuple[str, str],
) -> None:
    base = recorded("base", reference, *lines)
    message = error_of(klcli("compare", base, candidate, *options), 2)
    assert f"the windows come from {base}: leave out {options[0]}" in message
    if options[0] == "--pll":
        return  # a word of the fixtures is one token: both hide the same
    other = recorded("other", candidate, *lines, *options)
    message = error_of(klcli("compare", base, other), 1)
    assert "hide other tokens from their models in window 0" in message


def test_a_recording_made_with_other_options_is_refused(
    klcli: Run, reference: Path, lines: tuple[Path | str, ...], recorded: Callable[..., Path]
) -> None:
    base = recorded("base", reference, *lines)
    done = klcli("record", reference, *lines, "--mask-every", "3", "-o", base)
    assert done.code == 1
    assert "holds another recording" in done.err


@pytest.mark.parametrize("order", [1, -1])
def test_a_recording_is_not_compared_with_a_causal_model(
    klcli: Run,
    reference: Path,
    causal: Path,
    lines: tuple[Path | str, ...],
    recorded: Callable[..., Path],
    order: int,
) -> None:
    base = recorded("base", reference, *lines)
    message = error_of(klcli("compare", *(base, causal)[::order]), 1)
    assert f"{base} is masked" in message
    assert f"{causal} is causal" in message


def test_a_masked_model_cannot_be_recorded_for_llama_cpp(
    klcli: Run, reference: Path, text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "base.kld"
    message = error_of(klcli("record", reference, text, "-o", path), 2)
    assert "a .kld file holds what causal models predict" in message
    assert not path.exists()
