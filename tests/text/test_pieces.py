"""A long text is tokenised piece by piece, and has the tokens of the whole."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from klcli.text import pieces, vocabulary
from klcli.text.pieces import encode_pieces
from klcli.text.vocabulary import Encoding, Vocabulary
from tests.text import tokenizer_kinds

SIZE, OVERLAP = 300, 160
WORDS = (
    "the|fox|ab|The|東京|🙂|🙃|e\u0301|123|4567|x_y|+=|2;|ﬁn|http://a.b/c?d|don't|<s>|</s>|##ab|▁|"
    "[MASK]|İ|ß|\x01|\u200b|\u00a0|"
)


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "PIECE", SIZE)
    monkeypatch.setattr(pieces, "OVERLAP", OVERLAP)


def long_texts(count: int) -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(count):
        ends = rng.choices(["", "", "\n", " ", "\r\n", "\n\n\t"], k=rng.randint(100, 900))
        text = " ".join(rng.choice(WORDS.split("|")) + end for end in ends)
        yield text + " \n" * rng.choice([0, 0, 0, 500])


def whole(tokens: Vocabulary, text: str, monkeypatch: pytest.MonkeyPatch) -> Encoding:
    with monkeypatch.context() as patch:
        patch.setattr(vocabulary, "PIECE", len(text))
        return tokens.encode(text)


def borders(tokenizer: Tokenizer, text: str) -> list[int]:
    """Where the pieces of a text end."""
    spanned = Vocabulary(tokenizer, bos_id=None, eos_id=None)._spanned
    read = tokenizer.encode_batch
    return [piece.stop for piece in encode_pieces(text, read, lambda: spanned, SIZE)]


@pytest.mark.parametrize("kind", list(tokenizer_kinds.MAKERS))
def test_pieces_have_the_tokens_bytes_and_words_of_the_whole(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokenizer_kinds.vocabulary(kind)
    cuts = 0
    for text in long_texts(25):
        found, expected = tokens.encode(text), whole(tokens, text, monkeypatch)
        np.testing.assert_array_equal(found.ids, expected.ids)
        if kind != "byte-level-nfc":  # the whole tells bytes by the offsets if one character is new
            np.testing.assert_array_equal(found.ends, expected.ends)
        np.testing.assert_array_equal(found.words, expected.words)
        cuts += len(borders(tokenizer_kinds.MAKERS[kind](), text)) - 1
    assert cuts > 100


def test_pieces_tile_the_text() -> None:
    (text,) = long_texts(1)
    tokens = tokenizer_kinds.vocabulary("byte-level")
    read = tokenizer_kinds.MAKERS["byte-level"]().encode_batch
    found = list(encode_pieces(text, read, lambda: tokens._spanned, SIZE))
    assert len(found) > 3
    assert [piece.start for piece in found] == [0, *(piece.stop for piece in found[:-1])]
    assert found[-1].stop == len(text)


def test_no_piece_ends_where_a_token_could_run_across() -> None:
    """Here "e f" is one token: a space behind an e is no place to cut, even in front of a g."""
    names = {name: number for number, name in enumerate(["e", "f", "g", "h", " ", "e ", "e f"])}
    spanning = Tokenizer(models.BPE(names, [("e", " "), ("e ", "f")]))
    rng = random.Random(0)
    text = "".join(rng.choice(["e f", "e g", "gh ", "f ", "h "]) for _ in range(1000))
    ends = borders(spanning, text)[:-1]
    assert ends
    assert all(text[end - 1] in "fgh" and text[end] == " " for end in ends)
    assert borders(spanning, "e g" * 1000) == [3000]


def test_a_text_without_white_space_is_one_piece() -> None:
    assert borders(tokenizer_kinds.MAKERS["llama-2"](), "thefox" * 500) == [3000]


def test_a_piece_reaches_over_a_stretch_without_a_place_to_cut() -> None:
    text = "the fox " * 100 + "ab" * 600 + " the fox" * 100
    ends = borders(tokenizer_kinds.MAKERS["wordpiece"](), text)
    assert 2 < len(ends) < len(text) / SIZE
    assert not [end for end in ends if 800 < end < 2000]
