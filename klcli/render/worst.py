"""The worst tokens, on the first screen: each in its context, with what both models expected."""

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from klcli.judge.report import Outlier, Report
from klcli.render.alphabet import Alphabet
from klcli.render.layout import alphabet_of, print_hanging, print_line
from klcli.render.models import short_names
from klcli.render.numbers import count, figure
from klcli.render.outliers import in_context
from klcli.render.summary import at_least
from klcli.render.text import keep_start, visible

_LONGEST_NAME, _LONGEST_TOKEN = 20, 16
"""Cells for the name of a model, and for a token."""
_MOST, _ROOM_FOR_MORE = 3, 50
"""How many of a model's most probable tokens are shown, in so many cells or more; else one."""


def print_worst(report: Report, console: Console, most: int, more: str = "") -> None:
    """The tokens with the largest KL, in their context, with what both models expected.

    ``more`` says how to see more of them, where one can.
    """
    if not (shown := report.outliers[:most]):
        return
    flagged = f"{count(report.counts.get('outliers'))} stand out"
    found = "; ".join(filter(None, [flagged, more]))
    print_hanging(
        Text("  "),
        Text.assemble(("Worst tokens", "bold"), f" ({found})"),
        console,
    )
    alphabet = alphabet_of(console)
    bound = alphabet.spell(at_least(report, "kl"))
    labels = [f"  KL {bound}{figure(outlier.kl)}  " for outlier in shown]
    indent = max(map(cell_len, labels))
    room = max(console.width - indent, 1)
    for label, outlier in zip(labels, shown, strict=True):
        context = in_context(outlier, room, alphabet)
        print_line(Text.assemble(f"{label:<{indent}}", context), console)
        for expected in _expected(report, outlier, room, alphabet):
            print_line(Text.assemble(" " * indent, expected), console)
    console.print()


def _expected(report: Report, outlier: Outlier, room: int, alphabet: Alphabet) -> list[Text]:
    """What each model finds most probable, on one line if that has the room."""
    tops = {"reference": outlier.top_reference, "candidate": outlier.top_candidate}
    names = _brief_names(report)
    said: list[Text] = []
    for most in range(_MOST if room >= _ROOM_FOR_MORE else 1, 0, -1):
        said = [_choices(names[role], top[:most]) for role, top in tops.items() if top]
        whole = alphabet.spell_styled(Text("  →  ").join(said))
        if whole.cell_len <= room:
            return [whole]
    return [Text.assemble("→ " if place else "", one) for place, one in enumerate(said)]


def _brief_names(report: Report) -> Mapping[str, str]:
    """Names for a line that has two of them: the roles where nothing else that short does."""
    names = {r: keep_start(n, _LONGEST_NAME) for r, n in short_names(report.models).each.items()}
    return names if len(set(names.values())) == len(names) else {role: role for role in names}


def _choices(name: str, top: Sequence[tuple[str, float]]) -> Text:
    """A model and its most probable tokens."""
    tokens = [f"{keep_start(visible(one), _LONGEST_TOKEN)} {_in_percent(p)}" for one, p in top]
    return Text.assemble((name, "dim"), " ", "  ".join(tokens))


def _in_percent(probability: float) -> str:
    """A probability in percent; what is not sure never reads 100."""
    share = 100 * probability
    if share > 99.5:
        return f"{min(share, 99.9) if share < 100 else share:.3g} %"
    return f"{share:.0f} %" if share >= 9.5 else f"{share:.1g} %"
