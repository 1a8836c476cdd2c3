"""A tiny masked LM of every family, random but always the same, with the tokenizer it would have.

The weights come from ``numpy.random.RandomState``, whose streams are frozen, seeded by the name of
each; the tokenizers are trained here, in ways that come out the same on every run.
"""

import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LONGEST = 48
"""How many tokens each model reads, specials among them."""

TEXT = """\
The quick brown fox jumps over the lazy dog, and the dog does not mind at all.
A model that reads both sides of a word can be asked what stands between them.
Where two models predict different things, the difference is measured token by token.
In 1998 the reader's well-known library held 2,450 books about birds and other animals.
She said: "It isn't the measurement that matters; it's what you do with the measurements."
Unbelievable as it seemed, the unhappy painter repainted the painting 37 times (or more).
Nothing is remembered longer than the forgotten thing which someone else remembers.
The weather-beaten lighthouse keeper kept keeping the light until the light was kept for him.
Questions are answered by those who answer, not by those who were questioned.
Walking, talking and thinking: he walked, he talked, and he thought about another walk.
"""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
MARKS = "!\"'(),-.:;?"


@cache
def word_pieces() -> dict[str, int]:
    """A vocabulary of WordPiece: every letter and digit, and the pieces that occur most."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [*LETTERS, *DIGITS, *MARKS]
    inner = [f"##{character}" for character in LETTERS + DIGITS]
    training = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    training.normalizer = normalizers.BertNormalizer()
    training.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers the ## pieces in the order of a hash unless it is given them.
    known = [*specials, *characters, *inner]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=known, show_progress=False)
    training.train_from_iterator(TEXT.splitlines(), trainer)
    vocab: dict[str, int] = training.get_vocab()
    return vocab


@cache
def byte_pairs() -> list[tuple[str, str]]:
    """The merges of a byte-level BPE."""
    training = Tokenizer(models.BPE())
    training.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=440, initial_alphabet=alphabet, show_progress=False)
    training.train_from_iterator(TEXT.splitlines(), trainer)
    merges: list[list[str]] = json.loads(training.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]


def byte_level_vocab(first: list[str], last: list[str]) -> dict[str, int]:
    """The numbers of a byte-level BPE's tokens between special ones."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["".join(pair) for pair in byte_pairs()]
    return {token: number for number, token in enumerate([*first, *bytes_, *merged, *last])}


@cache
def unigram_pieces(*, lowercase: bool) -> list[tuple[str, float]]:
    """Pieces of ▁-words with rounded scores, the likeliest first."""
    training = Tokenizer(models.Unigram())
    if lowercase:
        training.normalizer = normalizers.Lowercase()
    training.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = [*LETTERS, *DIGITS, *MARKS, *([] if lowercase else LETTERS.upper())]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    training.train_from_iterator(TEXT.splitlines(), trainer)
    scores: dict[str, float] = dict(json.loads(training.to_str())["model"]["vocab"])
    del scores["<unk>"]
    # A score's last digits, and so the order of pieces, hang on the order of threads.
    rounded = {piece: round(score, 2) for piece, score in scores.items()}
    rounded |= {character: -12.0 for character in ["▁", *alphabet] if character not in rounded}
    return sorted(rounded.items(), key=lambda item: (-item[1], item[0]))


def word_piece_tokenizer() -> Any:
    """BERT's: lower case, ## inside a word, punctuation apart, [CLS] … [SEP]."""
    return transformers.BertTokenizer(vocab=word_pieces())


def roberta_tokenizer() -> Any:
    """RoBERTa's: byte-level BPE, <s> … </s>, a <mask> that takes the space before it."""
    vocab = byte_level_vocab(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return transformers.RobertaTokenizer(vocab=vocab, merges=byte_pairs(), mask_token=mask)


def modernbert_tokenizer() -> Any:
    """ModernBERT's: byte-level BPE after NFC, [CLS] … [SEP], specials behind the other tokens."""
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    vocab = byte_level_vocab([], specials)
    inner = Tokenizer(models.BPE(vocab, byte_pairs()))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token=AddedToken("[MASK]", lstrip=True, special=True),
    )


def albert_tokenizer() -> Any:
    """ALBERT's: Unigram over lower-case ▁-words, [CLS] … [SEP]."""
    specials = [(token, 0.0) for token in ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")]
    mask = AddedToken("[MASK]", lstrip=True, special=True)
    vocab = [*specials, *unigram_pieces(lowercase=True)]
    return transformers.AlbertTokenizer(vocab=vocab, mask_token=mask)


def deberta_tokenizer() -> Any:
    """DeBERTa's from version 2 on: Unigram over ▁-words, [CLS] … [SEP], [MASK] the last."""
    specials = [(token, 0.0) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    vocab = [*specials, *unigram_pieces(lowercase=False), ("[MASK]", 0.0)]
    return transformers.DebertaV2Tokenizer(vocab=vocab)


SPREAD = 0.4
"""The standard deviation of weights: so wide that no distribution is flat."""
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": LONGEST,
}

MODELS: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "bert": (word_piece_tokenizer, "Bert", SIZES),
    # The position of a token is counted from the number of the padding token on.
    "roberta": (roberta_tokenizer, "Roberta", SIZES | {"max_position_embeddings": LONGEST + 2}),
    "distilbert": (
        word_piece_tokenizer,
        "DistilBert",
        {
            "dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 64,
            "max_position_embeddings": LONGEST,
        },
    ),
    "albert": (albert_tokenizer, "Albert", SIZES | {"embedding_size": 16}),
    "electra": (word_piece_tokenizer, "Electra", SIZES | {"embedding_size": 16}),
    "modernbert": (
        modernbert_tokenizer,
        "ModernBert",
        SIZES | {"local_attention": 16, "global_attn_every_n_layers": 2, "decoder_bias": True},
    ),
    "deberta-v2": (
        deberta_tokenizer,
        "DebertaV2",
        SIZES
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
}
FAMILIES = tuple(MODELS)


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    """Draw every weight anew, biases and those of norms too; its name and the seed decide which."""
    for name, parameter in model.named_parameters():
        random = np.random.RandomState(zlib.crc32(f"seed {seed} {name}".encode()))
        drawn = torch.from_numpy(random.standard_normal(tuple(parameter.shape)) * SPREAD)
        is_gain = parameter.dim() == 1 and name.endswith("weight")
        parameter.copy_(drawn + 1 if is_gain else drawn)


def tiny_masked(family: str, *, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """A model of a family in float32, and its tokenizer; ``changes`` are made to its config."""
    make_tokenizer, name, values = MODELS[family]
    tokenizer = make_tokenizer()
    ids = {
        f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "cls", "sep")
    }
    ids |= {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
    values = {"vocab_size": len(tokenizer)} | ids | values | changes
    config = getattr(transformers, f"{name}Config")(**values)
    model = getattr(transformers, f"{name}ForMaskedLM")(config).eval()
    randomise(model, seed)
    return model, tokenizer


def save_tiny_masked(family: str, folder: Path, *, seed: int = 0, **changes: Any) -> None:
    """Save a model of a family and its tokenizer; seeds make models that differ."""
    model, tokenizer = tiny_masked(family, seed=seed, **changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
