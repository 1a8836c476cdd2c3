"""Where two models part, for people and programs: a table, Markdown, JSON."""

import json
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.console import Console
from rich.text import Text

from klcli.choices import FileFormat, LayersFormat
from klcli.judge.layers import NOISE_FACTOR, Layer, Layers, Place
from klcli.render.formats import Writer, as_text
from klcli.render.layout import print_compact, print_hanging, print_heading
from klcli.render.markdown import escape, fact_line, table_of
from klcli.render.numbers import count, fixed, number
from klcli.render.summary import Fact, Table, model_facts, windows_of
from klcli.render.text import keep_start, visible
from klcli.render.view import DEFAULT_VIEW, View

TITLE = "Layers of the candidate against those of the reference"
HEAD = (
    "layer", "apart", "error", "per token", "allowed", "noise", "cosine", "largest", "at token"
)  # fmt: skip
_TOKEN = 14
"""Cells for a token."""


def render_terminal(layers: Layers, console: Console) -> None:
    """Print the table within the width of the console; warnings are not among it."""
    print_heading(TITLE, _facts(layers), console)
    print_compact(_table(layers), console)
    for sentence in sentences(layers):
        print_hanging(Text(""), Text(sentence), console)


def render_markdown(layers: Layers, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the table as Markdown, with all text escaped."""
    blocks = [
        f"# {TITLE}",
        "\n".join(map(fact_line, _facts(layers))),
        table_of(_table(layers)),
        escape(" ".join(sentences(layers))),
    ]
    if warnings := [visible(one.message, keep_spaces=True) for one in layers.warnings]:
        blocks += ["## Warnings", "\n".join(f"- {escape(warning)}" for warning in warnings)]
    stream.write("\n\n".join(blocks) + "\n")


def render_json(layers: Layers, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the result as JSON, in ASCII: no text in it can reach a terminal as a control code."""
    json.dump(layers.to_dict(), stream, indent=2, allow_nan=False)
    stream.write("\n")


PRINTERS: Mapping[LayersFormat, Callable[[Layers, TextIO, View], None]] = {
    "json": render_json,
    "markdown": render_markdown,
}
"""What prints the result on stdout, by format; the table is the terminal's own."""

WRITERS: Mapping[FileFormat, Writer] = {
    "json": as_text(render_json),
    "markdown": as_text(render_markdown),
}
"""What writes the result to a file, by format."""


def sentences(layers: Layers) -> list[str]:
    """What the table comes to: where the models part, and where the error rises most."""
    first = next((layer for layer in layers.layers if layer.is_apart), None)
    if first is None:
        return ["The models part nowhere: no error is above what noise and rounding may make."]
    if (error := first.token_error) > first.allowed:
        above = f"{number(error)}, is above {number(first.allowed)}"
        why = f"its error per token, {above}{_most(first.largest)}"
    else:
        why = f"the candidate is not finite at {count(first.not_finite, 'token')}"
    said = [f"The models part at {_long_name(first)}: {why}."]
    if (rise := layers.rise) is not None:
        before, after = number(rise.before), number(rise.after)
        said.append(f"The error per token rises most in {rise.layer}, from {before} to {after}.")
    return said


def _most(place: Place | None) -> str:
    if place is None:
        return ""
    document = visible(place.document, keep_spaces=True)
    return f", most at {visible(place.token)}, token {place.position:,} of {document}"


def _long_name(layer: Layer) -> str:
    """A layer as a sentence has it, with what the model calls it."""
    names = {"embedding": "the embedding", "final": "the final state", "logits": "the logits"}
    if layer.module is None:
        return names.get(layer.layer, layer.layer)
    return f"{layer.layer} ({visible(layer.module)})"


def _facts(layers: Layers) -> list[Fact]:
    counts = layers.counts
    of_all = "" if counts["tokens"] == counts["tokens_in_all"] else (
        f", the first of {count(counts['tokens_in_all'])}; --limit takes more"
    )  # fmt: skip
    names = ", ".join(visible(name, keep_spaces=True) for name in layers.corpora)
    return [
        *model_facts(layers.models),
        Fact("corpus", names, ""),
        Fact("windows", "", windows_of(layers.protocol)),
        Fact("read", "", f"{count(counts['tokens'], 'token')}{of_all}"),
        Fact("allowed", "", f"{NOISE_FACTOR} × noise, and what rounding may make"),
    ]


def _table(layers: Layers) -> Table:
    return Table(head=HEAD, rows=[_row(layer, layers.first_apart) for layer in layers.layers])


def _row(layer: Layer, first: str | None) -> list[str]:
    apart = "first" if layer.layer == first else "yes" if layer.is_apart else "no"
    errors = [number(x) for x in (layer.error, layer.token_error, layer.allowed, layer.noise)]
    where = layer.largest
    return [
        layer.layer,
        apart,
        *errors,
        fixed(layer.cosine, 6, 9),
        number(None if where is None else where.error),
        "" if where is None else keep_start(visible(where.token), _TOKEN),
    ]
