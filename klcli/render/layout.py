"""How text is laid out on a console: lines, hanging paragraphs and calm tables within its width.

Text is spelled in what the encoding of the console has before its cells are counted.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from rich import box
from rich.cells import cell_len
from rich.console import Console, OverflowMethod
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from klcli.render.alphabet import Alphabet
from klcli.render.summary import Fact, Table
from klcli.render.text import ELLIPSIS, visible

LABEL, NUMBER = 20, 9
"""Cells for the name of a metric and for a number: with six numbers 80."""

_RULE_OF_ASCII = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""``SIMPLE_HEAD``, for an encoding without lines."""


def alphabet_of(console: Console) -> Alphabet:
    """The characters that a console can show."""
    return Alphabet(console.encoding)


def print_line(line: Text, console: Console) -> None:
    """Print a line, or several, made to fit; what is too long all the same is cut."""
    alphabet = alphabet_of(console)
    line = alphabet.spell_styled(line)
    line.rstrip()
    overflow: OverflowMethod = "ellipsis" if alphabet.has(ELLIPSIS) else "crop"
    console.print(line, no_wrap=True, overflow=overflow)


def print_hanging(label: Text, text: Text, console: Console) -> None:
    """Print a label and a text behind it, whose further lines stand under its first."""
    label, text = map(alphabet_of(console).spell_styled, (label, text))
    indent = label.cell_len
    for line in text.wrap(console, max(console.width - indent, NUMBER), overflow="fold"):
        line.rstrip()
        console.print(Text.assemble(label, line))
        label = Text(" " * indent)


def print_heading(title: str, facts: Sequence[Fact], console: Console) -> None:
    """Print what was measured, and of what."""
    print_hanging(Text(), Text(title, "bold"), console)
    indent = max(len(fact.about) for fact in facts) + 2
    for about, name, details in facts:
        said = Text.assemble((name, "bold"), "  " if name and details else "", details)
        print_hanging(Text(f"{about:<{indent}}", "dim"), said, console)
    console.print()


def print_warnings(warnings: Iterable[str], console: Console) -> None:
    """Print warnings, a paragraph each."""
    for warning in warnings:
        message = Text(visible(warning, keep_spaces=True))
        print_hanging(Text("Warning: ", "yellow"), message, console)


def label_width(table: Table, console: Console) -> int:
    """Cells for the labels of a table and of those that stand with it."""
    return max(LABEL, *(cell_len(row[0]) for row in _spelled(table, alphabet_of(console)).rows))


def print_aligned(table: Table, label: int, fitting: int, console: Console) -> None:
    """A table of at most ``fitting`` numbers a row, whose columns stand under those of others."""
    table = _spelled(table, alphabet_of(console))
    drawn = _empty_table(1, console)
    drawn.add_column(Text(table.head[0]), width=label, no_wrap=True)
    for head in table.head[1 : fitting + 1]:
        drawn.add_column(Text(head), width=NUMBER, justify="right", no_wrap=True)
    drawn.columns[1].style = "bold"
    _print_rows(drawn, [row[: fitting + 1] for row in table.rows], console)


def print_compact(table: Table, console: Console, indent: int = 0) -> None:
    """A table as wide as what is in it.

    Where that is too wide names lose their beginning, and then the last columns go.
    """
    alphabet = alphabet_of(console)
    table = _spelled(table, alphabet)
    width = console.width - indent
    columns = zip(table.head, *table.rows, strict=True)
    label, *numbers = (max(map(cell_len, column)) for column in columns)
    gap = 2 if label + sum(numbers) + 2 * len(numbers) <= width else 1
    used = list(accumulate(number + gap for number in numbers))
    fitting = sum(taken <= width - min(label, LABEL) for taken in used)
    room = width - sum(used[:fitting][-1:])
    drawn = _empty_table(gap, console)
    drawn.add_column(Text(table.head[0]), no_wrap=True)
    for head in table.head[1 : fitting + 1]:
        drawn.add_column(Text(head), justify="right", no_wrap=True)
    rows = [[alphabet.keep_end(row[0], room), *row[1 : fitting + 1]] for row in table.rows]
    _print_rows(drawn, rows, console, indent)


def _empty_table(gap: int, console: Console) -> RichTable:
    """A table without columns, which will stand ``gap`` cells apart; one is the box's own."""
    return RichTable(
        box=box.SIMPLE_HEAD if alphabet_of(console).has("─") else _RULE_OF_ASCII,
        safe_box=False,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, gap - 1),
        header_style="dim",
    )


def _print_rows(
    drawn: RichTable, rows: Sequence[Sequence[str]], console: Console, indent: int = 0
) -> None:
    for row in rows:
        drawn.add_row(*map(Text, row))
    console.print(Padding(drawn, (0, 0, 0, indent), expand=False))
    console.print()


def _spelled(table: Table, alphabet: Alphabet) -> Table:
    """A table in characters that the console can show."""
    rows = [[alphabet.spell(cell) for cell in row] for row in table.rows]
    return Table(head=[alphabet.spell(head) for head in table.head], rows=rows)
