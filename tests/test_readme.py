"""The documentation cannot lie: help, output, commands, links and JSON are the program's."""

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner

import klcli as package
from klcli import compare, layers, perplexity, record
from klcli.choices import ENDINGS, FileFormat, Format
from klcli.cli import cli
from klcli.judge.report import Cause, Finding
from klcli.text.protocols import PRESETS

ROOT = Path(__file__).resolve().parent.parent
README, CONTRIBUTING, DOCS = ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs"
PAGES = [README, CONTRIBUTING, *sorted(DOCS.glob("*.md"))]
ACCEPT = "KLCLI_ACCEPT" in os.environ
LONGEST_README = 150

Run = Callable[..., Any]
Json = Mapping[str, Any]


def name_of(page: Path) -> str:
    """A page as the tests are named after it."""
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# What is generated


def help_of(*command: str) -> str:
    """All the help of a command as a terminal of 80 columns shows it."""
    runner = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    asked = "--help-all" if command else "--help"
    result = runner.invoke(cli, [*command, asked], prog_name="klcli", terminal_width=80)
    assert result.exit_code == 0
    title = " ".join(["klcli", *command])
    return f"## {title}\n\n```text\n{result.output.rstrip()}\n```\n"


def section(text: str, start: str, end: str) -> tuple[int, int]:
    """Where what lies between two marks begins and ends."""
    begin = text.index(start) + len(start)
    return begin, text.index(end, begin)


def assert_equal(shown: str, printed: str) -> None:
    """Hold what a page shows against what the program prints."""
    assert shown == printed, "run `make accept` and look at the difference"


def assert_equal_but_for_last_digits(shown: str, printed: str) -> None:
    """The same, where a model ran: on another processor a float32 model rounds in another way."""
    for ours, theirs in zip(shown.split(), printed.split(), strict=True):
        if ours != theirs:
            a, b = (float(word.strip("()%,*")) for word in (ours, theirs))
            assert a == pytest.approx(b, rel=2e-3), f"{ours} is {theirs}: run `make accept`"


def check(
    page: Path,
    start: str,
    end: str,
    expected: str,
    compare: Callable[[str, str], None] = assert_equal,
) -> None:
    """Compare a part of a page with what the program prints, or take that over."""
    text = read(page)
    begin, stop = section(text, start, end)
    if ACCEPT:
        page.write_text(text[:begin] + expected + text[stop:], encoding="utf-8")
    else:
        compare(text[begin:stop], expected)


def test_the_help_is_that_of_the_program() -> None:
    commands = [(), *((name,) for name in cli.commands)]
    parts = [help_of(*command) for command in commands]
    check(DOCS / "help.md", "<!-- help -->\n", "<!-- end of help -->", "\n".join(parts))


def test_the_output_is_that_of_the_command(klcli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = read(README)
    begin, stop = section(text, "<!-- main command -->\n```sh\n", "\n```")
    program, *arguments = shlex.split(text[begin:stop])
    assert program == ".venv/bin/klcli"
    done = klcli(*arguments)
    assert done.code == 0
    shown = f"```text\n{done.out}```\n"
    marks = ("<!-- main output -->\n", "<!-- end of main output -->")
    check(README, *marks, shown, assert_equal_but_for_last_digits)


@pytest.mark.usefixtures("examples")
def test_the_layers_are_those_of_the_command(klcli: Run) -> None:
    page = DOCS / "layers.md"
    done = klcli(*shlex.split(commands(page)[0])[1:])
    shown = f"```text\n{done.out[done.out.index('layer  ') :].rstrip()}\n```\n"
    marks = ("<!-- layers output -->\n", "<!-- end of layers output -->")
    check(page, *marks, shown, assert_equal_but_for_last_digits)


# What the pages say


def test_the_readme_is_short() -> None:
    assert len(read(README).splitlines()) <= LONGEST_README


FENCE = re.compile(r"^(<!-- [a-z ]+ -->)?\n?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page: Path, language: str) -> list[str]:
    """The code of a page in a language, but for what stands behind a mark such as `not run`."""
    return [code for mark, said, code in FENCE.findall(read(page)) if said == language and not mark]


def commands(page: Path) -> list[str]:
    """The command lines of a page that can be run where the names of the examples are known.

    Comments are left out, and so is the installation.
    """
    lines = [line for code in fences(page, "sh") for line in code.splitlines()]
    return [line for line in lines if line and not line.startswith("#") and "venv" not in line]


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in a folder where the names of the examples are those of the fixtures."""
    for name, file, *_ in table(DOCS / "README.md", "Names in the examples"):
        (tmp_path / name.strip("`")).symlink_to(ROOT / file.strip("`"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name_of)
def test_the_commands_of_a_page_run(page: Path, klcli: Run) -> None:
    for line in commands(page):
        program, *arguments = shlex.split(line, comments=True)
        assert program == "klcli"
        expected = re.search(r"# exits with (\d)$", line)
        done = klcli(*arguments)
        assert done.code == (int(expected[1]) if expected else 0), f"{line}\n{done.err}"


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("page", [p for p in PAGES if fences(p, "python")], ids=name_of)
def test_the_python_of_a_page_runs(page: Path) -> None:
    for code in fences(page, "python"):
        exec(compile(code, str(page), "exec"), {})


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_both_lists() -> None:
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    for page, folder in ((README, "docs/"), (DOCS / "README.md", "")):
        assert {name for name in pages if f"({folder}{name})" in read(page)} == pages


# JSON, field by field


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    text = re.split(rf"^#+ {re.escape(heading)}\n", read(page), maxsplit=1, flags=re.MULTILINE)[1]
    lines = [line for line in re.split(r"^#", text, flags=re.MULTILINE)[0].splitlines() if line]
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def documented(heading: str, *words: str) -> set[str]:
    """The keys below a heading of docs/json.md: all, or those with one of the words behind them."""
    rows = table(DOCS / "json.md", heading)
    chosen = [first for first, second, *_ in rows if not words or second in words]
    return {key for first in chosen for key in names(first)}


def keys(parts: Sequence[Json]) -> set[str]:
    assert parts
    return {key for part in parts for key in part}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Json]:
    """Reports that have every part: of models, recordings and files, causal and masked."""
    folder, fixtures = tmp_path_factory.mktemp("reports"), ROOT / "fixtures"
    models, logits = fixtures / "models", fixtures / "logits"
    model, other = str(models / "reference"), str(models / "candidate")
    corpora = [fixtures / "corpus.txt", fixtures / "other.txt"]
    record(model, corpora[0], str(folder / "recording"), limit=2)
    record(model, corpora[0], str(folder / "base.kld"), context=64, limit=2)
    (folder / "top.jsonl").write_text(
        '{"token": "The"}\n'
        '{"token": " cat", "top_logprobs": [{"token": " cat", "logprob": -1}]}\n'
        '{"token": " sleeps", "top_logprobs": [{"token": " that", "logprob": -1}]}\n'
    )
    made = [
        compare(model, other, corpora, limit=4, outliers=1, gates="kl<=1", noise_floor="batch"),
        compare(model, other, corpora, limit=4, gates="kl<=1", until="decided"),
        compare(str(models / "masked-reference"), str(models / "masked-candidate"), corpora[0],
                limit=2, mask_every=8),
        compare(str(folder / "recording"), other),
        compare(str(folder / "base.kld"), other),
        compare(str(logits / "truth.npz"), str(logits / "lstm.npz"), limit=2),
        compare(model, str(folder / "top.jsonl"), tokenizer=model),
        perplexity(model, corpora, limit=4, gates="nll<=9", until="decided"),
    ]  # fmt: skip
    return [json.loads(json.dumps(report.to_dict(), allow_nan=False)) for report in made]


@pytest.fixture(scope="module")
def compared(reports: Sequence[Json]) -> Sequence[Json]:
    return [report for report in reports if report["command"] == "compare"]


@pytest.fixture(scope="module")
def scored(reports: Sequence[Json]) -> Sequence[Json]:
    return [report for report in reports if report["command"] == "perplexity"]


def test_every_protocol_has_its_row() -> None:
    assert [cell.strip("`") for cell, *_ in table(DOCS / "protocols.md", "The protocols")] == [
        *PRESETS
    ]


def test_every_format_has_its_row() -> None:
    rows = table(DOCS / "README.md", "Get more out of a run")
    formats = {*get_args(Format), *get_args(FileFormat)}
    assert {format_.strip("`") for _, format_, *_ in rows} == formats
    assert {a.strip("`"): b.strip("`") for a, b, *_ in rows if a} == dict(ENDINGS)


class TestJson:
    def test_the_report(self, compared: Sequence[Json], scored: Sequence[Json]) -> None:
        assert documented("The report", "both", "compare") == keys(compared)
        assert documented("The report", "both", "perplexity") == keys(scored)

    def test_models(self, compared: Sequence[Json], scored: Sequence[Json]) -> None:
        sides = [report[side] for report in compared for side in ("reference", "candidate")]
        asked_for = {"compiled", "adapter", "base", "engine", "binding", "kernels", "kv_cache_type",
                     "flash_attention", "gpu_layers", "threads"}  # fmt: skip
        assert documented("Models") - asked_for == keys([*sides, *(r["model"] for r in scored)])

    @pytest.mark.parametrize("part", ["protocol", "environment", "counts", "clusters"])
    def test_a_part_that_every_report_has(self, reports: Sequence[Json], part: str) -> None:
        assert documented(part.capitalize()) == keys([report[part] for report in reports])

    @pytest.mark.parametrize("part", ["corpora", "outliers", "gates", "warnings"])
    def test_a_list(self, reports: Sequence[Json], part: str) -> None:
        assert documented(part.capitalize()) == keys([o for r in reports for o in r[part]])

    def test_slices(self, compared: Sequence[Json], scored: Sequence[Json]) -> None:
        for command, made in (("compare", compared), ("perplexity", scored)):
            found = keys([one for report in made for one in report["slices"]])
            assert documented("Slices", "both", command) == found

    def test_the_distribution(self, reports: Sequence[Json]) -> None:
        assert documented("Distribution") == keys([report["distribution"] for report in reports])

    def test_along_the_text(self, reports: Sequence[Json]) -> None:
        assert documented("Along the text") == keys([report["along"] for report in reports])

    def test_findings(self) -> None:
        assert documented("Findings") == {field.name for field in fields(Finding)}
        assert documented("Causes") == set(get_args(Cause))

    def test_until_and_its_bands(self, reports: Sequence[Json]) -> None:
        found = [report["until"] for report in reports if report["until"]]
        assert documented("Until") == keys(found)
        assert documented("Bands") == keys([b for one in found for b in one["bands"].values()])

    def test_the_noise_floor(self, reports: Sequence[Json]) -> None:
        found = [report["noise_floor"] for report in reports if report["noise_floor"]]
        assert documented("Noise floor") == keys(found)

    def test_metrics(self, compared: Sequence[Json], scored: Sequence[Json]) -> None:
        shapes = ("mean", "value", "share", "flips")
        fields: dict[str, set[str]] = {shape: set() for shape in shapes}
        for key, *marks, _ in table(DOCS / "json.md", "Fields of a metric"):
            for shape in (s for s, mark in zip(shapes, marks, strict=True) if mark):
                fields[shape] |= names(key)
        for command, made in (("compare", compared), ("perplexity", scored)):
            rows = table(DOCS / "json.md", f"Metrics of {command}")
            expected = {name: fields[row[-1]] for row in rows for name in names(row[0])}
            for report in made:
                assert {n: set(metric) for n, metric in report["metrics"].items()} == expected

    def test_codes_of_warnings(self, reports: Sequence[Json]) -> None:
        sources = [read(path) for path in Path(package.__file__).parent.rglob("*.py")]
        codes = {
            code for text in sources for code in re.findall(r'(?:code=|yield \(\s*)"(\w+)"', text)
        }
        assert documented("Codes") == codes
        assert {warning["code"] for r in reports for warning in r["warnings"]} <= codes

    def test_layers(self) -> None:
        models, corpus = ROOT / "fixtures" / "models", ROOT / "fixtures" / "corpus.txt"
        found = layers(models / "reference", models / "candidate", corpus, limit=1).to_dict()
        assert documented("Layers") == set(found)
        assert documented("One layer") == keys(found["layers"])
        assert documented("Largest") == keys([layer["largest"] for layer in found["layers"]])
        assert documented("Rise") == set(found["rise"])
        assert documented("Counts of layers") == set(found["counts"])

    @pytest.mark.usefixtures("examples")
    @pytest.mark.parametrize("command", ["compare", "perplexity"])
    def test_the_columns_of_the_table_of_tokens(self, klcli: Run, command: str) -> None:
        models = ["model", "model-4bit"] if command == "compare" else ["model"]
        done = klcli(command, *models, "corpus.txt", "--limit", "1", "--format", "csv")
        head = done.out.splitlines()[0].split(",")
        assert documented("One line for each token", "both", command) == set(head)


# The help itself


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_says_what_it_does(name: str) -> None:
    for parameter in cli.commands[name].params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_a_verb_phrase_and_examples(name: str) -> None:
    text = cli.commands[name].help or ""
    first = text.splitlines()[0]
    assert re.match(r"[A-Z][a-z]+ ", first)
    assert f"klcli {name} " in text
