"""The command line: parse, call one function, show the result, exit. No arithmetic.

Nothing here imports torch or transformers before a command needs them.
"""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from klcli import __version__
from klcli.errors import ExitCode, KlcliError, OutputError

if TYPE_CHECKING:
    from klcli.judge.report import Report
    from klcli.render.terminal import TokenChoice

Command = TypeVar("Command", bound=Callable[..., Any])

DTYPES = click.Choice(["auto", "float32", "bfloat16", "float16"])
VALUES = click.Choice(["auto", "logits", "log_probs", "probs"])
FORMATS = click.Choice(["table", "json", "jsonl", "csv", "markdown"])
SIDED = ("dtype", "device", "revision", "values", "token_ids")
"""Options that can be given for both sides, or for one."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit: the only place where an error becomes a message and a code."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of loaders; klcli has its own
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console of another alphabet is no error
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        return int(cli.main(arguments, prog_name="klcli", standalone_mode=False) or 0)
    except KlcliError as error:
        if not (error.said or (error.said is None and not _speaks())):
            click.echo(f"Error{_which_rank()}: {_safe(str(error))}", err=True)
        return error.exit_code
    except click.Abort:
        if _speaks():
            click.echo("Interrupted.", err=True)
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        if _speaks():
            error.show()
        return error.exit_code


def _speaks() -> bool:
    """Whether this process shows results and progress: of those of torchrun one does."""
    return os.environ.get("RANK", "0") == "0"


def _which_rank() -> str:
    """Who makes an error, where there are several processes."""
    rank = os.environ.get("RANK")
    is_one_of_many = rank is not None and os.environ.get("WORLD_SIZE", "1") != "1"
    return f" (rank {rank})" if is_one_of_many else ""


def _safe(message: str) -> str:
    """A message quotes file names and text: no control character of theirs reaches a terminal."""
    from klcli.render.text import visible

    return visible(message, keep_spaces=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="klcli", message="%(prog)s %(version)s")
def cli() -> None:
    """Tell whether two language models still predict the same thing.

    \b
    klcli compare model-a model-b corpus.txt
    klcli compare model-a model-b corpus.txt --gate 'kl.mean<=0.01' --output run.json
    klcli perplexity model corpus.txt

    Exit codes: 0 done, and every gate passed; 1 error; 2 usage; 3 a gate failed; 4 a gate is
    inconclusive; 130 interrupted.
    """  # noqa: D301


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown in the order in which they are written."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


TASKS = click.Choice(["auto", "causal", "masked"])

window_options = _options(
    click.option(
        "--protocol",
        type=click.Choice(["rolling", "llama.cpp", "lm-eval", "strided", "evaluate", "exllamav3"]),
        help="How the text becomes windows: rolling scores every token but the first of a document "
        "once. Others score as programs of their name do: llama.cpp the second half of disjoint "
        "chunks; lm-eval rolling, with a prefix token and the last window filled up; strided the "
        "sliding window of the Hugging Face guide; evaluate each line behind a BOS; exllamav3 "
        "disjoint rows. The four "
        "options below change its parts.  [default: rolling]",
    ),
    click.option(
        "--context",
        type=click.IntRange(min=1),
        metavar="N",
        help="Tokens a model reads at once.  [default: 512, or what the model can read if less]",
    ),
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        metavar="N",
        help="Tokens between the starts of two windows; what is read again is not scored again.  "
        "[default: --context]",
    ),
    click.option(
        "--score-from",
        type=click.IntRange(min=0),
        metavar="N",
        help="First position of a window whose prediction is scored.  [default: 0; llama.cpp: half "
        "of --context]",
    ),
    click.option(
        "--bos",
        type=click.Choice(["auto", "none", "document", "window"]),
        default="auto",
        show_default=True,
        help="Where a BOS token is put: before each document, each window, or nowhere. auto: each "
        "window if the tokenizer adds one by itself, else nowhere.",
    ),
    click.option(
        "--special-tokens",
        type=click.Choice(["text", "parse"]),
        help="Whether a string such as <unk> in the text is text or that token.  [default: text]",
    ),
    click.option(
        "--documents",
        type=click.Choice(["file", "line", "blank"]),
        help="What one document is: the file, a line, or a paragraph between blank lines. A line "
        "of .jsonl is always one.  [default: file; line with --protocol evaluate]",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        help="Score only the first N windows of each corpus.",
    ),
    click.option(
        "--pll",
        type=click.Choice(["original", "word"]),
        help="For masked models, what is hidden with a token that is scored: nothing else, or the "
        "rest of its word.  [default: original]",
    ),
    click.option(
        "--mask-every",
        type=click.IntRange(min=1),
        metavar="K",
        help="For masked models, hide every K-th token at once, K forward rows a window: faster, "
        "and an approximation.  [default: one token at a time]",
    ),
)


def _sided(name: str, what: str, **settings: Any) -> Callable[[Command], Command]:
    """An option for both sides, and one for each."""
    option = name.replace("_", "-")
    return _options(
        click.option(f"--{option}", help=what, **settings),
        *(
            click.option(f"--{side}-{option}", help=f"--{option} for the {side}.",
                         **{k: v for k, v in settings.items() if k in ("type", "metavar")})
            for side in ("reference", "candidate")
        ),
    )  # fmt: skip


def _source_settings() -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        "dtype": (
            "Number format of the weights; auto is the checkpoint's, float32 for GGUF.",
            {"type": DTYPES, "default": "auto", "show_default": True},
        ),
        "device": (
            "Where the model runs: auto, cpu, cuda, cuda:1, mps. auto is a GPU if there is one; a "
            "model too large for it is split over all GPUs and the machine's memory.",
            {"metavar": "DEVICE", "default": "auto", "show_default": True},
        ),
        "revision": ("Branch, tag or commit of a Hub model.", {"metavar": "REVISION"}),
        "values": (
            "What the numbers of a logit file are; auto goes by the array's name.",
            {"type": VALUES, "default": "auto", "show_default": True},
        ),
        "token_ids": (
            "Token ids of a logit file that has none in it (.npy).",
            {"type": click.Path(exists=True, dir_okay=False), "metavar": "FILE"},
        ),
    }


def _source_options(*, sided: bool) -> Callable[[Command], Command]:
    decorators = []
    for name, (what, settings) in _source_settings().items():
        if sided:
            decorators.append(_sided(name, what, **settings))
        else:
            decorators.append(click.option(f"--{name.replace('_', '-')}", help=what, **settings))
    return _options(
        click.option(
            "--task",
            type=TASKS,
            default="auto",
            show_default=True,
            help="What models predict: the next token, or a hidden one. auto goes by the config.",
        ),
        *decorators,
        click.option(
            "--tokenizer",
            metavar="MODEL",
            help="Model or folder whose tokenizer gives the words of a logit file.",
        ),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Run Python code that comes with a model. Only for models you trust.",
        ),
        click.option(
            "--compile",
            is_flag=True,
            help="Compile the blocks of models with torch.compile, which takes a while: for long "
            "runs. 16-bit models round otherwise then, about as far from themselves as from "
            "float32. Needs a C++ compiler on a CPU, and Triton on a GPU.",
        ),
        click.option(
            "--batch-tokens",
            type=click.IntRange(min=1),
            metavar="N",
            help="Tokens in one forward pass; fewer need less memory.  [default: 2048 on a CPU, "
            "16384 on a GPU]",
        ),
    )


run_options = _options(
    click.option(
        "--until",
        metavar="GOAL",
        help="End early: 'decided', when every gate is, or 'kl.mean±0.001' (or +-), when the mean "
        "is known that well. Windows are drawn at random, and the answer is about this text.",
    ),
    click.option(
        "--kl-bound",
        type=click.FloatRange(min=0, min_open=True),
        metavar="NATS",
        help="The most the KL of a token can be, if you know it: --until is then exact, not "
        "asymptotic.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="In which random order --until draws windows.",
    ),
    click.option(
        "--run",
        type=click.Path(),
        metavar="DIR",
        help="Keep the run in a folder, for klcli report and --baseline. The same command goes on "
        "there after a kill.",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        help="Score only the I-th of N parts, to be joined by klcli merge. Needs --run.",
    ),
)

output_options = _options(
    click.option(
        "--tokens",
        type=click.Choice(["all", "outliers", "none"]),
        default="outliers",
        show_default=True,
        help="Which tokens the table lists.",
    ),
    click.option(
        "--slice",
        "slices",
        multiple=True,
        type=click.Choice(["confidence", "position", "kind"]),
        help="Also show the tokens by confidence of the reference (or model), by position in the "
        "window, or by kind of text. The JSON has all three. Can be given several times.",
    ),
    click.option(
        "--format",
        "format_",
        type=FORMATS,
        default="table",
        show_default=True,
        help="What is printed on stdout; jsonl and csv have one line a token.",
    ),
    click.option(
        "--output",
        "outputs",
        multiple=True,
        type=click.Path(),
        metavar="FILE",
        help="Write the result to a file too, in the format of its ending: .json .jsonl .csv .md. "
        "Can be given several times.",
    ),
    click.option(
        "--gate",
        "gates",
        multiple=True,
        metavar="EXPR",
        help="Fail with exit code 3 unless it holds, as in 'kl.mean<=0.01': any metric of the "
        "JSON, <= or >=. Can be given several times.",
    ),
    click.option(
        "--gate-confidence",
        type=click.FloatRange(0.5, 1, max_open=True),
        metavar="P",
        help="Let intervals of this confidence decide: a gate passes if the whole interval is "
        "inside, fails if it is wholly outside, and is inconclusive otherwise (exit code 4).  "
        "[default: the number itself decides]",
    ),
    click.option(
        "--baseline",
        type=click.Path(exists=True),
        metavar="RUN",
        help="An earlier run that gates such as 'kl.mean<=1.1*baseline' speak of: a folder kept "
        "with --run, paired token by token, or a report (.json).",
    ),
    click.option(
        "--allow-excluded",
        is_flag=True,
        help="Let a gate pass although tokens were left out because a model gave NaN or +inf.",
    ),
    click.option("--quiet", is_flag=True, help="No progress and no warnings on stderr."),
)


@cli.command()
@click.argument("reference")
@click.argument("candidate")
@click.argument("corpus", nargs=-1)
@window_options
@_source_options(sided=True)
@click.option(
    "--outliers",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="How many outlier tokens are reported: the N with the largest KL, and the N that stand "
    "out most among tokens of like confidence.",
)
@click.option(
    "--one-at-a-time",
    is_flag=True,
    help="Keep one model in memory at a time: the reference's predictions go through a temporary "
    "recording.",
)
@click.option(
    "--noise-floor",
    type=click.Choice(["batch", "dtype", "attention"]),
    help="Score the reference against itself too, one sequence at a time, in another number format "
    "or with the plain attention kernel: a KL below that shows nothing.",
)
@run_options
@output_options
def compare(reference: str, candidate: str, corpus: tuple[str, ...], **options: Any) -> int:
    """Compare what two models predict: KL, NLL and perplexity; outliers; gates.

    \b
    klcli compare gpt2 distilgpt2 corpus.txt
    klcli compare model-f32/ model-4bit/ corpus.txt --gate 'kl.mean<=0.01' --output run.json
    klcli compare model/ model/ corpus.txt --candidate-dtype bfloat16
    klcli compare base.recording model-4bit/ --gate 'top1_agreement>=0.98'
    klcli compare teacher.npz student.safetensors

    REFERENCE and CANDIDATE are each a Hub id, a model folder, a .gguf file, a recording, or a logit
    file (.npy .npz .pt .safetensors, llama.cpp's base files, or .jsonl with top_logprobs). CORPUS
    is any number of text files, .jsonl with a "text" field, .gz of these, or - for stdin;
    recordings and logit files bring their tokens and need none. Every divergence is
    KL(REFERENCE‖CANDIDATE) in nats.
    """  # noqa: D301
    from klcli.api import compare as run

    inputs = (reference, candidate, *corpus)
    return _run(lambda **hooks: run(reference, candidate, corpus, **hooks), inputs, **options)


@cli.command()
@click.argument("model")
@click.argument("corpus", nargs=-1)
@window_options
@_source_options(sided=False)
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

    return _run(lambda **hooks: run(model, corpus, **hooks), (model, *corpus), **options)


@cli.command()
@click.argument("model")
@click.argument("corpus", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(),
    metavar="RECORDING",
    help="The folder to record to, or a file ending in .kld for llama.cpp's --kl-divergence.",
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "hidden", "logits", "topk"]),
    default="auto",
    show_default=True,
    help="What is kept of each token: hidden, the final hidden state (small and exact, with the "
    "output head once); logits; topk, the most probable tokens (divergences are lower bounds). "
    "auto: hidden if a probe proves that the head gives the model's own logits, else logits.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="K",
    help="How many tokens --kind topk keeps.",
)
@window_options
@_source_options(sided=False)
@click.option("--quiet", is_flag=True, help="No progress and no summary on stderr.")
def record(model: str, corpus: tuple[str, ...], output: str, quiet: bool, **options: Any) -> int:
    """Save a model's predictions, to compare other models with them later.

    \b
    klcli record gpt2 corpus.txt -o gpt2.recording
    klcli record model/ wiki.txt -o base.kld --context 512
    klcli compare gpt2.recording distilgpt2

    Run again after a kill it goes on where it stopped; a complete recording is left untouched.
    """  # noqa: D301
    from klcli.api import record as run

    with _progress(quiet) as hooks:
        done = run(model, corpus, output, **(options | hooks))
    if not quiet:
        if done.reason:
            click.echo(f"Warning: {_safe(done.reason)}", err=True)
        new = done.rows - done.rows_before
        click.echo(
            f"{_safe(output)}: {done.kind}, {done.rows:,} tokens ({new:,} new), "
            f"{done.bytes:,} bytes",
            err=True,
        )
    return ExitCode.DONE


def _judging_options(command: Command) -> Command:
    """Of the output options, those that a saved run can be shown with; outliers besides."""
    return click.option(
        "--outliers",
        type=click.IntRange(min=0),
        metavar="N",
        help="How many outlier tokens are reported.  [default: as many as the run was made with]",
    )(output_options(command))


@cli.command()
@click.argument("saved", metavar="RUN")
@_judging_options
def report(saved: str, **options: Any) -> int:
    """Show a saved run again, in any format and under other gates.

    \b
    klcli report base.run
    klcli report base.run --format markdown --gate 'kl.p99<=0.5'
    klcli report run.json

    RUN is a folder kept with --run, or a report (.json), which holds no single tokens.
    """  # noqa: D301
    from klcli.api import report as run

    def job(progress: object, status: object, announce: object, **settings: Any) -> "Report":
        return run(saved, **settings)

    return _run(job, (saved,), **options)


@cli.command()
@click.argument("saved", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "-o",
    "--run",
    "whole",
    required=True,
    type=click.Path(),
    metavar="RUN",
    help="The folder to keep the whole run in.",
)
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

    return _run(job, saved, **options)


@cli.command()
@click.argument("path", metavar="FILE")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How it is printed.",
)
def inspect(path: str, format_: str) -> int:
    """Show what a recording, logit file or report holds, without running a model.

    \b
    klcli inspect gpt2.recording
    klcli inspect base.kld --format json
    """  # noqa: D301
    from klcli.inspection import inspect as look
    from klcli.render.data import render_facts

    render_facts(look(path), sys.stdout, as_json=format_ == "json")
    return ExitCode.DONE


def _run(
    job: Callable[..., "Report"],
    inputs: Sequence[str],
    *,
    tokens: "TokenChoice",
    format_: str,
    outputs: tuple[str, ...],
    quiet: bool,
    **options: Any,
) -> int:
    """Do the job with progress shown, write and print its report, and return the exit code."""
    from klcli.render.files import check_outputs, write_outputs

    check_outputs(outputs, inputs)
    with _progress(quiet or not _speaks()) as hooks:
        report = job(**options, **hooks)
    if not _speaks():
        return ExitCode.DONE
    write_outputs(report, outputs)
    if not quiet:
        _warn(report)
    _print(report, format_, tokens)
    return _verdict_code(report.verdict)


def _verdict_code(verdict: str | None) -> ExitCode:
    codes = {"fail": ExitCode.GATE_FAILED, "inconclusive": ExitCode.GATE_INCONCLUSIVE}
    return codes.get(verdict or "", ExitCode.DONE)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[dict[str, Callable[..., None]]]:
    """Callbacks that draw a bar with the time left on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[tokens]}", markup=False),
        TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("starting", total=None, tokens="")
        say = _Forecast(None if quiet or console.is_terminal else console.print)

        def progress(done: int, total: int) -> None:
            say.at(done, total)
            bar.update(
                task,
                description="scoring",
                completed=done,
                total=total,
                tokens=f"{done:,} of {total:,} tokens",
            )

        yield {
            "announce": lambda what: None if quiet else console.print(_safe(what), markup=False),
            "status": lambda what: bar.update(task, description=_safe(what)),
            "progress": progress,
        }


class _Forecast:
    """Says once how long a run will take, where no bar can be drawn and it takes long."""

    AFTER, LONG = 5.0, 60.0  # seconds

    def __init__(self, show: Callable[[str], None] | None) -> None:
        self._show = show
        self._first: tuple[float, int] | None = None

    def at(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        begin, before = self._first
        if self._show is None or now - begin < self.AFTER:
            return
        left = (now - begin) / (done - before) * (total - done)
        if left > self.LONG:
            self._show(f"{done:,} of {total:,} tokens are scored, about {left / 60:.0f} min left")
        self._show = None


def _warn(report: "Report") -> None:
    from rich.console import Console

    from klcli.render.terminal import render_warnings

    render_warnings(report, Console(stderr=True))


def _print(report: "Report", format_: str, tokens: "TokenChoice") -> None:
    """Print the report; that nobody reads stdout any more is no error."""
    from klcli.render.data import RENDERERS
    from klcli.render.terminal import StdoutConsole, render_terminal

    if sys.stdout is None:  # closed before the start
        return
    try:
        if format_ == "table":
            render_terminal(report, StdoutConsole(), tokens=tokens)
        else:
            RENDERERS[format_](report, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    except OSError as error:
        _drop_stdout()
        raise OutputError(f"cannot write to stdout: {error.strerror or error}") from error


def _drop_stdout() -> None:
    """What is still in the buffer goes nowhere, or flushing it at exit would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
