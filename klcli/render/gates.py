"""Gates on a terminal: a line for each, with its verdict, its value and why."""

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from klcli.judge.report import Report
from klcli.render import summary
from klcli.render.layout import alphabet_of, print_hanging
from klcli.render.verdict import verdict_text


def print_gates(report: Report, console: Console, indent: int = 0) -> None:
    """Print a line for each gate, and below it a reason that does not fit there."""
    alphabet = alphabet_of(console)
    lines = summary.gate_lines(report)
    names = [alphabet.keep_start(line.gate, console.width // 2) for line in lines]
    verdicts = [alphabet.spell_styled(verdict_text(line.verdict)) for line in lines]
    widest, longest = max(one.cell_len for one in verdicts), max(map(cell_len, names))
    for verdict, name, line in zip(verdicts, names, lines, strict=True):
        verdict.pad_right(widest - verdict.cell_len)
        label = Text.assemble(" " * indent, verdict, "  ")
        said, reason = f"{set_cell_size(name, longest)}  {line.value}", alphabet.spell(line.reason)
        fits = label.cell_len + cell_len(f"{said}  {reason}") <= console.width
        print_hanging(label, Text(f"{said}  {reason}".rstrip() if fits else said), console)
        if not fits:
            print_hanging(Text(" " * label.cell_len), Text(reason), console)
