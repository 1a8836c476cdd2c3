"""The functions behind the commands take the same options, and refuse what the commands refuse."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_type_hints

import click
import pytest

import klcli
from klcli.cli import cli
from klcli.errors import CorpusError, UsageError
from klcli.keywords import CompareOptions, LayersOptions, RunOptions
from klcli.request import comparison

HOOKS = {"progress", "status", "announce"}
BY_OUTPUTS = {"keep_top", "command_line"}
"""What the command line sets itself: a page wants more, and shows the command."""
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
    assert parameters - SHOWN_ONLY == set(get_type_hints(options)) - HOOKS - BY_OUTPUTS


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
        {"gates": ["pearl<=9"]},
    ],
    ids=str,
)
def test_a_value_that_is_not_a_choice_is_a_usage_error(
    fixtures: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        klcli.perplexity(str(fixtures / "models/reference"), fixtures / "corpus.txt", **options)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (klcli.compare, CompareOptions),
        (klcli.perplexity, RunOptions),
        (klcli.record, RunOptions),
        (klcli.layers, LayersOptions),
    ],
)
def test_help_lists_every_keyword_argument(
    function: Callable[..., object], options: type, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = inspect.signature(function).parameters
    keywords = [name for name, one in parameters.items() if one.kind == one.KEYWORD_ONLY]
    assert set(get_type_hints(options)) <= set(keywords)
    assert not [one for one in parameters.values() if one.kind == one.VAR_KEYWORD]
    help(function)
    shown = capsys.readouterr().out
    assert not [name for name in keywords if not re.search(rf"\b{name}\b", shown)]


def test_keyword_arguments_have_the_defaults_of_the_command_line() -> None:
    parameters = inspect.signature(klcli.compare).parameters
    for one in cli.commands["compare"].params:
        if one.name in parameters and isinstance(one, click.Option) and one.show_default:
            assert parameters[one.name].default == one.get_default(NO_CONTEXT), one.name
    assert parameters["outliers"].default == 10
    assert parameters["dtype"].default == "auto"


NO_CONTEXT = click.Context(cli.commands["compare"], resilient_parsing=True)


def test_the_functions_are_listed() -> None:
    assert set(klcli.__all__) <= set(dir(klcli))


PATHS = [name for name, kind in get_type_hints(CompareOptions).items() if "PathLike" in str(kind)]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_taken_wherever_a_path_is(name: str) -> None:
    """As the string of the same letters is."""
    wanted = [
        comparison(
            place("a.npz"), place("b.npz"), place("c.txt"), cast("Any", {name: place("a/place")})
        )
        for place in (Path, str)
    ]
    assert wanted[0] == wanted[1]
    assert "a/place" in repr(wanted[0])
    assert "PosixPath" not in repr(wanted[0])


def test_paths_of_saved_runs_and_recordings_are_taken(fixtures: Path, tmp_path: Path) -> None:
    saved = fixtures / "saved" / "first.run"
    assert klcli.report(saved, baseline=saved).command == "compare"
    assert klcli.merge([saved], tmp_path / "whole.run").command == "compare"
    assert klcli.perplexity(fixtures / "saved" / "first.recording").command == "perplexity"


def test_columns_behave_as_a_mapping(fixtures: Path) -> None:
    logits = fixtures / "logits"
    report = klcli.compare(logits / "reference.npz", logits / "candidate.npz", limit=1)
    assert report.tokens is not None
    scores = report.tokens.scores
    assert "kl" in scores
    assert "nonsense" not in scores
    assert list(scores) == list(scores.keys()) == list(scores.columns)
    table = dict(scores)
    assert {len(column) for column in table.values()} == {len(scores)}
    assert all((scores.columns[name] == column).all() for name, column in table.items())
    with pytest.raises(KeyError, match="nonsense"):
        scores["nonsense"]


def test_an_unknown_option_is_a_type_error_that_says_what_may_be_meant(fixtures: Path) -> None:
    options: dict[str, Any] = {"contxt": 64}
    with pytest.raises(TypeError, match="unknown option 'contxt': did you mean 'context'"):
        klcli.perplexity(str(fixtures / "models/reference"), fixtures / "corpus.txt", **options)


def test_a_missing_corpus_is_found_before_a_model_is_loaded(fixtures: Path) -> None:
    with pytest.raises(CorpusError, match=r"no corpus at 'nowhere\.txt'"):
        klcli.perplexity(fixtures / "models/reference", "nowhere.txt")


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
