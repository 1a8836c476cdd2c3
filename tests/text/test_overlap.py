"""The share of n-grams that stand in another text, and documents that are there twice."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from klcli.text.corpus import Document
from klcli.text.duplicates import find_duplicates
from klcli.text.examples import Conversation, Dataset, Example
from klcli.text.overlap import LENGTH, Hashes, check_calibration, hashes_of, share_in
from klcli.text.overlap import n_grams as runs_of

WORDS = [f"word{n}" for n in range(400)]


def n_grams(example: Example) -> Hashes:
    return runs_of(hashes_of(example))


def document(text: str, name: str = "a") -> Document:
    return Document(name=name, content=text.encode())


def dataset(*examples: Example, name: str = "data") -> Dataset:
    return Dataset(name=name, sha256="", examples=examples)


def drawn(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    length = min(LENGTH, len(words))
    return [tuple(words[n : n + length]) for n in range(len(words) - length + 1)] if words else []


@pytest.mark.parametrize("shared", [0, 5, 13, 40, 100])
def test_the_share_is_that_of_a_set_of_word_runs(shared: int) -> None:
    calibration = drawn(500, 0).split()
    own = [*calibration[100 : 100 + shared], *drawn(100 - shared, 1).split()]
    known = {*runs(calibration)}
    expected = sum(run in known for run in runs(own)) / len(runs(own))
    hashes = np.unique(n_grams(document(" ".join(calibration))))
    assert share_in(hashes, n_grams(document(" ".join(own)))) == pytest.approx(expected)


def test_case_and_punctuation_do_not_count_and_order_does() -> None:
    one, other = n_grams(document("The cat, sat!")), n_grams(document("the CAT sat"))
    assert one.tolist() == other.tolist()
    assert one.tolist() != n_grams(document("cat the sat")).tolist()


def test_each_character_of_a_script_without_spaces_is_a_word() -> None:
    assert len(n_grams(document("猫" * 20))) == 20 - LENGTH + 1


@pytest.mark.parametrize("text", ["", "  ", "!?"])
def test_a_text_without_words_shares_nothing(text: str) -> None:
    assert share_in(np.unique(n_grams(document("a b c"))), n_grams(document(text))) == 0


def test_documents_that_were_calibration_text_are_counted_and_the_worst_named() -> None:
    text = drawn(200, 0)
    examples = [document(text, "seen"), document(drawn(200, 1), "new")]
    notice = check_calibration([dataset(*examples)], dataset(document(text), name="calib.txt"))
    assert notice.is_warning
    assert notice.message.startswith(
        "1 of 2 documents shares 10% or more of the 13-grams with calib.txt, seen the most (100%)"
    )


def test_a_short_document_is_found_inside_of_a_longer_text() -> None:
    words = drawn(200, 0).split()
    inside = document(" ".join(words[50:55]), "short")
    notice = check_calibration([dataset(inside)], dataset(document(" ".join(words))))
    assert "short the most (100%)" in notice.message


def test_where_nothing_was_seen_it_is_said_quietly() -> None:
    found = check_calibration([dataset(document(drawn(50, 0)))], dataset(document(drawn(50, 1))))
    assert (found.code, found.is_warning) == ("calibration_checked", False)


def test_of_a_conversation_its_messages_count() -> None:
    text = drawn(60, 0)
    chat = Conversation(name="c", messages=({"role": "user", "content": text},))
    assert n_grams(chat).tolist() == n_grams(document(text)).tolist()


def test_copies_are_counted_and_the_first_is_named_with_its_original() -> None:
    text = drawn(20, 0)
    one, other = (
        dataset(document(text, "a#1"), document(drawn(20, 1), "a#2")),
        document(text, "b#7"),
    )
    (notice,) = find_duplicates([one, dataset(other)])
    assert "1 document is a copy of another, of 3 (first b#7, of a#1)" in notice.message


def test_short_documents_may_be_alike() -> None:
    assert not find_duplicates([dataset(document("yes", "1"), document("yes", "2"))])
