"""Text of models, corpora and file names: made visible and harmless, and cut to a width."""

import unicodedata
from collections.abc import Iterable

from rich.cells import cell_len

ELLIPSIS = "…"
SPACE = "·"
MOST_MARKS = 4
"""Combining marks on one letter: Vietnamese has two, Hebrew with accents up to four."""

_BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
    + "".join(map(chr, [*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
)
"""Printable by their category, yet nothing is seen of them. Variation selectors are among them:
terminals disagree about the width that they give a character."""


def visible(text: str, *, keep_spaces: bool = False) -> str:
    r"""Text that shows everything it holds and can do nothing to what it is shown on.

    A space becomes ``·`` (and a real middle dot ``\xb7``) unless ``keep_spaces``, as for a passage
    of several words. Whatever else cannot be seen becomes an escape as in Python: control
    characters such as ``\x1b`` and ``\n``, text direction and zero width such as ``\u202e``, lone
    surrogates, private and unassigned characters, other spaces and line ends. A combining mark in
    front gets a ``◌`` to stand on, and so leaves what comes before it alone; of a heap of them the
    first few are shown.

    A backslash stays as it is, although ``\n`` may then also be a backslash and an n: bytes that
    are not characters come here as escapes already, and doubling theirs would make them hard to
    read.
    """
    if not keep_spaces:
        text = text.replace(SPACE, _escape(SPACE)).replace(" ", SPACE)
    if not text.isprintable() or not _BLANK.isdisjoint(text):
        text = "".join(c if c.isprintable() and c not in _BLANK else _escape(c) for c in text)
    if not text.isascii():
        text = _few_marks(text)
    return f"◌{text}" if text and _is_mark(text[0]) else text


def keep_start(text: str, width: int, ellipsis: str = ELLIPSIS) -> str:
    """``text``, or of a longer one as much of its start as fits, with an ellipsis: in cells."""
    if cell_len(text) <= width:
        return text
    fitting = _fitting(_characters(text), width - len(ellipsis))
    return "".join(fitting) + ellipsis[: max(width, 0)]


def keep_end(text: str, width: int, ellipsis: str = ELLIPSIS) -> str:
    """``text``, or of a longer one as much of its end as fits, after an ellipsis: in cells."""
    if cell_len(text) <= width:
        return text
    fitting = _fitting(reversed(_characters(text)), width - len(ellipsis))
    return ellipsis[: max(width, 0)] + "".join(reversed(fitting))


def _few_marks(text: str) -> str:
    """Text in which no letter has more marks than any script gives it: the rest are escaped."""
    shown, marks = [], 0
    for character in text:
        marks = marks + 1 if _is_mark(character) else 0
        shown.append(character if marks <= MOST_MARKS else _escape(character))
    return "".join(shown)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _characters(text: str) -> list[str]:
    """The characters, each with the marks that stand on it."""
    characters: list[str] = []
    for character in text:
        if characters and cell_len(character) == 0:
            characters[-1] += character
        else:
            characters.append(character)
    return characters


def _fitting(characters: Iterable[str], width: int) -> list[str]:
    """The first of the characters, as many as fit in ``width`` cells."""
    fitting: list[str] = []
    for character in characters:
        width -= cell_len(character)
        if width < 0:
            break
        fitting.append(character)
    return fitting
