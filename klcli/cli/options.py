"""Options of commands, by concern. Their choices are those of the requests."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from klcli.choices import (
    DEFAULT_OUTLIERS,
    DEFAULT_TOP_K,
    ENDINGS,
    LAYERS_ENDINGS,
    Bos,
    DocumentSplit,
    DtypeName,
    Format,
    LayersFormat,
    NoiseFloor,
    Pll,
    RecordingChoice,
    SliceBy,
    SpecialTokens,
    TaskChoice,
    TokenChoice,
    ValueChoice,
    choices_of,
)
from klcli.cli.help import section, several
from klcli.text.protocols import PRESETS

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Named(os.PathLike[str]):
    """An argument that names a file, whatever it looks like: it is never a text itself."""

    path: str

    def __fspath__(self) -> str:
        return self.path


def one_of(words: Any) -> click.Choice[str]:
    """The words of a ``Literal`` as the type of an option."""
    return click.Choice(choices_of(words))


def _protocols() -> str:
    """What each protocol does, in a line."""
    first, *others = (f"{name} {preset.says}" for name, preset in PRESETS.items())
    return f"{first}. Each of the others scores like the program of that name: {'; '.join(others)}"


window_options = section(
    "Text",
    click.option(
        "--protocol",
        type=click.Choice(tuple(PRESETS)),
        help=f"How the text becomes windows. {_protocols()}. The four options below change its "
        "parts.  [default: rolling]",
    ),
    click.option(
        "--context",
        type=click.IntRange(min=1),
        metavar="N",
        help="Tokens a model reads at once.  [default: the protocol's; rolling: 512, or what the "
        "model can read if less]",
    ),
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        metavar="N",
        help="How far apart two windows start; tokens that are read again are not scored again.  "
        "[default: --context; strided: half of it]",
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
        type=one_of(Bos),
        default="auto",
        show_default=True,
        help="Where a BOS token is put: before each document, each window, or nowhere. auto is the "
        "protocol's; rolling: each window if the tokenizer adds one by itself, else nowhere.",
    ),
    click.option(
        "--special-tokens",
        type=one_of(SpecialTokens),
        help="Whether a string such as <unk> in the text is text or that token.  [default: text]",
    ),
    click.option(
        "--documents",
        type=one_of(DocumentSplit),
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
        type=one_of(Pll),
        help="For masked models, what is hidden together with a scored token: nothing else, or the "
        "rest of its word.  [default: original]",
    ),
    click.option(
        "--mask-every",
        type=click.IntRange(min=1),
        metavar="K",
        help="For masked models, hide every K-th token at once, K forward rows a window: faster, "
        "and an approximation.  [default: one token at a time]",
    ),
    common=("protocol", "context", "documents", "limit"),
)


def _sided(name: str, what: str, **settings: Any) -> Callable[[Command], Command]:
    """An option for both sides, and one for each."""
    option = name.replace("_", "-")
    return several(
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
            {"type": one_of(DtypeName), "default": "auto", "show_default": True},
        ),
        "device": (
            "Where the model runs: auto, cpu, cuda, cuda:1, mps. auto is a GPU if there is one; a "
            "model too large for it is split over all GPUs and the machine's memory.",
            {"metavar": "DEVICE", "default": "auto", "show_default": True},
        ),
        "adapter": (
            "Folder of an adapter (LoRA, DoRA, IA³) to put on the model. Needs peft.",
            {"type": click.Path(exists=True, file_okay=False), "metavar": "DIR"},
        ),
        "revision": ("Branch, tag or commit of a Hub model.", {"metavar": "REVISION"}),
        "values": (
            "What the numbers of a logit file are; auto goes by the array's name.",
            {"type": one_of(ValueChoice), "default": "auto", "show_default": True},
        ),
        "token_ids": (
            "Token ids of a logit file that has none in it (.npy).",
            {"type": click.Path(exists=True, dir_okay=False), "metavar": "FILE"},
        ),
    }


_tokenizer_option = click.option(
    "--tokenizer",
    type=click.Path(),
    metavar="MODEL",
    help="Model or folder whose tokenizer gives the words of a logit file.",
)

_compile_option = click.option(
    "--compile",
    is_flag=True,
    help="Compile the blocks of models with torch.compile, which takes a while: for long runs. It "
    "changes how 16-bit models round, by about as much as they differ from float32. Needs a C++ "
    "compiler on a CPU, and Triton on a GPU.",
)

OF_FILES = ("values", "token_ids")
"""Settings of logit files."""


def source_options(*, sided: bool, inside: bool = False) -> Callable[[Command], Command]:
    """How sources are opened.

    ``sided`` where there are two, ``inside`` where they must be models that are looked into: not
    logit files, and not compiled.
    """
    decorators = []
    for name, (what, settings) in _source_settings().items():
        if inside and name in OF_FILES:
            continue
        if sided:
            decorators.append(_sided(name, what, **settings))
        else:
            decorators.append(click.option(f"--{name.replace('_', '-')}", help=what, **settings))
    models = section(
        "Models",
        click.option(
            "--task",
            type=one_of(TaskChoice),
            default="auto",
            show_default=True,
            help="What models predict: the next token, or a hidden one. auto goes by the config.",
        ),
        *decorators,
        *(() if inside else (_tokenizer_option,)),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Run Python code that comes with a model. Only for models you trust.",
        ),
        click.option(
            "--allow-unused-weights",
            is_flag=True,
            help="Run a model although its checkpoint has weights that it does not take.",
        ),
        click.option(
            "--allow-other-architecture",
            is_flag=True,
            help="Run as a language model what was saved as something else, such as a classifier.",
        ),
        *(() if inside else (_compile_option,)),
        common=("dtype", "candidate_dtype", "device", "adapter", "revision"),
    )
    return several(models, _memory_options)


_memory_options = section(
    "Memory",
    click.option(
        "--batch-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Tokens in one forward pass; fewer need less memory.  [default: 2048 on a CPU, "
        "16384 on a GPU]",
    ),
    common=("batch_tokens",),
)


run_options = section(
    "Long runs",
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
        help="The most the KL of a token can be, if you know it: the intervals of --until "
        "then hold for any text.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
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
    common=("until", "run", "shard"),
)

_shown_options = section(
    "Output",
    click.option(
        "--tokens",
        type=one_of(TokenChoice),
        default="outliers",
        show_default=True,
        help="Which tokens the table lists.",
    ),
    click.option(
        "--slice",
        "slices",
        multiple=True,
        type=one_of(SliceBy),
        help="Also show slices of the tokens. They are by confidence of the reference (or model), "
        "by position in the window, or by kind of text. The JSON has all three. Can be given "
        "several times.",
    ),
    click.option(
        "--format",
        "format_",
        type=one_of(Format),
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
        help="Write the result to a file too, in the format of its ending: "
        f"{' '.join(ENDINGS)}. Can be given several times.",
    ),
    click.option("--quiet", is_flag=True, help="No progress and no warnings on stderr."),
    common=("details", "slices", "format_", "outputs", "quiet"),
)

_gate_options = section(
    "Gates",
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
        help="Let intervals of this confidence decide. A gate passes if the whole interval is "
        "inside, fails if it is wholly outside, and is inconclusive otherwise (exit code 4).  "
        "[default: the number itself decides]",
    ),
    click.option(
        "--baseline",
        type=click.Path(exists=True),
        metavar="RUN",
        help="An earlier run for gates such as 'kl.mean<=1.1*baseline'. A folder kept "
        "with --run, paired token by token, or a report (.json).",
    ),
    click.option(
        "--allow-excluded",
        is_flag=True,
        help="Let a gate pass although tokens were left out because a model gave NaN or +inf.",
    ),
    common=("gates", "gate_confidence", "baseline"),
)

output_options = several(_gate_options, _shown_options)

layers_output_options = section(
    "Output",
    click.option(
        "--format",
        "format_",
        type=one_of(LayersFormat),
        default="table",
        show_default=True,
        help="What is printed on stdout.",
    ),
    click.option(
        "--output",
        "outputs",
        multiple=True,
        type=click.Path(),
        metavar="FILE",
        help="Write the result to a file too, in the format of its ending: "
        f"{' '.join(LAYERS_ENDINGS)}. Can be given several times.",
    ),
    click.option("--quiet", is_flag=True, help="No progress and no warnings on stderr."),
    common=("details", "format_", "outputs", "quiet"),
)

_outliers_option = section(
    "Output",
    click.option(
        "--outliers",
        type=click.IntRange(min=0),
        default=DEFAULT_OUTLIERS,
        show_default=True,
        metavar="N",
        help="How many outlier tokens are reported. The N with the largest KL, and the N that "
        "stand out most among tokens of like confidence.",
    ),
    common=("outliers",),
)

_one_at_a_time_option = section(
    "Memory",
    click.option(
        "--one-at-a-time",
        is_flag=True,
        help="Keep one model in memory at a time. The reference's predictions go through a "
        "temporary recording.",
    ),
    common=("one_at_a_time",),
)

_noise_floor_option = section(
    "Gates",
    click.option(
        "--noise-floor",
        type=one_of(NoiseFloor),
        help="Score the reference against itself too, one sequence at a time, in another number "
        "format or with the plain attention kernel: a KL below that shows nothing.",
    ),
)

compare_options = several(_outliers_option, _one_at_a_time_option, _noise_floor_option)

recording_options = section(
    "Output",
    click.option(
        "-o",
        "--output",
        required=True,
        type=click.Path(),
        metavar="RECORDING",
        help="The folder to record to, or a file ending in .kld for llama.cpp's --kl-divergence.",
    ),
    click.option(
        "--kind",
        type=one_of(RecordingChoice),
        default="auto",
        show_default=True,
        help="What is kept of each token: hidden, the final hidden state (small and exact, with "
        "the output head once); logits; topk, the most probable tokens (divergences are lower "
        "bounds). auto: hidden if a probe proves that the head gives the model's own logits, else "
        "logits.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(min=1),
        default=DEFAULT_TOP_K,
        show_default=True,
        metavar="K",
        help="How many tokens --kind topk keeps.",
    ),
    common=("output", "kind"),
)

judging_options = several(
    output_options,
    section(
        "Output",
        click.option(
            "--outliers",
            type=click.IntRange(min=0),
            metavar="N",
            help="How many outlier tokens are reported.  [default: as many as the run was made "
            "with]",
        ),
        common=("outliers",),
    ),
)
"""Of the output options, those that a saved run can be shown with; outliers besides."""

merging_options = section(
    "Long runs",
    click.option(
        "-o",
        "--run",
        "whole",
        required=True,
        type=click.Path(),
        metavar="RUN",
        help="The folder to keep the whole run in.",
    ),
    common=("whole",),
)
