"""The pieces of a text, joined, are the text, whatever a tokenizer writes into them."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from klcli.judge.slices import _kind_of
from klcli.text.vocabulary import Vocabulary

TEXT = "the reader reads 42 letters, the writer writes 7 of them; naïve café readers read"


def trained(
    model: models.Model, trainer: trainers.Trainer, split: pre_tokenizers.PreTokenizer
) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def word_ends() -> Tokenizer:
    """As OpenAI GPT, HerBERT and XLM."""
    tokenizer = trained(
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
        trainers.BpeTrainer(
            vocab_size=120, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
        ),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def clip() -> Tokenizer:
    """Word ends that no decoder takes off."""
    tokenizer = word_ends()
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = trained(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=80, unk_token="<unk>", special_tokens=["<unk>"],
                                show_progress=False),
        pre_tokenizers.Metaspace(prepend_scheme="never"),
    )  # fmt: skip
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer


def llama() -> Tokenizer:
    """Bytes in the place of letters that it does not know, and a mark for the space."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for piece in ["\u2581", *sorted(set(TEXT) - set("ïé "))]:
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def delimited() -> Tokenizer:
    """As those of speech: letters, and a bar between words."""
    letters = {piece: i for i, piece in enumerate(["<unk>", "|", *sorted(set(TEXT) - {" "})])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "|")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.CTC(pad_token="<pad>", word_delimiter_token="|")
    return tokenizer


@pytest.mark.parametrize(
    ("make", "is_exact"),
    [
        (byte_level, True), (metaspace, True), (llama, True), (delimited, True),
        (word_ends, False), (clip, False), (word_piece, False),
    ],
)  # fmt: skip
def test_the_pieces_joined_are_the_text(make: type, is_exact: bool) -> None:
    vocabulary = Vocabulary(make(), bos_id=None, eos_id=None)
    joined = b"".join(vocabulary.bytes_of(int(i)) for i in vocabulary.encode(TEXT).ids).decode()
    if is_exact:
        assert joined == TEXT
    else:  # where white space is lost, it is lost before and after punctuation alone
        assert joined.replace(" ", "") == TEXT.replace(" ", "")
        assert joined.split()[:3] == ["the", "reader", "reads"]


@pytest.mark.parametrize("make", [word_ends, clip])
def test_no_mark_of_a_word_end_is_shown(make: type) -> None:
    vocabulary = Vocabulary(make(), bos_id=None, eos_id=None)
    pieces = [vocabulary.bytes_of(int(i)) for i in vocabulary.encode("42, the").ids]
    assert not any(b"</w>" in piece for piece in pieces)
    digits, punctuation = _kind_of(b"42"), _kind_of(b",")
    assert _kind_of(pieces[0]) == digits
    assert punctuation in [_kind_of(piece) for piece in pieces]
