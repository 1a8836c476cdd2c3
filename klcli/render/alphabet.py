"""What an encoding lacks, spelled in what it has: many a console has no ``‖``, and ASCII no ``é``.

Text that is laid out is spelled by an ``Alphabet`` before its cells are counted. All other text
goes through the handler of errors that ``MISSING`` names.
"""

import codecs
from dataclasses import dataclass

from rich.text import Text

from klcli.render.text import ELLIPSIS, keep_end, keep_start

MISSING = "klcli.spelled"
"""The name of the handler: ``stream.reconfigure(errors=MISSING)``."""

_SPELLED = str.maketrans({
    "✓": "+", "✗": "x", "≠": "!=", "≈": "~", "≥": ">=", "≤": "<=", "±": "+-", "×": "x", "÷": "/",
    "→": "->", "←": "<-", "‖": "||", "−": "-", "–": "-", "—": "-", "…": "...", "·": "_", "•": "*",
    "Δ": "d", "√": "sqrt", "∞": "inf", "◌": "o", "─": "-", "━": "-", "│": "|", "²": "2", "³": "3",
    "‘": "'", "’": "'", "“": '"', "”": '"',
})  # fmt: skip
"""What klcli itself writes. What models and texts hold besides becomes an escape as in Python."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The characters of an encoding, in which a text is spelled and cut to a width."""

    encoding: str = "utf-8"

    def has(self, text: str) -> bool:
        """Whether it has every character of a text."""
        try:
            text.encode(self.encoding)
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    @property
    def between(self) -> str:
        """What stands between the parts of a line."""
        return " · " if self.has("·") else ", "

    def spell(self, text: str) -> str:
        """A text in these characters; as it is where that is all of it."""
        if text.isascii() or self.has(text):
            return text
        return "".join(c if self.has(c) else _spelling(c) for c in text)

    def spell_styled(self, text: Text) -> Text:
        """The same of a text with styles, which stay with what they are about."""
        if self.has(text.plain):
            return text
        whole = Text(style=text.style, justify=text.justify, overflow=text.overflow)
        for part in text.divide(range(1, len(text))):
            start = len(whole)
            whole.append(self.spell(part.plain))
            for span in part.spans:
                whole.stylize(span.style, start, len(whole))
        return whole

    def keep_start(self, text: str, width: int) -> str:
        """A text, or of a longer one as much of its start as fits in ``width`` cells."""
        return keep_start(self.spell(text), width, self.spell(ELLIPSIS))

    def keep_end(self, text: str, width: int) -> str:
        """A text, or of a longer one as much of its end as fits in ``width`` cells."""
        return keep_end(self.spell(text), width, self.spell(ELLIPSIS))


def _spelling(character: str) -> str:
    return character.translate(_SPELLED).encode("ascii", "backslashreplace").decode("ascii")


def _spell(error: UnicodeError) -> tuple[str, int]:
    """What a codec writes where it cannot encode."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(map(_spelling, missing)), error.end


codecs.register_error(MISSING, _spell)
