"""Slices: what kind of token each is, and what each slice carries of the whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from klcli.judge.report import Slice
from klcli.judge.slices import KINDS, slice_tokens
from klcli.measure.scores import TokenScores, empty_columns
from klcli.text.corpus import Corpus, Document
from klcli.text.vocabulary import Encoding, NamedTokens, NumberedTokens, TokenNames
from klcli.text.windows import TokenizedDocument, Window, WindowTable

PIECES = ["See", " the", " cat", "tery", " 42", "3.14", " =", "\n", " caf\u00e9", " x2"]


def table_of(
    pieces: list[str], *, context: int = 100, text_known: bool = True, score_from: int = 0
) -> WindowTable:
    """One document of these tokens, each scored once."""
    ids = np.arange(len(pieces))
    ends = np.cumsum([len(piece.encode()) for piece in pieces])
    text = "".join(pieces)
    starts_word = [bool(piece.strip()) and (i == 0 or piece[0].isspace() or pieces[i - 1] == "\n")
                   for i, piece in enumerate(pieces)]  # fmt: skip
    encoding = Encoding(ids=ids, ends=ends, words=np.array(starts_word).astype(np.int32))
    document = TokenizedDocument(
        corpus=0, name="text", ids=ids, encoding=encoding if text_known else None
    )
    windows = tuple(
        Window(document=0, inputs=ids[start : start + context], score_from=score_from,
               targets=ids[start : start + context], position=start)
        for start in range(0, len(ids), context)
    )  # fmt: skip
    source = Document(name="text", content=text.encode())
    corpus = Corpus(name="text", sha256="", documents=(source,))
    return WindowTable(
        documents=(document,), windows=windows, corpora=(corpus,) if text_known else ()
    )


def scores_of(table: WindowTable, *, paired: bool = True, **given: Any) -> TokenScores:
    """Scores of 1 nat for every token where nothing is given."""
    columns = empty_columns(table, paired=paired)
    ones = dict.fromkeys(("kl", "nll_reference", "nll_candidate", "nll"), 1.0)
    for name, values in (ones | given).items():
        if name in columns:
            filled = np.broadcast_to(np.asarray(values), (table.tokens,))
            columns.write(name, np.arange(table.tokens), np.array(filled))
    return TokenScores(columns)


def names_of(pieces: list[str]) -> NamedTokens:
    return NamedTokens(
        size=len(pieces), token_bytes={i: piece.encode() for i, piece in enumerate(pieces)}
    )


def sliced(by: str, table: WindowTable, names: TokenNames, **given: Any) -> Mapping[str, Slice]:
    found = slice_tokens(scores_of(table, **given), table, names)
    return {one.slice: one for one in found if one.by == by}


def kind_of(pieces: list[str], token: int, *, text_known: bool = True) -> str:
    """The kind of the one token that has any KL."""
    table = table_of(pieces, text_known=text_known)
    kl = np.eye(len(pieces))[token]
    found = sliced("kind", table, names_of(pieces), kl=kl)
    (kind,) = (name for name, one in found.items() if one.means["kl"])
    return kind


@pytest.mark.parametrize("text_known", [True, False])
@pytest.mark.parametrize(
    ("token", "kind"),
    [
        (1, "word start"), (2, "word start"), (3, "continuation"), (4, "digits"), (5, "digits"),
        (6, "punctuation"), (7, "whitespace"), (8, "non-ASCII"), (9, "word start"),
    ],
)  # fmt: skip
def test_a_token_is_of_the_kind_that_it_reads_like(token: int, kind: str, text_known: bool) -> None:
    assert kind_of(PIECES, token, text_known=text_known) == kind


def test_a_word_without_a_space_before_it_starts_where_the_text_says_so() -> None:
    assert kind_of(["\n", "When"], 1) == "word start"
    assert kind_of(["\n", "When"], 1, text_known=False) == "continuation"


@pytest.mark.parametrize("text_known", [True, False])
@pytest.mark.parametrize(
    ("pieces", "inside"),
    [
        ([" see", " https", "://", "example", ".org", "/a", ".", " Then"], {1, 2, 3, 4, 5}),
        (["(", "www", ".", "x", ".org", ")", "."], {1, 2, 3, 4}),
        (["http", " is", " no", " address"], set()),
    ],
)
def test_addresses_are_found_in_the_text(
    pieces: list[str], inside: set[int], text_known: bool
) -> None:
    kinds = [kind_of(pieces, token, text_known=text_known) for token in range(len(pieces))]
    assert {i for i, kind in enumerate(kinds) if kind == "URL"} == inside


def test_tokens_that_have_only_a_number_are_of_no_kind() -> None:
    table = table_of(PIECES, text_known=False)
    assert sliced("kind", table, NumberedTokens(size=10)) == {}
    assert len(sliced("position", table, NumberedTokens(size=10))) > 0


def test_positions_are_rows_of_the_window() -> None:
    table = table_of(["a"] * 150, context=75)
    found = sliced("position", table, names_of(["a"] * 150))
    tokens = {name: one.tokens for name, one in found.items()}
    assert tokens == {"0": 2, "1–3": 6, "4–15": 24, "16–63": 96, "64–255": 22}


def test_positions_count_what_was_read_before_scoring_began() -> None:
    table = table_of(["a"] * 5, score_from=256)
    found = sliced("position", table, names_of(["a"] * 5))
    assert {name: one.tokens for name, one in found.items()} == {"256–1023": 5}


def test_confidence_falls_into_the_bins_of_the_outliers() -> None:
    confidence = [0.0, 0.2, 0.25, 0.6, 0.9, 0.95, 0.99, 1.0, 0.5, np.nan]
    found = sliced(
        "confidence", table_of(PIECES), names_of(PIECES), confidence_reference=confidence
    )
    assert {name: one.tokens for name, one in found.items()} == {
        "0–0.25": 2, "0.25–0.5": 1, "0.5–0.75": 2, "0.75–0.95": 1, "0.95–1": 3,
    }  # fmt: skip


@pytest.mark.parametrize("by", ["confidence", "position", "kind"])
def test_slices_are_parts_of_the_whole(by: str) -> None:
    rng = np.random.default_rng(0)
    kl, nll = rng.lognormal(size=10), rng.lognormal(size=10)
    found = sliced(
        by, table_of(PIECES), names_of(PIECES), kl=kl, nll_reference=nll,
        confidence_reference=rng.random(10),
    )  # fmt: skip
    rows = [(one.tokens, one.means) for one in found.values()]
    assert sum(tokens for tokens, _ in rows) == 10
    assert sum(means["share"] or 0 for _, means in rows) == pytest.approx(1)
    assert sum(n * (means["kl"] or 0) for n, means in rows) == pytest.approx(kl.sum())
    assert sum(n * (means["nll_reference"] or 0) for n, means in rows) == pytest.approx(nll.sum())


def test_excluded_tokens_are_in_no_slice() -> None:
    excluded = np.arange(10) == 3
    kl = np.where(excluded, np.nan, 1.0)
    found = slice_tokens(
        scores_of(table_of(PIECES), kl=kl, excluded=excluded), table_of(PIECES), names_of(PIECES)
    )
    assert {one.by: 0 for one in found}.keys() == {"confidence", "position", "kind"}
    assert "continuation" not in {one.slice for one in found}
    assert {one.means["kl"] for one in found} == {1.0}


def test_what_is_not_known_of_one_token_is_not_known_of_its_slice() -> None:
    nll = np.where(np.arange(10) == 4, np.nan, 1.0)
    found = sliced("kind", table_of(PIECES), names_of(PIECES), nll_candidate=nll)
    assert found["digits"].means["nll_candidate"] is None
    assert found["word start"].means["nll_candidate"] == 1


def test_equal_models_have_no_shares() -> None:
    found = sliced("kind", table_of(PIECES), names_of(PIECES), kl=0.0)
    assert {one.means["share"] for one in found.values()} == {None}


def test_one_model_has_slices_of_its_nll() -> None:
    found = sliced("kind", table_of(PIECES), names_of(PIECES), paired=False)
    assert set(found) <= set(KINDS)
    assert found["digits"].means == {"nll": 1, "share": 0.2}


@dataclass(frozen=True, slots=True)
class WithSpecial:
    """Names of tokens of which some are special."""

    named: NamedTokens
    control_ids: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        return self.named.size

    def bytes_of(self, token_id: int) -> bytes:
        return self.named.bytes_of(token_id)


def test_special_tokens_are_a_kind_of_their_own() -> None:
    pieces = ["<|im_start|>", "user", " www.x.org", "<|im_end|>", "/a"]
    names = WithSpecial(named=names_of(pieces), control_ids=np.array([0, 3]))
    found = sliced("kind", table_of(pieces), names, kl=np.array([3.0, 1, 1, 4, 1]))
    assert found["special"].tokens == 2
    assert found["special"].means == {
        "kl": 3.5, "share": 0.7, "nll_reference": 1.0, "nll_candidate": 1.0,
    }  # fmt: skip
    assert sum(one.tokens for one in found.values()) == 5
