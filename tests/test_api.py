"""The functions behind the commands take the same options, and refuse what the commands refuse."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import klcli
from klcli.cli import cli
from klcli.errors import CorpusError, UsageError
from klcli.keywords import CompareOptions, LayersOptions, RunOptions

HOOKS = {"progress", "status", "announce"}
SHOWN_ONLY = {
    "details",
    "tokens",
    "slices",
    "format_",
    "outputs",
    "quiet",
    "reference",
    "candidate",
    "model",
    "corpus",
}


@pytest.mark.parametrize(
    ("command", "options"),
    [("compare", CompareOptions), ("perplexity", RunOptions), ("layers", LayersOptions)],
)
def test_every_option_of_a_command_is_a_keyword_argument(command: str, options: type) -> None:
    parameters = {parameter.name for parameter in cli.commands[command].params}
    assert parameters - SHOWN_ONLY == set(get_type_hints(options)) - HOOKS


def test_compare_returns_the_report_with_its_tokens(fixtures: Path) -> None:
    report = klcli.compare(
        str(fixtures / "models/reference"),
        str(fixtures / "models/candidate"),
        fixtures / "corpus.txt",
        context=64,
        gates="kl<=0.01",
    )
    assert report.verdict == "pass"
    assert report.tokens is not None
    assert report.metrics["kl"]["mean"] == pytest.approx(report.tokens.scores["kl"].mean())


@pytest.mark.parametrize(
    "options",
    [
        {"bos": "foo"},
        {"documents": "lines"},
        {"special_tokens": "foo"},
        {"values": "foo"},
        {"dtype": "foo"},
        {"protocol": "foo"},
        {"device": "warp-drive"},
        {"context": 0},
        {"limit": -1},
        {"gates": "perplexity"},
        {"gates": ["ppl<=9"]},
    ],
    ids=str,
)
def test_a_value_that_is_not_a_choice_is_a_usage_error(
    fixtures: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        klcli.perplexity(str(fixtures / "models/reference"), fixtures / "corpus.txt", **options)


def test_an_unknown_option_is_a_type_error(fixtures: Path) -> None:
    options: dict[str, Any] = {"contxt": 64}
    with pytest.raises(TypeError, match="contxt"):
        klcli.perplexity(str(fixtures / "models/reference"), fixtures / "corpus.txt", **options)


def test_a_missing_corpus_is_found_before_a_model_is_loaded() -> None:
    with pytest.raises(CorpusError, match=r"no corpus at 'nowhere\.txt'"):
        klcli.perplexity("no-such-model", "nowhere.txt")


def test_stdin_can_be_named_once(fixtures: Path) -> None:
    with pytest.raises(UsageError, match="stdin"):
        klcli.perplexity(str(fixtures / "models/reference"), ["-", "-"])


@pytest.mark.parametrize("paired", [True, False])
def test_what_is_worked_on_at_once_changes_no_digit_that_counts(
    fixtures: Path, paired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, candidate = (
        str(fixtures / "models" / name) for name in ("reference", "undertrained")
    )
    corpora = [fixtures / "corpus.txt", fixtures / "other.txt"]

    def report(block: int) -> dict[str, Any]:
        monkeypatch.setattr("klcli.measure.scores.BLOCK", block)
        if paired:
            found = klcli.compare(reference, candidate, corpora, limit=4)
        else:
            found = klcli.perplexity(reference, corpora, limit=4)
        return dict(_leaves(replace(found, seconds=None).to_dict()))

    whole = report(10**6)
    figures = {path: one for path, one in whole.items() if isinstance(one, float)}
    for block in (50, 128, 700):
        found = report(block)
        assert {path: found[path] for path in figures} == pytest.approx(figures, rel=1e-12)
        assert {**found, **figures} == whole


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text of a report, with where it stands."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(one, f"{path}/{key}")
    else:
        yield path, value
