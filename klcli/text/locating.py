"""Where tokens lie in a text, for tokenizers that do not say: their strings are matched with it."""

import html
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""First character and the one after the last."""

_MARKS = ("##", "</w>", "@@", "\u2581", "\u0120")


class NotLocatedError(ValueError):
    """A token that is nowhere in the text where it should be."""


@dataclass(frozen=True, slots=True)
class Marks:
    """How the tokens of a vocabulary write where words begin or end.

    ``mark`` is ``##`` before a piece inside of a word, ``@@`` behind one, ``</w>`` at the end of a
    word, one that stands for a space, or empty where every token is a word.
    """

    mark: str

    is_of_bytes = False

    @classmethod
    def of(cls, tokens: Iterable[str]) -> "Marks":
        """The mark that the most tokens have."""
        counts = dict.fromkeys(_MARKS, 0)
        for token in tokens:
            for mark in _MARKS:
                counts[mark] += len(token) > len(mark) and mark in (
                    token[: len(mark)],
                    token[-len(mark) :],
                )
        best = max(counts, key=lambda mark: counts[mark])
        return cls(best if counts[best] else "")

    def text_of(self, token: str) -> str:
        """The token without its mark."""
        return token.removeprefix(self.mark).removesuffix(self.mark) if self.mark else token

    def begins_word(self, token: str, before: str | None) -> bool:
        """Whether a word begins in a token that stands behind another, or is the first."""
        if before is None or not self.mark:
            return True
        if self.mark == "##":
            return not token.startswith("##")
        if self.mark == "@@":
            return not before.endswith("@@")
        if self.mark == "</w>":
            return before.endswith("</w>")
        return token.startswith(self.mark)

    def bytes_of(self, token: str) -> bytes:
        """The text of a token, with a space where a word begins or ends."""
        text, ends = self.text_of(token), self.mark in ("</w>", "@@")
        if not self.mark or not self._is_border(token):
            return text.encode()
        return f"{text} ".encode() if ends else f" {text}".encode()

    def _is_border(self, token: str) -> bool:
        if self.mark in ("##", "@@"):
            return not (token.startswith(self.mark) or token.endswith(self.mark))
        return self.mark in token


def locate(tokens: Sequence[str | None], text: str, *, in_one_word: bool) -> list[Span]:
    """The span of each token in a text.

    Case, accents, white space and the form of characters do not count: tokenizers change them. A
    None is an unknown token; it covers what the tokens around it leave. Where the text is one word
    characters may be missing from the tokens.

    Raises:
        NotLocatedError: a token is not where the one before it ends.
    """
    folded, places = _folded(text)
    found: list[Span | None] = []
    cursor = 0
    for token in tokens:
        options = [] if token is None else [part for part in _forms(token) if part]
        if not options:
            found.append(None)
            continue
        may_skip = in_one_word or (len(found) > 0 and found[-1] is None)
        starts = [(_find(folded, part, cursor, may_skip), part) for part in options]
        hits = [(start, part) for start, part in starts if start >= 0]
        if not hits:
            raise NotLocatedError(f"{token!r} at character {places[cursor]}")
        start, part = min(hits)
        cursor = start + len(part)
        found.append((places[start], places[cursor - 1] + 1))
    return _filled(found, text)


def _find(folded: str, part: str, cursor: int, may_skip: bool) -> int:
    if may_skip:
        return folded.find(part, cursor)
    return cursor if folded.startswith(part, cursor) else -1


def _forms(token: str) -> list[str]:
    """What a token may stand for: Moses writes some characters as HTML does, or between ``@``."""
    return list(dict.fromkeys(_folded(form)[0] for form in (token, html.unescape(token))))


def _folded(text: str) -> tuple[str, list[int]]:
    """What counts of a text, and the character that each of it comes from, and the end."""
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        for one in unicodedata.normalize("NFKD", character).casefold():
            if not one.isspace() and unicodedata.category(one) not in ("Mn", "Cc", "Cf"):
                characters.append(one)
                places.append(place)
    return "".join(characters), [*places, len(text)]


def _filled(found: Sequence[Span | None], text: str) -> list[Span]:
    """The spans, an unknown token from the end of the one before to the begin of the next.

    The white space before that belongs to the next.
    """
    spans: list[Span] = []
    end = 0
    for number, span in enumerate(found):
        if span is None:
            later = (one[0] for one in found[number + 1 :] if one is not None)
            stop = next(later, len(text))
            span = (end, end + len(text[end:stop].rstrip()))
        spans.append(span)
        end = span[1]
    return spans
