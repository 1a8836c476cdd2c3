"""A tokenizer as klcli needs it: tokens tile the text, words are counted, meanings compared."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from klcli.errors import MismatchError
from klcli.text.vocabulary import (
    PROBE,
    Encoding,
    NumberedTokens,
    Vocabulary,
    check_same_vocabulary,
    readable,
)
from tests.text import tokenizer_kinds

KINDS = list(tokenizer_kinds.MAKERS)
NAMES = ("left", "right")
WHITE = " \t\n\r\x0b\x0c"

texts = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(WHITE + "abTe🙂東é▁#<>_0")),
    max_size=30,
)


@cache
def vocabulary(kind: str) -> Vocabulary:
    return tokenizer_kinds.vocabulary(kind)


def starts_of(encoding: Encoding) -> list[int]:
    """The byte at which each token begins: where the one before it ended."""
    return [0, *encoding.ends.tolist()][:-1]


def spans(encoding: Encoding, text: str) -> list[bytes]:
    """The bytes of the text that each token covers."""
    if not len(encoding.ids):
        return []
    raw = text.encode()
    bounds = zip(starts_of(encoding), encoding.ends.tolist(), strict=True)
    return [raw[start:end] for start, end in bounds]


# Where tokens lie


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(texts)
@example("")
@example(" ")
@example("  The  cat\r\n\r\nsleeps. ")
@example("e\u0301 🙂 \u3000東京 \ufb01n")
@example("\u200b\ufeff\x01")
@example("İi ẞß ™")
@example(PROBE)
def test_tokens_tile_the_text_in_order(kind: str, text: str) -> None:
    encoding = vocabulary(kind).encode(text)
    assert len(encoding.ids) == len(encoding.ends) == len(encoding.words)
    assert (np.diff(encoding.ends, prepend=0) >= 0).all()
    if len(encoding.ids):
        assert b"".join(spans(encoding, text)) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(texts)
@example(" two  words ")
@example("one\x0btwo\x0cthree")
@example("a\u3000b\u00a0c d")
@example(PROBE)
def test_every_word_begins_in_the_one_token_that_covers_its_first_byte(
    kind: str, text: str
) -> None:
    encoding = vocabulary(kind).encode(text)
    if not len(encoding.ids):
        return
    assert encoding.words.sum() == len(text.split())
    first_bytes = [len(text[: match.start()].encode()) for match in re.finditer(r"\S+", text)]
    for start, end, words in zip(starts_of(encoding), encoding.ends, encoding.words, strict=True):
        assert words == sum(start <= first < end for first in first_bytes)


@settings(deadline=None)
@given(texts)
@example("🙂🙃 東京")
@example(PROBE)
def test_spans_of_byte_level_tokens_are_exact_even_inside_a_character(text: str) -> None:
    byte_level = vocabulary("byte-level")
    encoding = byte_level.encode(text)
    assert spans(encoding, text) == [byte_level.bytes_of(i) for i in encoding.ids.tolist()]


def test_a_character_of_several_byte_level_tokens_is_shared_out_among_them() -> None:
    assert spans(vocabulary("byte-level").encode("🙂"), "🙂") == [b"\xf0\x9f\x99", b"\x82"]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        pytest.param("wordpiece", "  The fox  ", [b"  The", b" fox  "], id="trimmed white space"),
        pytest.param(
            "llama-2", "ab ab", [b"ab", b" ab"], id="the space put in front is no byte of the text"
        ),
        pytest.param(
            "word-level", "The cat dog.", [b"The", b" cat", b" dog", b"."], id="unknown word"
        ),
    ],
)
def test_spans_of_other_tokens_take_up_what_the_tokenizer_trims(
    kind: str, text: str, expected: list[bytes]
) -> None:
    assert spans(vocabulary(kind).encode(text), text) == expected


def test_the_fixtures_corpus_has_exact_spans_and_all_its_words(fixtures: Path) -> None:
    text = (fixtures / "corpus.txt").read_bytes().decode()
    tokenizer = Tokenizer.from_file(str(fixtures / "models" / "reference" / "tokenizer.json"))
    tokens = Vocabulary(tokenizer, bos_id=1, eos_id=1)
    encoding = tokens.encode(text)
    assert len(encoding.ids) == 3585
    assert spans(encoding, text) == [tokens.bytes_of(i) for i in encoding.ids.tolist()]
    assert encoding.words.sum() == len(text.split())
    assert not tokens.adds_bos


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_has_no_tokens(kind: str) -> None:
    encoding = vocabulary(kind).encode("")
    assert len(encoding.ids) == len(encoding.ends) == len(encoding.words) == 0


def test_without_tokens_there_is_no_start_of_a_token() -> None:
    assert len(vocabulary("byte-level").encode("").ends) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_tokenizer_itself(kind: str) -> None:
    tokenizer = tokenizer_kinds.MAKERS[kind]()
    plain = tokenizer.encode(PROBE, add_special_tokens=False).ids
    assert vocabulary(kind).encode(PROBE).ids.tolist() == plain


def test_truncation_and_padding_of_the_tokenizer_are_switched_off() -> None:
    tokenizer = tokenizer_kinds.byte_level()
    whole = tokenizer.encode(PROBE).ids
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=500)
    assert Vocabulary(tokenizer, bos_id=None, eos_id=None).encode(PROBE).ids.tolist() == whole


# Special tokens

SPECIAL = {"byte-level": "</s>", "wordpiece": "[MASK]", "llama-2": "<s>"}


@pytest.mark.parametrize(("kind", "special"), SPECIAL.items(), ids=list(SPECIAL))
def test_the_string_of_a_special_token_is_text_unless_it_is_to_be_parsed(
    kind: str, special: str
) -> None:
    tokens = vocabulary(kind)
    text = f"ab {special} ab"
    special_id = tokenizer_kinds.MAKERS[kind]().token_to_id(special)
    assert special in tokens.special_strings
    assert special_id not in tokens.encode(text).ids
    parsed = tokens.encode(text, parse_special=True)
    assert parsed.ids.tolist().count(special_id) == 1
    assert spans(parsed, text)[parsed.ids.tolist().index(special_id)].strip() == special.encode()
    assert special_id not in tokens.encode(text).ids, "parsing once must not last"


@pytest.mark.parametrize("kind", SPECIAL)
def test_tokens_tile_a_text_with_parsed_special_tokens(kind: str) -> None:
    text = f"{SPECIAL[kind]}🙂 ab{SPECIAL[kind] * 2}\n"
    encoding = vocabulary(kind).encode(text, parse_special=True)
    assert b"".join(spans(encoding, text)) == text.encode()


def test_only_special_tokens_count_as_special_strings() -> None:
    tokenizer = tokenizer_kinds.byte_level()
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tokens = Vocabulary(tokenizer, bos_id=0, eos_id=1)
    assert sorted(tokens.special_strings) == ["</s>", "<s>"]
    assert sorted(tokens.added_tokens().values()) == ["</s>", "<s>", "<tool>"]


def template(single: str, **ids: int) -> Callable[[Tokenizer], Tokenizer]:
    return lambda tokenizer: tokenizer_kinds.with_template(tokenizer, single, **ids)


def byte_level_then_template(tokenizer: Tokenizer) -> Tokenizer:
    """Llama 3's post-processor."""
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), bos])
    return tokenizer


@pytest.mark.parametrize(
    ("prepare", "bos_id", "adds_bos"),
    [
        pytest.param(lambda t: t, 0, False, id="no post-processor"),
        pytest.param(template("<s> $A", **{"<s>": 0}), 0, True, id="BOS in front"),
        pytest.param(template("<s> $A </s>", **{"<s>": 0, "</s>": 1}), 0, True, id="BOS and EOS"),
        pytest.param(template("$A </s>", **{"</s>": 1}), 0, False, id="only EOS behind"),
        pytest.param(template("</s> $A", **{"</s>": 1}), 0, False, id="another token in front"),
        pytest.param(template("<s> $A", **{"<s>": 0}), None, False, id="a model without BOS"),
        pytest.param(byte_level_then_template, 0, True, id="Llama 3"),
    ],
)
def test_adds_bos_says_whether_the_tokenizer_puts_one_in_front(
    prepare: Callable[[Tokenizer], Tokenizer], bos_id: int | None, adds_bos: bool
) -> None:
    tokens = Vocabulary(prepare(tokenizer_kinds.byte_level()), bos_id=bos_id, eos_id=1)
    assert tokens.adds_bos is adds_bos
    assert tokens.encode("The").ids[0] not in (0, 1), "encode itself never adds a token"


@pytest.mark.parametrize(
    ("bos_id", "eos_id", "prefix_id"), [(0, 1, 0), (None, 1, 1), (0, None, 0), (None, None, None)]
)
def test_the_prefix_is_bos_or_else_eos(
    bos_id: int | None, eos_id: int | None, prefix_id: int | None
) -> None:
    tokens = tokenizer_kinds.vocabulary("byte-level", bos_id=bos_id, eos_id=eos_id)
    assert tokens.prefix_id == prefix_id


# What a token reads like


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_plain_text_join_to_the_text(kind: str) -> None:
    text = "The cat sleeps." if kind == "word-level" else "ab a"
    tokens = vocabulary(kind)
    pieces = [tokens.bytes_of(i) for i in tokens.encode(text).ids.tolist()]
    assert b"".join(pieces).lstrip() == text.encode()


def test_the_piece_of_a_byte_fallback_token_is_its_byte() -> None:
    llama = vocabulary("llama-2")
    ids = llama.encode("東").ids.tolist()
    assert [llama.bytes_of(i) for i in ids][-3:] == [b"\xe6", b"\x9d", b"\xb1"]
    assert llama.string(ids[-1]) == "<0xB1>"


def test_a_byte_fallback_string_is_plain_text_to_a_byte_level_tokenizer() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<0xE2>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    assert Vocabulary(tokenizer, bos_id=None, eos_id=None).bytes_of(0) == b"<0xE2>"


@pytest.mark.parametrize(
    ("kind", "token_id", "string", "piece"),
    [
        pytest.param("byte-level", 1, "</s>", b"</s>", id="a special token"),
        pytest.param("wordpiece", 1, "[MASK]", b"[MASK]", id="BERT's special token"),
        pytest.param("word-level", 2, "Ċ", b"\n", id="a newline"),
        pytest.param("word-level", 4, "Ġcat", b" cat", id="a word with its space"),
        pytest.param("llama-2", 285, "▁a", b" a", id="SentencePiece's space"),
        pytest.param("byte-level", 9999, None, b"<id 9999>", id="an id without a token"),
    ],
)
def test_a_token_has_a_string_and_the_bytes_it_stands_for(
    kind: str, token_id: int, string: str | None, piece: bytes
) -> None:
    assert vocabulary(kind).string(token_id) == string
    assert vocabulary(kind).bytes_of(token_id) == piece


def test_a_token_inside_a_word_has_no_space_and_one_that_begins_a_word_has() -> None:
    wordpiece = vocabulary("wordpiece")
    pieces = {wordpiece.string(i): wordpiece.bytes_of(i) for i in range(wordpiece.size)}
    assert pieces["##b"] == b"b"
    assert pieces["b"] == b" b"


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        pytest.param([b" The", b" cat"], " The cat", id="text"),
        pytest.param([b"\xf0\x9f\x99", b"\x82"], "🙂", id="a character in two tokens"),
        pytest.param([b"\xe2\x82"], r"\xe2\x82", id="a part of a character"),
        pytest.param([b"a\x82b"], r"a\x82b", id="a stray byte"),
        pytest.param([], "", id="nothing"),
    ],
)
def test_bytes_that_are_no_character_are_written_in_hexadecimal(
    pieces: list[bytes], text: str
) -> None:
    assert readable(pieces) == text


def test_without_a_tokenizer_a_token_reads_as_its_number() -> None:
    assert NumberedTokens(50).bytes_of(17) == b" #17"
    assert NumberedTokens(50).size == 50


def test_the_size_reaches_to_the_largest_id_even_over_gaps() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    tokens = Vocabulary(tokenizer, bos_id=None, eos_id=None)
    assert tokens.size == 8
    assert tokens.string(3) is None


# Whether two vocabularies mean the same


def words(*tokens: str, added: dict[str, bool] | None = None) -> Vocabulary:
    """A word-level vocabulary; ``added`` says of each added token whether it is special."""
    vocab = {token: number for number, token in enumerate(("<unk>", *tokens))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens([AddedToken(s, special=special) for s, special in (added or {}).items()])
    return Vocabulary(tokenizer, bos_id=None, eos_id=None)


def merging(*merges: tuple[str, str]) -> Vocabulary:
    """Byte-level BPE whose tokens are the alphabet, qu, ui and qui, whatever its merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*alphabet, "qu", "ui", "qui"])}
    tokenizer = Tokenizer(models.BPE(vocab, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Vocabulary(tokenizer, bos_id=None, eos_id=None)


QU_FIRST = (("q", "u"), ("u", "i"), ("qu", "i"))
UI_FIRST = (("u", "i"), ("q", "u"), ("q", "ui"))
NO_QUI = (("u", "i"), ("q", "u"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_made_twice_is_the_same_vocabulary(kind: str) -> None:
    twice = tokenizer_kinds.vocabulary(kind), tokenizer_kinds.vocabulary(kind)
    assert check_same_vocabulary(*twice, NAMES) == []
    assert twice[0].fingerprint == twice[1].fingerprint


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        pytest.param(
            words("cat", "dog", "cow"),
            words("cat", "fox", "hen"),
            r"2 of 4 ids, first id 2 is 'dog' in left and 'fox' in right, "
            r"id 3 is 'cow' in left and 'hen' in right",
            id="other words",
        ),
        pytest.param(
            words("cat", "dog"), words("dog", "cat"), r"2 of 3 ids, first id 1 is", id="other order"
        ),
        pytest.param(
            words("cat"),
            words("cat", "dog"),
            r"1 of 3 ids, first id 2 is None in left and 'dog' in right",
            id="one word more",
        ),
        pytest.param(
            words("cat", "dog"),
            words("cat", added={"<x>": True}),
            r"id 2 is 'dog' in left and '<x>' in right",
            id="a word against an added token",
        ),
    ],
)
def test_a_differing_ordinary_token_is_an_error_that_shows_both(
    left: Vocabulary, right: Vocabulary, message: str
) -> None:
    with pytest.raises(MismatchError, match=message):
        check_same_vocabulary(left, right, NAMES)
    assert left.fingerprint != right.fingerprint


def test_a_differing_word_is_found_from_either_side() -> None:
    with pytest.raises(MismatchError, match="'dog' in left and None in right"):
        check_same_vocabulary(words("cat", "dog"), words("cat"), NAMES)


def test_the_same_tokens_but_another_splitting_is_an_error_with_both_counts() -> None:
    left, right = merging(*QU_FIRST), merging(*NO_QUI)
    counts = len(left.encode(PROBE).ids), len(right.encode(PROBE).ids)
    assert counts[0] < counts[1]
    message = rf"left makes {counts[0]} tokens of a probe text, right {counts[1]}"
    with pytest.raises(MismatchError, match=message):
        check_same_vocabulary(left, right, NAMES)
    assert left.fingerprint != right.fingerprint


def test_merges_that_lead_to_the_same_tokens_are_no_difference() -> None:
    assert check_same_vocabulary(merging(*QU_FIRST), merging(*UI_FIRST), NAMES) == []


def test_another_normalizer_is_an_error_although_the_tokens_are_the_same() -> None:
    lower = tokenizer_kinds.MAKERS["wordpiece"]()
    cased = tokenizer_kinds.MAKERS["wordpiece"]()
    cased.normalizer = None
    sides = [Vocabulary(tokenizer, bos_id=None, eos_id=None) for tokenizer in (lower, cased)]
    with pytest.raises(MismatchError, match="split text differently"):
        check_same_vocabulary(sides[0], sides[1], NAMES)


@pytest.mark.parametrize("special", [True, False], ids=["special", "ordinary added"])
@pytest.mark.parametrize(
    ("left", "right", "notice"),
    [
        pytest.param(
            ["<a>"], ["<b>"], "id 2 is '<a>' in left and '<b>' in right", id="another string"
        ),
        pytest.param([], ["<b>"], "id 2 is None in left and '<b>' in right", id="only in one"),
    ],
)
def test_a_differing_added_token_is_told_but_is_no_error(
    left: list[str], right: list[str], notice: str, special: bool
) -> None:
    sides = [words("cat", added=dict.fromkeys(strings, special)) for strings in (left, right)]
    assert check_same_vocabulary(sides[0], sides[1], NAMES) == [
        f"added or special tokens differ: {notice}"
    ]


def test_of_many_differing_added_tokens_five_are_shown() -> None:
    added = {f"<{number}>": True for number in range(12)}
    [notice] = check_same_vocabulary(words("cat"), words("cat", added=added), NAMES)
    assert notice.count(" is None in left") == 5
    assert notice.endswith("and 7 more")


def test_a_token_that_is_added_on_one_side_and_ordinary_on_the_other_means_the_same() -> None:
    left = words("cat", "<x>")
    right = words("cat", added={"<x>": True})
    assert left.string(2) == right.string(2) == "<x>"
    assert check_same_vocabulary(left, right, NAMES) == []
