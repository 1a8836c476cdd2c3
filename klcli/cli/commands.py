"""The commands: each calls one public function and shows what comes back."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from klcli import __version__, torchrun
from klcli.choices import (
    ENDINGS,
    FIRST_OUTLIERS,
    LAYERS_ENDINGS,
    RANK_ENDINGS,
    Format,
    LayersFormat,
    RankFormat,
    SliceBy,
    TokenChoice,
)
from klcli.cli.data_options import answer_options
from klcli.cli.help import Group, section
from klcli.cli.options import (
    Named,
    compare_options,
    judging_options,
    layers_output_options,
    merging_options,
    output_options,
    rank_options,
    recording_options,
    run_options,
    text_options,
)
from klcli.cli.progress import progress_hooks
from klcli.cli.showing import (
    check_summary,
    onto_stdout,
    open_page,
    print_report,
    print_result,
    print_warnings,
    say,
    verdict_code,
)
from klcli.cli.source_options import engine_options, source_options
from klcli.errors import ExitCode

if TYPE_CHECKING:
    from klcli.errors import Notice
    from klcli.judge.report import Report

PLACES = (
    "run", "baseline", "tokenizer", "token_ids", "reference_token_ids", "candidate_token_ids",
    "adapter", "reference_adapter", "candidate_adapter", "calibration", "chat_template",
)  # fmt: skip
"""Options that name what a command reads, or the folder that it keeps."""


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="klcli", message="%(prog)s %(version)s")
def cli() -> None:
    """Tell whether two language models still predict the same thing.

    \b
    klcli compare model-a model-b corpus.txt
    klcli compare model-a model-b corpus.txt --gate 'kl.mean<=0.01'
    klcli perplexity model corpus.txt

    Exit codes: 0 done, and every gate passed; 1 error; 2 usage; 3 a gate failed; 4 a gate is
    inconclusive; 130 interrupted.
    """  # noqa: D301


@cli.command()
@click.argument("reference", type=click.Path())
@click.argument("candidate", type=click.Path())
@click.argument("corpus", nargs=-1, type=click.Path())
@text_options
@source_options(sided=True)
@engine_options(sided=True)
@compare_options
@run_options
@output_options
def compare(reference: str, candidate: str, corpus: tuple[str, ...], **options: Any) -> int:
    """Compare what two models predict: KL, perplexity, outliers, gates.

    \b
    klcli compare gpt2 distilgpt2 corpus.txt
    klcli compare model/ model-4bit/ corpus.txt --gate 'kl.mean<=0.01'
    klcli compare model/ model/ corpus.txt --candidate-dtype bfloat16
    klcli compare base.recording model-4bit/ --output report.html

    REFERENCE and CANDIDATE are each a Hub id, a model folder, a .gguf file, a recording, or a logit
    file (.npy .npz .pt .safetensors, llama.cpp's base files, .jsonl). CORPUS is any number of text
    files, records (.jsonl, .csv, .parquet: texts, prompts with completions, conversations,
    answers), .gz of these, folders, or - for stdin; recordings and logit files need none.
    Divergences are KL(REFERENCE‖CANDIDATE) in nats.
    """  # noqa: D301
    from klcli.api import compare as run

    inputs = (reference, candidate, *corpus)
    files = [Named(path) for path in corpus]
    options |= _typed()
    return _run(lambda **hooks: run(reference, candidate, files, **hooks), inputs, **options)


@cli.command()
@click.argument("model", type=click.Path())
@click.argument("corpus", nargs=-1, type=click.Path())
@text_options
@source_options(sided=False)
@engine_options(sided=False)
@run_options
@output_options
def perplexity(model: str, corpus: tuple[str, ...], **options: Any) -> int:
    """Score a text with one model: NLL, perplexity, bits per byte.

    \b
    klcli perplexity gpt2 corpus.txt
    klcli perplexity model.gguf wiki.txt code.txt --context 1024
    klcli perplexity model/ wiki.test.raw --protocol llama.cpp --gate 'perplexity<=24'

    MODEL is a Hub id, a model folder, a .gguf file, a recording, or a logit file. Several CORPUS
    files give a row each and a total over all their tokens.
    """  # noqa: D301
    from klcli.api import perplexity as run

    files = [Named(path) for path in corpus]
    options |= _typed()
    return _run(lambda **hooks: run(model, files, **hooks), (model, *corpus), **options)


@cli.command()
@click.argument("model", type=click.Path())
@click.argument("corpus", nargs=-1, required=True, type=click.Path())
@recording_options
@text_options
@source_options(sided=False)
@engine_options(sided=False)
@section(
    "Output",
    click.option("--quiet", is_flag=True, help="No progress and no summary on stderr."),
    common=("quiet",),
)
def record(model: str, corpus: tuple[str, ...], output: str, quiet: bool, **options: Any) -> int:
    """Save a model's predictions, to compare other models with them later.

    \b
    klcli record gpt2 corpus.txt -o gpt2.recording
    klcli record model/ wiki.txt -o base.kld --context 512
    klcli compare gpt2.recording distilgpt2

    Run again after a kill it goes on where it stopped; a complete recording is left untouched.
    """  # noqa: D301
    from klcli.api import record as run

    with progress_hooks(quiet) as hooks:
        done = run(model, [Named(path) for path in corpus], output, **(options | hooks))
    if not quiet:
        if done.reason is not None:
            say(f"Warning: {done.reason}")
        _say_notices(done.notices)
        new = done.rows - done.rows_before
        say(f"{output}: {done.kind}, {done.rows:,} tokens ({new:,} new), {done.bytes:,} bytes")
    return ExitCode.DONE


@cli.command()
@click.argument("model", type=click.Path())
@click.argument("prompts", nargs=-1, required=True, type=click.Path())
@answer_options
@source_options(sided=False, inside=True, task=False)
def answer(model: str, prompts: tuple[str, ...], output: str, quiet: bool, **options: Any) -> int:
    """Let a model answer prompts, to see where other models would say something else.

    \b
    klcli answer model/ prompts.jsonl -o answers.jsonl
    klcli compare model/ model-4bit/ answers.jsonl
    klcli answer model/ chat.jsonl -o answers.jsonl --max-new-tokens 128

    PROMPTS are conversations, of which the last answer is left out, prompts with or without a
    completion, or texts. The output has the token ids of each answer, and klcli compare follows
    exactly these. Run again after a kill it goes on where it stopped.
    """  # noqa: D301
    from klcli.api import answer as run

    with progress_hooks(quiet, "answers") as hooks:
        done = run(model, [Named(path) for path in prompts], output, **(options | hooks))
    if not quiet:
        _say_notices(done.notices)
        cut = f", {done.cut:,} cut at --max-new-tokens" if done.cut else ""
        say(f"{output}: {done.answers:,} answers ({done.new:,} new), {done.tokens:,} tokens{cut}")
    return ExitCode.DONE


@cli.command()
@click.argument("reference", type=click.Path())
@click.argument("candidate", type=click.Path())
@click.argument("corpus", nargs=-1, type=click.Path())
@text_options
@source_options(sided=True, inside=True)
@layers_output_options
def layers(
    reference: str,
    candidate: str,
    corpus: tuple[str, ...],
    format_: LayersFormat,
    outputs: tuple[str, ...],
    quiet: bool,
    **options: Any,
) -> int:
    """Find where in the network two models part: compare their states layer by layer.

    \b
    klcli layers model-f32/ model-4bit/ corpus.txt
    klcli layers model/ model/ corpus.txt --candidate-dtype bfloat16
    klcli layers model/ ported/ corpus.txt --output layers.json --output layers.md

    REFERENCE and CANDIDATE are each a Hub id, a model folder, or a .gguf file. Both read the same
    tokens: without --limit the first windows, of 2,048 tokens in all. Of masked models every 16th
    token is hidden at once unless --pll or --mask-every is given.
    """  # noqa: D301
    from klcli.api import layers as run
    from klcli.render import layers as room
    from klcli.render.files import check_outputs, write_outputs

    check_outputs(outputs, (reference, candidate, *corpus, *_places(**options)), LAYERS_ENDINGS)
    with progress_hooks(quiet) as hooks:
        files = [Named(path) for path in corpus]
        found = run(reference, candidate, files, **(options | hooks))
    write_outputs(found, outputs, endings=LAYERS_ENDINGS, writers=room.WRITERS)
    if not quiet:
        _say_notices(found.warnings)
    print_result(found, format_, room)
    return ExitCode.DONE


@cli.command()
@click.argument("reference", type=click.Path())
@click.argument("candidates", nargs=-1, required=True, metavar="CANDIDATE...", type=click.Path())
@text_options
@source_options(sided=True, inside=True)
@engine_options(sided=True)
@rank_options
def rank(
    reference: str,
    candidates: tuple[str, ...],
    corpus: tuple[str, ...],
    format_: RankFormat,
    outputs: tuple[str, ...],
    quiet: bool,
    **options: Any,
) -> int:
    """Rank many candidates against one reference, which is read once.

    \b
    klcli rank model/ model-8bit/ model-4bit/ model-Q4_K_M.gguf --corpus corpus.txt
    klcli rank base.recording quants/*.gguf --output rank.html --output rank.svg
    klcli rank base/ training/ --keep-order --corpus held-out.txt --corpus train.txt

    REFERENCE and each CANDIDATE are what klcli compare takes. A folder that holds checkpoint-*
    folders stands for these. A candidate that cannot be compared is a row that says why, and the
    exit code is then 1.
    """  # noqa: D301
    from klcli.api import rank as run
    from klcli.render import ranking as room
    from klcli.render.files import check_outputs, write_outputs

    read = (reference, *candidates, *corpus, *_places(**options))
    check_outputs(outputs, read, RANK_ENDINGS)
    with progress_hooks(quiet) as hooks:
        files = [Named(path) for path in corpus]
        found = run(reference, candidates, files, **(options | _typed() | hooks))
    write_outputs(found, outputs, endings=RANK_ENDINGS, writers=room.WRITERS)
    print_result(found, format_, room)
    return ExitCode.ERROR if found.failed else verdict_code(found.verdict)


@cli.command()
@click.argument("saved", metavar="RUN", type=click.Path())
@judging_options
def report(saved: str, **options: Any) -> int:
    """Show a saved run again, in any format and under other gates.

    \b
    klcli report base.run
    klcli report base.run --format markdown --gate 'kl.p99<=0.5'
    klcli report base.run --open
    klcli report run.json --output report.html

    RUN is a folder kept with --run, or a report (.json), which holds no single tokens.
    """  # noqa: D301
    from klcli.api import report as run

    def job(progress: object, status: object, announce: object, **settings: Any) -> "Report":
        return run(saved, **settings)

    return _run(job, (saved,), **options)


@cli.command()
@click.argument("saved", nargs=-1, required=True, metavar="RUN...", type=click.Path())
@merging_options
@output_options
def merge(saved: tuple[str, ...], whole: str, **options: Any) -> int:
    """Join the shards of one run; the report is that of one run.

    \b
    klcli compare a b corpus.txt --shard 1/2 --run part1.run
    klcli compare a b corpus.txt --shard 2/2 --run part2.run
    klcli merge part1.run part2.run -o whole.run --gate 'kl.mean<=0.01'
    """  # noqa: D301
    from klcli.api import merge as join
    from klcli.api import report as run

    def job(progress: object, status: object, announce: object, **settings: Any) -> "Report":
        join(saved, whole)
        return run(whole, **settings)

    return _run(job, (*saved, whole), **options)


@cli.command()
@click.argument("path", metavar="FILE", type=click.Path())
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How it is printed.",
)
def inspect(path: str, format_: str) -> int:
    """Show what a recording, run, logit file or report holds. No model runs.

    \b
    klcli inspect gpt2.recording
    klcli inspect base.run
    klcli inspect base.kld --format json
    """  # noqa: D301
    from klcli.inspection import inspect as look
    from klcli.render.data import render_facts

    facts = look(path)
    with onto_stdout():
        render_facts(facts, sys.stdout, as_json=format_ == "json")
    return ExitCode.DONE


@cli.command()
@click.argument("word", metavar="[METRIC]", required=False)
def explain(word: str | None) -> int:
    """Say what a metric means: formula, unit, which direction is better, and gates.

    \b
    klcli explain
    klcli explain kl
    klcli explain "noise floor"

    METRIC is written as in gates (kl, kl.p99, ppl_ratio). Without one all are listed.
    """  # noqa: D301
    from klcli.render import explain as page
    from klcli.render.terminal import StreamConsole

    with onto_stdout():
        if word is None:
            page.explain_all(StreamConsole())
        else:
            page.explain(word, StreamConsole())
    return ExitCode.DONE


def _say_notices(notices: Iterable["Notice"]) -> None:
    for notice in notices:
        say(f"{'Warning: ' if notice.is_warning else ''}{notice.message}")


def _places(**options: Any) -> list[str]:
    """The paths among the options of a command."""
    return [path for name, path in options.items() if name in PLACES and path is not None]


def _typed() -> dict[str, str | None]:
    """The command line as an option of what it calls."""
    return {"command_line": click.get_current_context().find_root().obj}


def _run(
    job: Callable[..., "Report"],
    inputs: Sequence[str],
    *,
    details: bool,
    tokens: TokenChoice,
    slices: tuple[SliceBy, ...],
    slice_regex: tuple[str, ...],
    format_: Format,
    outputs: tuple[str, ...],
    quiet: bool,
    browse: bool = False,
    outliers: int | None = None,
    **options: Any,
) -> int:
    """Do the job with progress shown, write and print its report, and return the exit code.

    Without ``outliers`` it reports as many as the job does by itself, and shows the first of them.
    """
    from klcli.render.files import check_outputs, write_outputs
    from klcli.render.formats import check_extra, format_of
    from klcli.render.view import View

    check_outputs(outputs, (*inputs, *_places(**options)))
    check_summary(format_)
    if browse:
        check_extra("--open", "html")
    if browse or any(format_of(path, ENDINGS) == "html" for path in outputs):
        options["keep_top"] = "all"
    if outliers is not None:
        options["outliers"] = outliers
    with progress_hooks(quiet or not torchrun.is_first_rank()) as hooks:
        report = job(slice_regex=slice_regex, **options, **hooks)
    if not torchrun.is_first_rank():
        return ExitCode.DONE
    shown = FIRST_OUTLIERS if outliers is None else outliers
    if slice_regex:
        slices = (*slices, "regex")
    view = View(details=details, tokens=tokens, outliers=shown, slices=slices)
    write_outputs(report, outputs, view)
    if browse:
        open_page(report, view)
    if not quiet and format_ not in ("table", "github"):  # which have them themselves
        print_warnings(report, view)
    print_report(report, format_, view)
    return verdict_code(report.verdict)
