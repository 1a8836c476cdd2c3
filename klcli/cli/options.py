"""Options of commands, by concern. Their choices are those of the requests."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from klcli.choices import (
    DEFAULT_OUTLIERS,
    DEFAULT_TOP_K,
    ENDINGS,
    FIRST_OUTLIERS,
    LAYERS_ENDINGS,
    RANK_ENDINGS,
    Bos,
    DocumentSplit,
    FileFormat,
    Format,
    LayersFormat,
    NoiseFloor,
    Pll,
    RankFormat,
    RecordingChoice,
    SliceBy,
    SpecialTokens,
    TokenChoice,
)
from klcli.cli.data_options import calibration_option, data_options
from klcli.cli.help import Decorated, one_of, section, several
from klcli.text.protocols import PRESETS


@dataclass(frozen=True, slots=True)
class Named(os.PathLike[str]):
    """An argument that names a file, whatever it looks like: it is never a text itself."""

    path: str

    def __fspath__(self) -> str:
        return self.path


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
    common=("protocol", "context", "limit"),
)

text_options = several(data_options, window_options)


run_options = several(
    calibration_option,
    section(
        "Long runs",
        click.option(
            "--until",
            metavar="GOAL",
            help="End early: 'decided', when every gate is, or 'kl.mean±0.001' (or +-), when the "
            "mean is known that well. Windows are drawn at random, and the answer is about this "
            "text.",
        ),
        click.option(
            "--kl-bound",
            type=click.FloatRange(min=0, min_open=True),
            metavar="NATS",
            help="The most the KL of a token can be, if you know it: the intervals of --until "
            "then hold for any text.",
        ),
        click.option(
            "--run",
            type=click.Path(),
            metavar="DIR",
            help="Keep the run in a folder, for klcli report and --baseline. The same command goes "
            "on there after a kill.",
        ),
        click.option(
            "--shard",
            metavar="I/N",
            help="Score only the I-th of N parts, to be joined by klcli merge. Needs --run.",
        ),
        common=("until", "run"),
    ),
)


def _written_options(
    formats: Any, endings: Mapping[str, FileFormat], more: str = ""
) -> Callable[[Decorated], Decorated]:
    """How a result is printed and written; ``more`` is what there is to say of its formats."""
    return section(
        "Output",
        click.option(
            "--format",
            "format_",
            type=one_of(formats),
            default="table",
            show_default=True,
            help=f"What is printed on stdout{more}.",
        ),
        click.option(
            "--output",
            "outputs",
            multiple=True,
            type=click.Path(),
            metavar="FILE",
            help="Write the result to a file too, in the format of its ending: "
            f"{' '.join(endings)}. Can be given several times.",
        ),
        click.option("--quiet", is_flag=True, help="No progress and no warnings on stderr."),
        common=("format_", "outputs", "quiet"),
    )


_shown_options = several(
    section(
        "Output",
        click.option(
            "--details",
            is_flag=True,
            help="Show every number in the table, not only the first screen.",
        ),
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
            help="Also show slices of the tokens. They are by confidence of the reference (or "
            "model), by position in the window, kind of text, role or turn of a conversation, "
            "place in a generated answer, or --slice-regex. The JSON has all. Can be given "
            "several times.",
        ),
        click.option(
            "--slice-regex",
            "slice_regex",
            multiple=True,
            metavar="NAME=PATTERN",
            help="Also slice off the tokens of what a regular expression finds in the text, such "
            "as 'calls=(?s)<tool_call>.*?</tool_call>'. Can be given several times.",
        ),
        common=("details", "slices"),
    ),
    _written_options(Format, ENDINGS, "; jsonl and csv have one line a token"),
)

_gate_options = section(
    "Gates",
    click.option(
        "--gate",
        "gates",
        multiple=True,
        metavar="EXPR",
        help="Fail with exit code 3 unless it holds, as in 'kl.mean<=0.01': any metric (see "
        "klcli explain), one of <= >= < >, and a number or percentage. 'wiki.txt:kl<=0.01' is "
        "about one of several texts, or groups. Can be given several times.",
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


layers_output_options = _written_options(LayersFormat, LAYERS_ENDINGS)

rank_options = several(
    calibration_option,
    section(
        "Text",
        click.option(
            "--corpus",
            "corpus",
            multiple=True,
            type=click.Path(),
            metavar="FILE",
            help="Text to score. Can be given several times; with --keep-order each has a column.",
        ),
        common=("corpus",),
    ),
    _gate_options,
    _written_options(RankFormat, RANK_ENDINGS),
    section(
        "Output",
        click.option(
            "--keep-order",
            is_flag=True,
            help="Leave the candidates in natural order, as the checkpoints of a training run. Of "
            "two texts the gap of the NLL is shown.",
        ),
        common=("keep_order",),
    ),
    section(
        "Long runs",
        click.option(
            "--run",
            type=click.Path(),
            metavar="DIR",
            help="Keep the run of each candidate in a folder. The same command goes on there after "
            "a kill, and klcli report shows each.",
        ),
        common=("run",),
    ),
)

_outliers_option = section(
    "Output",
    click.option(
        "--outliers",
        type=click.IntRange(min=0),
        metavar="N",
        help="How many outlier tokens are reported. The N with the largest KL, and the N that "
        f"stand out most among tokens of like confidence.  [default: {DEFAULT_OUTLIERS}, of which "
        f"the table shows {FIRST_OUTLIERS}]",
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
            "--open",
            "browse",
            is_flag=True,
            help="Open the report in a browser, as a page in a temporary file.",
        ),
        click.option(
            "--outliers",
            type=click.IntRange(min=0),
            metavar="N",
            help="How many outlier tokens are reported.  [default: as many as the run was made "
            "with]",
        ),
        common=("browse", "outliers"),
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
