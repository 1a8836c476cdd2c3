"""Every token on a terminal, a line each: made for hundreds of thousands of them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from klcli.judge.report import Report, Tokens
from klcli.measure.columns import Column
from klcli.measure.scores import TokenScores
from klcli.render.alphabet import Alphabet
from klcli.render.layout import alphabet_of, print_line
from klcli.render.numbers import fixed, number
from klcli.render.summary import at_least, scored_tokens
from klcli.render.text import visible

_AT_ONCE = 1000
"""Lines printed together: rich takes several times longer for single ones."""

_NARROWEST, _WIDEST = 4, 24
"""Cells of a column of tokens, by what the console leaves for it."""


class _Shown(NamedTuple):
    """A column of the table: its head, padded to its width, and the padded cells of some rows."""

    head: str
    cells: Callable[[slice], list[str]]


class _Numbers(NamedTuple):
    """Numbers to show: the head, the scores they come from, how one is written, and the width.

    Without a width they are as wide as the largest scores make them: for whole numbers.
    """

    head: str
    scores: Sequence[str]
    write: Callable[..., str]
    width: int | None = None


def _nll(x: float) -> str:
    return fixed(x, 3, 7)


def _rank(rank: int) -> str:
    return "–" if rank < 0 else str(rank)


def _percent(share: float) -> str:
    return fixed(100 * share, 2, 6)


_POSITION = _Numbers("pos", ["position"], str)
_COMPARED = (
    _Numbers("KL", ["kl"], number, 8),
    _Numbers("NLL ref", ["nll_reference"], _nll, 7),
    _Numbers("NLL cand", ["nll_candidate"], _nll, 8),
    _Numbers("Δp %", ["delta_p"], _percent, 6),
    _Numbers("ranks", ["rank_reference", "rank_candidate"], lambda p, q: f"{_rank(p)}/{_rank(q)}"),
)
_SINGLE = (
    _Numbers("NLL", ["nll"], _nll, 7),
    _Numbers("entropy", ["entropy"], _nll, 7),
    _Numbers("rank", ["rank"], _rank),
    _Numbers("top-1 %", ["confidence"], _percent, 7),
)
_COMPARED_TOPS = {"top-1 ref": "top1_reference", "top-1 cand": "top1_candidate"}
_SINGLE_TOPS = {"top-1": "top1"}


def print_tokens(report: Report, console: Console) -> None:
    """Print a row for each scored token, under the names of their documents if there are several.

    KL, NLL and entropy in nats; rank 0 is the most probable token; of two models the reference's
    comes first.

    Raises:
        KlcliError: the report was read from a file, which holds no tokens.
    """
    tokens, alphabet = scored_tokens(report), alphabet_of(console)
    columns = _columns(report, tokens, console.width, alphabet)
    head = " ".join(column.head for column in columns).rstrip()
    for line in (head, alphabet.spell("─") * cell_len(head)):
        print_line(Text(line, "dim"), console)
    documents = _documents(tokens.scores)
    for start, stop in documents:
        if len(documents) > 1:
            console.print(_document_name(tokens, start, console.width, alphabet), no_wrap=True)
        for first in range(start, stop, _AT_ONCE):
            rows = slice(first, min(first + _AT_ONCE, stop))
            lines = [
                " ".join(cells).rstrip()
                for cells in zip(*(column.cells(rows) for column in columns), strict=True)
            ]
            print_line(Text("\n".join(lines)), console)
    console.print()


def _columns(report: Report, tokens: Tokens, width: int, alphabet: Alphabet) -> list[_Shown]:
    paired = tokens.scores.paired
    tops = _COMPARED_TOPS if paired else _SINGLE_TOPS
    position, *numbers = (
        _numbers(
            tokens.scores, one._replace(head=at_least(report, one.scores[0]) + one.head), alphabet
        )
        for one in (_POSITION, *(_COMPARED if paired else _SINGLE))
    )
    used = sum(len(column.head) + 1 for column in (position, *numbers))
    share = (width - used - len(tops)) // (len(tops) + 1)
    room = min(max(share, _NARROWEST), _WIDEST)
    token, *best = (
        _texts(head, tokens.scores[column], tokens.texts, room, alphabet)
        for head, column in {"token": "token_id", **tops}.items()
    )
    return [position, token, *numbers, *best]


def _numbers(scores: TokenScores, numbers: _Numbers, alphabet: Alphabet) -> _Shown:
    head = alphabet.spell(numbers.head)
    columns = [scores[name] for name in numbers.scores]
    largest = numbers.write(*(column.max(initial=0) for column in columns))
    width = numbers.width or max(len(head), len(largest))

    def cells(rows: slice) -> list[str]:
        values = zip(*(column[rows].tolist() for column in columns), strict=True)
        return [f"{alphabet.spell(numbers.write(*value)):>{width}}" for value in values]

    return _Shown(f"{head:>{width}}", cells)


def _texts(
    head: str, ids: Column, texts: Mapping[int, str], width: int, alphabet: Alphabet
) -> _Shown:
    padded = {
        token_id: set_cell_size(alphabet.keep_start(visible(text), width), width)
        for token_id, text in texts.items()
    }

    def cells(rows: slice) -> list[str]:
        return [padded[token_id] for token_id in ids[rows].tolist()]

    return _Shown(set_cell_size(alphabet.keep_start(head, width), width), cells)


def _documents(scores: TokenScores) -> list[tuple[int, int]]:
    """The first row of each document, and the row after its last."""
    starts = np.flatnonzero(np.diff(scores["document"], prepend=-1)).tolist()
    return list(pairwise([*starts, len(scores)]))


def _document_name(tokens: Tokens, row: int, width: int, alphabet: Alphabet) -> Text:
    name = tokens.documents[int(tokens.scores["document"][row])]
    return Text(alphabet.keep_end(visible(name, keep_spaces=True), width), "bold")
