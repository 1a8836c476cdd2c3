"""Tokens are found in the text that they were made from, however their tokenizer writes them."""

import pytest

from klcli.text.locating import Marks, NotLocatedError, locate


def test_case_and_accents_do_not_count() -> None:
    assert locate(["na", "ive"], " Na\u00efve", in_one_word=False) == [(1, 3), (3, 6)]


def test_a_character_that_folds_to_two_belongs_to_one_token() -> None:
    assert locate(["stras", "se"], "Stra\u00dfe", in_one_word=False) == [(0, 5), (4, 6)]


def test_an_unknown_token_covers_what_its_neighbours_leave() -> None:
    assert locate(["a", None, "b"], "a\u2603\u2603b", in_one_word=True) == [(0, 1), (1, 3), (3, 4)]
    assert locate([None], "\u2603", in_one_word=True) == [(0, 1)]


def test_moses_writes_some_characters_as_html_does() -> None:
    assert locate(["don", "&apos;t"], "don't", in_one_word=True) == [(0, 3), (3, 5)]


def test_a_token_that_is_not_in_the_text_is_an_error() -> None:
    with pytest.raises(NotLocatedError, match="'x' at character 2"):
        locate(["a", "x"], "a b", in_one_word=False)


def test_only_in_a_word_may_characters_be_missing() -> None:
    assert locate(["a", "c"], "abc", in_one_word=True) == [(0, 1), (2, 3)]
    with pytest.raises(NotLocatedError):
        locate(["a", "c"], "abc", in_one_word=False)


@pytest.mark.parametrize(
    ("tokens", "mark", "read", "words"),
    [
        (["the", "cat", "##s"], "##", [b" the", b" cat", b"s"], [True, True, False]),
        (["the", "ca@@", "ts"], "@@", [b"the ", b"ca", b"ts "], [True, True, False]),
        (["the</w>", "ca", "ts</w>"], "</w>", [b"the ", b"ca", b"ts "], [True, True, False]),
        (["\u2581the", "\u2581cat", "s"], "\u2581", [b" the", b" cat", b"s"], [True, True, False]),
        (["M", "K", "T"], "", [b"M", b"K", b"T"], [True, True, True]),
    ],
)
def test_marks_tell_where_words_begin(
    tokens: list[str], mark: str, read: list[bytes], words: list[bool]
) -> None:
    marks = Marks.of(tokens)
    assert marks.mark == mark
    assert [marks.bytes_of(token) for token in tokens] == read
    before = [None, *tokens[:-1]]
    assert [marks.begins_word(*pair) for pair in zip(tokens, before, strict=True)] == words
