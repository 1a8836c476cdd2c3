"""Which scored tokens are part of something that is found in the text: an address, or a pattern."""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from klcli.judge.clusters import Bools
from klcli.text.vocabulary import IntArray, TokenNames
from klcli.text.windows import TokenizedDocument, WindowTable

Span = tuple[int, int]
"""The first byte of what was found, and the one behind its last."""
Finder = Callable[[bytes], Sequence[Span]]
"""What is looked for in the UTF-8 of a document."""

_ADDRESS = re.compile(rb"(?:https?://|ftp://|www\.)[^\s<>\"'`\x80-\xff]+", re.IGNORECASE)
_CLOSING = b".,;:!?)]}*_"
"""What ends a sentence, not an address."""
_ESCAPED = "surrogateescape"
"""Half a character, at the end of an answer, is decoded so that it keeps its number of bytes."""


def marked(table: WindowTable, names: TokenNames, find: Finder) -> Bools:
    """Which scored tokens overlap something that is found: (tokens,).

    In the text, or where that is not known in what its tokens read like, one after the other.
    """
    texts = _texts(table)
    found = np.zeros(table.tokens, dtype=np.bool_)
    first, current, inside = 0, -1, None
    for window in table.windows:
        if window.document != current:
            current = window.document
            inside = _tokens_found(table.documents[current], texts.get(current), names, find)
        stop = first + len(window.targets)
        if inside is not None:
            found[first:stop] = inside.take(window.positions, mode="clip")
        first = stop
    return found


def addresses(content: bytes) -> list[Span]:
    """Every address such as https://example.org/."""
    return [
        (match.start(), match.start() + len(match[0].rstrip(_CLOSING)))
        for match in _ADDRESS.finditer(content)
    ]


def matches_of(pattern: re.Pattern[str]) -> Finder:
    """What finds every match of a pattern, in characters, by its bytes; empty ones left out."""

    def find(content: bytes) -> list[Span]:
        return list(_matches(pattern, content.decode(errors=_ESCAPED)))

    return find


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[Span]:
    characters = seen = 0
    for match in pattern.finditer(text):
        start, stop = match.span()
        if start == stop:
            continue
        begin = seen + _size(text[characters:start])
        characters, seen = stop, begin + _size(match[0])
        yield begin, seen


def _size(text: str) -> int:
    return len(text.encode(errors=_ESCAPED))


def _texts(table: WindowTable) -> dict[int, bytes]:
    """The text of each document, where a corpus brought it."""
    texts: dict[int, bytes] = {}
    for number, corpus in enumerate(table.corpora):
        own = [i for i, document in enumerate(table.documents) if document.corpus == number]
        if len(own) == len(corpus.documents):
            texts |= {i: d.content for i, d in zip(own, corpus.documents, strict=True)}
    return texts


def _tokens_found(
    document: TokenizedDocument, text: bytes | None, names: TokenNames, find: Finder
) -> Bools | None:
    """Which tokens of a document overlap what is found in it; None where nothing is."""
    content, ends = _read(document, text, names)
    spans = find(content)
    if not spans:
        return None
    found = np.zeros(len(ends), dtype=np.bool_)
    for start, stop in spans:
        first, last = np.searchsorted(ends, (start, stop - 1), side="right")
        found[first : last + 1] = True
    return found


def _read(
    document: TokenizedDocument, text: bytes | None, names: TokenNames
) -> tuple[bytes, IntArray]:
    """The bytes of a document, and where each token ends in them."""
    if text is not None and document.encoding is not None:
        return text, document.encoding.ends
    tokens = [names.bytes_of(token_id) for token_id in document.ids.tolist()]
    return b"".join(tokens), np.cumsum([len(token) for token in tokens])
