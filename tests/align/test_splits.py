"""Two tokenizers of one vocabulary that split a text otherwise are found, on the user's text."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from klcli import perplexity
from klcli.align import align
from klcli.text.datasets import read_dataset
from klcli.text.scope import Scope
from klcli.text.splits import find_splits
from klcli.text.vocabulary import Vocabulary
from tests.align.test_align import Model, vocabulary

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGES = [("1", "9"), ("9", "8"), ("19", "98"), ("o", "n"), ("e", "\u0301"), ("f", "i"), ("O", "n")]


def tokenizer(
    split: pre_tokenizers.PreTokenizer | None = None,
    normalizer: normalizers.Normalizer | None = None,
    dropout: float | None = None,
) -> Vocabulary:
    pieces = [*LETTERS, *LETTERS.upper(), *"0123456789 .,", "\u0301", "é", "ﬁ"]
    pieces += ["".join(pair) for pair in MERGES]
    ids = {piece: number for number, piece in enumerate(["<unk>", *pieces])}
    inner = Tokenizer(models.BPE(ids, MERGES, unk_token="<unk>", dropout=dropout))
    inner.normalizer = normalizer
    inner.pre_tokenizer = split or pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Fuse()
    return Vocabulary(inner, bos_id=None, eos_id=None)


def sequence(*steps: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), *steps])


OTHERWISE: dict[str, tuple[Callable[[], Vocabulary], str]] = {
    "digits one by one": (
        lambda: tokenizer(sequence(pre_tokenizers.Digits(individual_digits=True))),
        "in 1998 he",
    ),
    "camel case": (
        lambda: tokenizer(
            sequence(pre_tokenizers.Split(Regex("[A-Z]"), "isolated")),
        ),
        "go On then",
    ),
    "NFC": (lambda: tokenizer(normalizer=normalizers.NFC()), "cafe\u0301 now"),
    "NFD": (lambda: tokenizer(normalizer=normalizers.NFD()), "café now"),
    "NFKC": (lambda: tokenizer(normalizer=normalizers.NFKC()), "ﬁne day"),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_another_way_of_splitting_is_found_where_the_text_has_it(how: str) -> None:
    make, text = OTHERWISE[how]
    plain, other = tokenizer(), make()
    found = find_splits(plain, other, f"some words {text}")
    assert found is not None
    assert found.differing >= 1
    assert 10 <= found.first < 11 + len(text.encode())
    assert found.pieces[0] != found.pieces[1]
    assert find_splits(plain, other, "some words") is None
    assert find_splits(plain, make(), "") is None


def test_the_number_the_place_and_both_splits_are_told(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("no digits here but 1998 is one and 19 is too")
    digits = tokenizer(sequence(pre_tokenizers.Digits(individual_digits=True)))
    sides = [Model("left", tokenizer(), 100), Model("right", digits, 100)]
    (notice,) = align(sides, [read_dataset(str(path))], Scope()).notices
    assert notice.code == "tokenizers_differ"
    assert "2 of 29 tokens" in notice.message
    assert "first at byte 18" in notice.message
    assert "'1998' in left, '1' '9' '9' '8' in right" in notice.message


def test_a_bos_that_one_side_adds_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("w1 w2 w3 w4")
    with_bos = Model("left", vocabulary(added={"<s>": True}, bos="<s>"))
    without = Model("right", vocabulary(added={"<s>": True}))
    for sides in ([with_bos, without], [without, with_bos]):
        notices = align(sides, [read_dataset(str(path))], Scope(bos="none")).notices
        (notice,) = [one for one in notices if one.code == "bos_differs"]
        assert "of left puts its BOS before a text, and that of right does not" in notice.message


def test_dropout_of_training_is_off() -> None:
    sure, unsure = tokenizer(), tokenizer(dropout=0.9)
    text = "1998 on 1998 on 1998"
    assert unsure.encode(text).ids.tolist() == sure.encode(text).ids.tolist()


def test_a_text_of_unknown_tokens_has_no_bits_per_byte(
    reference: Path, corpus: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    for foreign, is_told in (("", False), ("\u6771 \u4eac " * 400, True)):
        text.write_text(corpus.read_text() + foreign)
        report = perplexity(reference, text)
        share = (report.counts["unknown"] or 0) / (report.counts["tokens"] or 1)
        assert (share > 0.01) == is_told
        assert ("unknown_tokens" in [one.code for one in report.warnings]) == is_told
        assert (report.metrics["bits_per_byte"]["value"] is None) == is_told
        assert report.metrics["nll"]["mean"] is not None
