"""Options that say what is in a data set, and what of it is scored."""

import click

from klcli.choices import DEFAULT_NEW_TOKENS, Score
from klcli.cli.help import one_of, section, several

_template_option = click.option(
    "--chat-template",
    type=click.Path(),
    metavar="FILE",
    help="Jinja template that renders conversations, for both models.  [default: the reference's, "
    "or the candidate's where the reference has none]",
)
_field_options = (
    click.option(
        "--text-field",
        metavar="NAME",
        help="Field of .jsonl, .csv and .parquet that holds the text.  [default: found by itself: "
        "text, messages, or a prompt and its completion]",
    ),
    click.option("--prompt-field", metavar="NAME", help="Field that holds the prompt."),
    click.option("--completion-field", metavar="NAME", help="Field that holds the completion."),
)

data_options = section(
    "Data",
    click.option(
        "--score",
        type=one_of(Score),
        default="assistant",
        show_default=True,
        help="What of a conversation is scored: the answers, all, or the last answer. Of a prompt "
        "with its completion it is the completion, or all.",
    ),
    click.option(
        "--score-reasoning/--no-score-reasoning",
        default=True,
        show_default=True,
        help="Whether the reasoning in an answer is scored too.",
    ),
    _template_option,
    *_field_options,
    click.option(
        "--group-by",
        metavar="FIELD",
        help="Also report each value of a field by itself, such as a language.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Score at most about N tokens: documents are drawn at random, whole, until there are "
        "enough.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="In which random order --max-tokens draws documents, and --until windows.",
    ),
    common=("score",),
)

answer_options = several(
    section(
        "Output",
        click.option(
            "-o",
            "--output",
            required=True,
            type=click.Path(),
            metavar="FILE",
            help="The .jsonl file to write answers to.",
        ),
        click.option(
            "--max-new-tokens",
            type=click.IntRange(min=1),
            default=DEFAULT_NEW_TOKENS,
            show_default=True,
            metavar="N",
            help="Tokens of an answer, at the most.",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(min=0),
            default=0.0,
            show_default=True,
            metavar="T",
            help="0 takes the most probable token each time, more draws at random.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            metavar="N",
            help="What is drawn at random.",
        ),
        click.option("--quiet", is_flag=True, help="No progress and no summary on stderr."),
        common=("output", "max_new_tokens", "temperature", "quiet"),
    ),
    section(
        "Data",
        _template_option,
        *_field_options,
        click.option(
            "--group-by",
            metavar="FIELD",
            help="Keep a field of the prompts, to group the answers by it.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            metavar="N",
            help="Answer only the first N prompts.",
        ),
        common=("chat_template", "limit"),
    ),
)

calibration_option = section(
    "Data",
    click.option(
        "--calibration",
        type=click.Path(),
        metavar="FILE",
        help="Text that a model was calibrated or trained with: warn where the scored text is in "
        "it.",
    ),
)
