"""The tokens by kind: how much each slice of them differs, and what it carries of the whole."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from klcli.choices import SliceBy
from klcli.judge.clusters import Floats
from klcli.judge.marks import addresses, marked, matches_of
from klcli.judge.parts import (
    Numbers,
    by_generated,
    by_role,
    by_turn,
    powers_of_four,
)
from klcli.judge.patterns import NamedPattern
from klcli.judge.plain import known
from klcli.judge.report import Slice
from klcli.measure.scores import CONFIDENCE_EDGES, TokenScores
from klcli.text.vocabulary import NumberedTokens, TokenNames
from klcli.text.windows import WindowTable

KINDS = (
    "word start", "continuation", "digits", "punctuation", "whitespace", "non-ASCII", "URL",
    "special",
)  # fmt: skip
_START, _CONTINUATION, _DIGITS, _PUNCTUATION, _SPACE, _NON_ASCII, _URL, _SPECIAL = range(len(KINDS))

_MATCHED = 0
"""The slice of the tokens that a pattern matches; all others are in the one behind it."""


def slice_tokens(
    scores: TokenScores,
    table: WindowTable,
    names: TokenNames,
    patterns: Sequence[NamedPattern] = (),
) -> list[Slice]:
    """Every slice that holds a token, by each of the ways that ``SliceBy`` names.

    Excluded tokens are in none, and those whose text is not known in no kind of text. What
    ``patterns`` match is a slice each, be there any or not; a token can be in several of them.
    """
    found: list[Slice] = []
    for by, labels, number in _divisions(scores, table, names):
        _leave_out_excluded(number, scores)
        found += (one for one in _measure(by, labels, number, scores) if one.tokens)
    if not isinstance(names, NumberedTokens):
        found += (_matched(one, scores, table, names) for one in patterns)
    return found


def _leave_out_excluded(number: Numbers, scores: TokenScores) -> None:
    for rows, part in scores.blocks():
        number[rows][part["excluded"]] = -1


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
    if table.has_parts:
        yield "role", *by_role(table)
        yield "turn", *by_turn(table)
        yield "generated", *by_generated(table)


def _matched(
    one: NamedPattern, scores: TokenScores, table: WindowTable, names: TokenNames
) -> Slice:
    """What a pattern matches; its share is one of all tokens, for the others are a slice too."""
    is_matched = marked(table, names, matches_of(one.pattern))
    number = np.where(is_matched, _MATCHED, _MATCHED + 1).astype(np.int8)
    _leave_out_excluded(number, scores)
    matched, _ = _measure("regex", (one.name, "others"), number, scores)
    return matched


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
    labels, starts = powers_of_four(longest)
    of_row = (np.searchsorted(starts, np.arange(longest), side="right") - 1).astype(np.int8)
    rows = [of_row[w.rows] for w in table.windows]
    return labels, np.concatenate(rows)


def _by_kind(scores: TokenScores, table: WindowTable, names: TokenNames) -> Numbers:
    """By what a token is by itself, where its word begins, and whether an address runs there."""
    kinds = dict.fromkeys(_special_ids(names), _SPECIAL)
    number = np.empty(len(scores), dtype=np.int8)
    in_address = marked(table, names, addresses)
    for rows, part in scores.blocks():
        ids, place = np.unique(part["token_id"], return_inverse=True)
        for token_id in set(ids.tolist()) - set(kinds):
            kinds[token_id] = _kind_of(names.bytes_of(token_id)) if token_id >= 0 else -1
        kind = np.array([kinds[token_id] for token_id in ids.tolist()], dtype=np.int8)[place]
        is_word = ((kind == _START) | (kind == _CONTINUATION)) & (part["words"] >= 0)
        kind[is_word] = np.where(part["words"][is_word] > 0, _START, _CONTINUATION)
        kind[(kind >= 0) & (kind != _SPECIAL) & in_address[rows]] = _URL
        number[rows] = kind
    return number


def _special_ids(names: TokenNames) -> Iterable[int]:
    """Tokens that stand for no text, such as those between the turns of a chat."""
    return map(int, getattr(names, "control_ids", ()))


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


def _measure(
    by: SliceBy, labels: Sequence[str], number: Numbers, scores: TokenScores
) -> Iterator[Slice]:
    """Tokens, means and share of each slice."""
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
    for place in range(len(labels)):
        means: dict[str, float | None] = {}
        for name, n, total in zip(columns, tokens[:, place], sums[:, place], strict=True):
            means[name] = known(total / n) if n else None
            if name == columns[0]:
                means["share"] = known(shares[place])
        yield Slice(by=by, slice=labels[place], tokens=int(counts[place]), means=means)


def _shares(sums: Floats) -> Floats:
    """What each slice carries of the whole; NaN where that is 0 or not finite."""
    total = float(sums.sum())
    return sums / total if math.isfinite(total) and total > 0 else np.full(len(sums), np.nan)
