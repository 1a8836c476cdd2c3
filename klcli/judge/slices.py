"""The tokens by kind: how much each slice of them differs, and what it carries of the whole."""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from klcli.choices import SliceBy
from klcli.judge.clusters import Bools, Floats
from klcli.judge.report import Slice
from klcli.measure.scores import CONFIDENCE_EDGES, TokenScores
from klcli.text.vocabulary import NumberedTokens, TokenNames
from klcli.text.windows import TokenizedDocument, WindowTable

Numbers = npt.NDArray[np.int8]
"""The slice of each token; -1 for a token that is in none."""

KINDS = (
    "word start", "continuation", "digits", "punctuation", "whitespace", "non-ASCII", "URL",
)  # fmt: skip
_START, _CONTINUATION, _DIGITS, _PUNCTUATION, _SPACE, _NON_ASCII, _URL = range(len(KINDS))

_ADDRESS = re.compile(rb"(?:https?://|ftp://|www\.)[^\s<>\"'`\x80-\xff]+", re.IGNORECASE)
_CLOSING = b".,;:!?)]}*_"
"""What ends a sentence, not an address."""


def slice_tokens(scores: TokenScores, table: WindowTable, names: TokenNames) -> list[Slice]:
    """Every slice that holds a token: by confidence, by position in the window, by kind of text.

    Excluded tokens are in none, and those whose text is not known in no kind of text.
    """
    found: list[Slice] = []
    for by, labels, number in _divisions(scores, table, names):
        for rows, part in scores.blocks():
            number[rows][part["excluded"]] = -1
        found += _measure(by, labels, number, scores)
    return found


def _divisions(
    scores: TokenScores, table: WindowTable, names: TokenNames
) -> Iterator[tuple[SliceBy, Sequence[str], Numbers]]:
    """Each way to slice, with the labels of its slices and the slice of each token."""
    edges = ["0", *(f"{edge:g}" for edge in CONFIDENCE_EDGES), "1"]
    labels = [f"{low}–{high}" for low, high in pairwise(edges)]
    yield "confidence", labels, _by_confidence(scores)
    yield "position", *_by_position(table)
    if not isinstance(names, NumberedTokens):
        yield "kind", KINDS, _by_kind(scores, table, names)


def _by_confidence(scores: TokenScores) -> Numbers:
    """By the largest probability that the reference, or the only model, gives to a token."""
    number = np.empty(len(scores), dtype=np.int8)
    for rows, part in scores.blocks():
        confidence = part["confidence_reference" if scores.paired else "confidence"]
        bins = np.digitize(confidence, CONFIDENCE_EDGES)
        number[rows] = np.where(np.isnan(confidence), -1, bins)
    return number


def _by_position(table: WindowTable) -> tuple[Sequence[str], Numbers]:
    """By the row of the window: 0, 1 to 3, 4 to 15, … ; as many tokens were read before it."""
    longest = max(int(w.rows[-1]) + 1 for w in table.windows)
    starts = [0, 1]
    while starts[-1] < longest:
        starts.append(4 * starts[-1])
    labels = ["0", *(f"{a}–{b - 1}" for a, b in pairwise(starts[1:]))]
    of_row = (np.searchsorted(starts, np.arange(longest), side="right") - 1).astype(np.int8)
    rows = [of_row[w.rows] for w in table.windows]
    return labels, np.concatenate(rows)


def _by_kind(scores: TokenScores, table: WindowTable, names: TokenNames) -> Numbers:
    """By what a token is by itself, where its word begins, and whether an address runs there."""
    kinds: dict[int, int] = {}
    number = np.empty(len(scores), dtype=np.int8)
    in_address = _in_addresses(table, names)
    for rows, part in scores.blocks():
        ids, place = np.unique(part["token_id"], return_inverse=True)
        for token_id in set(ids.tolist()) - set(kinds):
            kinds[token_id] = _kind_of(names.bytes_of(token_id)) if token_id >= 0 else -1
        kind = np.array([kinds[token_id] for token_id in ids.tolist()], dtype=np.int8)[place]
        is_word = ((kind == _START) | (kind == _CONTINUATION)) & (part["words"] >= 0)
        kind[is_word] = np.where(part["words"][is_word] > 0, _START, _CONTINUATION)
        kind[(kind >= 0) & in_address[rows]] = _URL
        number[rows] = kind
    return number


def _kind_of(token: bytes) -> int:
    """What a token is by its own bytes; with a space before it a word starts."""
    if not token.isascii():
        return _NON_ASCII
    text = token.strip()
    if not text:
        return _SPACE
    if any(byte in _LETTERS for byte in text):
        return _START if token[:1].isspace() else _CONTINUATION
    return _DIGITS if any(byte in _FIGURES for byte in text) else _PUNCTUATION


_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_FIGURES = frozenset(b"0123456789")


def _in_addresses(table: WindowTable, names: TokenNames) -> Bools:
    """Which scored tokens are part of an address such as https://example.org/."""
    texts = _texts(table)
    found = np.zeros(table.tokens, dtype=np.bool_)
    first, current, marked = 0, -1, None
    for window in table.windows:
        if window.document != current:
            current = window.document
            marked = _address_tokens(table.documents[current], texts.get(current), names)
        stop = first + len(window.targets)
        if marked is not None:
            found[first:stop] = marked.take(window.positions, mode="clip")
        first = stop
    return found


def _texts(table: WindowTable) -> dict[int, bytes]:
    """The text of each document, where a corpus brought it."""
    texts: dict[int, bytes] = {}
    for number, corpus in enumerate(table.corpora):
        own = [i for i, document in enumerate(table.documents) if document.corpus == number]
        if len(own) == len(corpus.documents):
            texts |= {i: d.content for i, d in zip(own, corpus.documents, strict=True)}
    return texts


def _address_tokens(
    document: TokenizedDocument, text: bytes | None, names: TokenNames
) -> Bools | None:
    """Which tokens of a document an address runs through; None without any address.

    In the text, or where that is not known in what its tokens read like, one after the other.
    """
    if text is not None and document.encoding is not None:
        content, ends = text, document.encoding.ends
    else:
        tokens = [names.bytes_of(token_id) for token_id in document.ids.tolist()]
        content, ends = b"".join(tokens), np.cumsum([len(token) for token in tokens])
    matches = list(_ADDRESS.finditer(content))
    if not matches:
        return None
    marked = np.zeros(len(ends), dtype=np.bool_)
    for match in matches:
        stop = match.start() + len(match[0].rstrip(_CLOSING))
        first, last = np.searchsorted(ends, (match.start(), stop - 1), side="right")
        marked[first : last + 1] = True
    return marked


def _measure(
    by: SliceBy, labels: Sequence[str], number: Numbers, scores: TokenScores
) -> Iterator[Slice]:
    """Tokens, means and share of each slice that holds a token."""
    columns = ("kl", "nll_reference", "nll_candidate") if scores.paired else ("nll",)
    tokens, sums = (np.zeros((len(columns), len(labels))) for _ in range(2))
    for rows, part in scores.blocks():
        inside = number[rows] >= 0
        at_target = inside & (part["token_id"] >= 0)
        for place, name in enumerate(columns):
            chosen = inside if name == "kl" else at_target
            own = number[rows][chosen]
            tokens[place] += np.bincount(own, minlength=len(labels))
            sums[place] += np.bincount(own, weights=part[name][chosen], minlength=len(labels))
    shares = _shares(sums[0])
    counts = [np.count_nonzero(number == place) for place in range(len(labels))]
    for place in np.flatnonzero(counts).tolist():
        means: dict[str, float | None] = {}
        for name, n, total in zip(columns, tokens[:, place], sums[:, place], strict=True):
            means[name] = _known(total / n) if n else None
            if name == columns[0]:
                means["share"] = _known(shares[place])
        yield Slice(by=by, slice=labels[place], tokens=int(counts[place]), means=means)


def _shares(sums: Floats) -> Floats:
    """What each slice carries of the whole; NaN where that is 0 or not finite."""
    total = float(sums.sum())
    return sums / total if math.isfinite(total) and total > 0 else np.full(len(sums), np.nan)


def _known(x: float) -> float | None:
    return None if math.isnan(x) else float(x)
