"""Documents as tokens: drawn at random, whole, and scored where they have answers."""

import numpy as np
import pytest

from klcli.align.tokenising import Tokenised, tokenise
from klcli.errors import CorpusError
from klcli.text.corpus import Corpus, Document, Part
from klcli.text.vocabulary import Encoding


def by_character(document: Document) -> Encoding:
    ids = np.frombuffer(document.content, dtype=np.uint8).astype(np.int32)
    ends = np.arange(1, len(ids) + 1)
    return Encoding(ids=ids, ends=ends, words=np.zeros_like(ids))


def by_two(document: Document) -> Encoding:
    ends = np.minimum(np.arange(2, len(document.content) + 2, 2), len(document.content))
    return Encoding(ids=ends.astype(np.int32), ends=ends, words=np.zeros_like(ends))


def corpora() -> list[Corpus]:
    return [
        Corpus(
            name=name,
            sha256="",
            documents=tuple(
                Document(name=f"{name}#{n}", content=b"x" * (n % 7 + 1)) for n in range(20)
            ),
        )
        for name in ("a", "b")
    ]


def drawn(most: int, seed: int = 0) -> Tokenised:
    return tokenise(corpora(), by_character, most=most, seed=seed)


def names(found: Tokenised) -> list[str]:
    return [document.name for document in found.documents]


def test_without_a_limit_every_document_is_there_in_order() -> None:
    found = tokenise(corpora(), by_character)
    assert names(found) == [d.name for one in corpora() for d in one.documents]


def test_documents_are_drawn_whole_until_there_are_enough_tokens() -> None:
    found = drawn(30)
    lengths = [len(document.ids) for document in found.documents]
    assert 30 <= sum(lengths) < 30 + 7
    assert lengths == [int(name.split("#")[1]) % 7 + 1 for name in names(found)]


def test_the_same_seed_draws_the_same_documents_and_another_others() -> None:
    assert names(drawn(30)) == names(drawn(30))
    assert names(drawn(30)) != names(drawn(30, seed=1))


def test_what_is_drawn_stands_in_the_order_of_the_text() -> None:
    every = [d.name for one in corpora() for d in one.documents]
    places = [every.index(name) for name in names(drawn(60))]
    assert places == sorted(places)


def test_a_corpus_keeps_the_documents_that_were_drawn() -> None:
    found = drawn(60)
    kept = [document.name for corpus in found.corpora for document in corpus.documents]
    assert kept == names(found)
    assert [found.corpora[d.corpus].name for d in found.documents] == [
        name.split("#")[0] for name in names(found)
    ]


def asked(prompt: int, answer: int) -> Document:
    given = Part(start=0, stop=prompt, role="prompt", turn=1, is_scored=False)
    scored = Part(start=prompt, stop=prompt + answer, role="completion", turn=1, is_scored=True)
    return Document(name=f"p{prompt}", content=b"x" * (prompt + answer), parts=(given, scored))


def test_an_answer_into_which_a_token_runs_is_left_out_counted_and_named() -> None:
    corpus = Corpus(name="a", sha256="", documents=(asked(4, 4), asked(3, 4)))
    found = tokenise([corpus], by_two)
    assert [int(document.is_scored.sum()) for document in found.documents] == [2, 0]
    (notice,) = found.notices
    assert notice.code == "left_out"
    assert notice.message.startswith("1 answer is left out")
    assert "p3 (turn 1)" in notice.message


def test_without_any_answer_left_nothing_is_scored() -> None:
    corpus = Corpus(name="a", sha256="", documents=(asked(3, 4),))
    with pytest.raises(CorpusError, match="nothing to score: 1 answer is left out"):
        tokenise([corpus], by_two)
