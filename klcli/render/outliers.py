"""Outlier tokens on a terminal: each a few lines, in its context."""

from itertools import zip_longest

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from klcli.judge.report import Outlier, Report
from klcli.render.alphabet import Alphabet
from klcli.render.layout import alphabet_of, print_hanging, print_line
from klcli.render.numbers import fixed, number
from klcli.render.summary import at_least, outlier_heading
from klcli.render.text import visible

_INDENT = 5
_LONGEST_TOKEN, _LONGEST_TOP = 24, 16
"""Cells that a token takes at most, in its context and among the most probable ones."""


def print_outliers(report: Report, console: Console) -> None:
    """Print what each outlier is, where it stands, and what the models expected there."""
    if not report.outliers:
        return
    print_hanging(Text(), Text(outlier_heading(report), "bold"), console)
    console.print()
    alphabet, width = alphabet_of(console), console.width
    several = (report.counts["documents"] or 0) > 1
    for rank, outlier in enumerate(report.outliers, 1):
        lines = [
            _figures(rank, outlier, at_least(report, "kl"), several, width, alphabet),
            Text.assemble(" " * _INDENT, in_context(outlier, width - _INDENT, alphabet)),
            *_expected(outlier, width, alphabet),
        ]
        for line in lines:
            print_line(line, console)
        console.print()


def in_context(outlier: Outlier, width: int, alphabet: Alphabet) -> Text:
    """The token in brackets, and as much of the text around it as fits in ``width`` cells."""
    token = f"[{alphabet.keep_start(visible(outlier.token), _LONGEST_TOKEN)}]"
    before = alphabet.spell(visible(outlier.before.lstrip(" "), keep_spaces=True))
    after = alphabet.spell(visible(outlier.after, keep_spaces=True))
    room = width - cell_len(token)
    left = min(cell_len(before), max(room // 2, room - cell_len(after)))
    return Text.assemble(
        alphabet.keep_end(before, left),
        (token, "bold"),
        alphabet.keep_start(after, room - left),
    )


def _figures(
    rank: int, outlier: Outlier, bound: str, several: bool, width: int, alphabet: Alphabet
) -> Text:
    z, kl = fixed(outlier.score, 2, 6), f"{bound}{number(outlier.kl)}"
    reference, candidate = (fixed(x, 4, 7) for x in (outlier.nll_reference, outlier.nll_candidate))
    line = Text.assemble(
        (f"{rank:>{_INDENT - 2}}  KL {kl:<8}", "bold"),
        f"  z {z:>5}{'*' if outlier.flagged else ' '}  NLL {reference:>7} → {candidate:<7}",
        (f"  token {outlier.position}", "dim"),
    )
    if several:
        document = visible(outlier.document, keep_spaces=True)
        line.append(f" of {alphabet.keep_end(document, width - line.cell_len - 4)}", "dim")
    return line


def _expected(outlier: Outlier, width: int, alphabet: Alphabet) -> list[Text]:
    """The most probable tokens of both models, the same places under each other."""
    sides = (outlier.top_reference, outlier.top_candidate)
    lines = [Text(f"{' ' * _INDENT}{side}", "dim") for side in ("reference", "candidate")]
    for place in zip_longest(*sides, fillvalue=("", 0.0)):
        tokens = [alphabet.keep_start(visible(token), _LONGEST_TOP) for token, _ in place]
        shares = [f"{share:.1%}" if share else "" for _, share in place]
        room, digits = max(map(cell_len, tokens)), max(map(len, shares))
        if lines[0].cell_len + 2 + room + 1 + digits > width:
            break
        for line, token, share, (exact, _) in zip(lines, tokens, shares, place, strict=True):
            style = "bold not dim" if exact == outlier.token else "not dim"
            line.append(f"  {set_cell_size(token, room)} {share:>{digits}}", style)
    return lines if any(sides) else []
