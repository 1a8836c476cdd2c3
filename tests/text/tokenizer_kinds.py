"""One small tokenizer of every kind that models have, written out so that it is always the same."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from klcli.text.vocabulary import Vocabulary

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
GPT_MERGES = [
    ("a", "b"),
    ("Ġ", "a"),
    ("Ġa", "b"),
    ("T", "h"),
    ("Th", "e"),
    ("Ġ", "ð"),
    ("Ġð", "Ł"),
    ("ð", "Ł"),
    ("ðŁ", "Ļ"),  # three of the four bytes of 🙂
    ("æ", "Ŀ"),  # two of the three bytes of 東
    ("Ġ", "æĿ"),
]


def numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def byte_level(
    *, prefix_space: bool = False, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    """GPT-2's kind: tokens of bytes, some of them parts of characters; <s> = 0 and </s> = 1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *alphabet, *("".join(merge) for merge in GPT_MERGES)]
    tokenizer = Tokenizer(models.BPE(numbered(tokens), GPT_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT's kind: lower case, no white space, ## inside a word; [UNK] = 0 and [MASK] = 1."""
    characters = [*LETTERS, *".,:/?=+_0123456789東京[]"]
    tokens = ["[UNK]", "[MASK]", *characters, *(f"##{c}" for c in LETTERS), "the", "fox", "##ab"]
    tokenizer = Tokenizer(models.WordPiece(numbered(tokens), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[MASK]"])
    return tokenizer


def sentence_piece_decoder() -> decoders.Decoder:
    """▁ for a space, <0xE2> for a byte, and no space at the start."""
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def unigram() -> Tokenizer:
    """XGLM's kind: Unigram over ▁-words, unknown characters as bytes; <unk> = 0 and <s> = 1."""
    words = ["▁", *LETTERS, "▁a", "▁the", "ab", "▁ab", "東京"]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), *((word, -5.0 - len(word)) for word in words)]
    pieces += [(piece, -20.0) for piece in BYTE_TOKENS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = sentence_piece_decoder()
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


def llama_2() -> Tokenizer:
    """Llama 2's kind: BPE over ▁-words, other characters as bytes; <unk> = 0 and <s> = 1."""
    tokens = ["<unk>", "<s>", *BYTE_TOKENS, "▁", *LETTERS, "▁a", "ab", "▁ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    tokenizer = Tokenizer(
        models.BPE(numbered(tokens), merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = sentence_piece_decoder()
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


def word_level() -> Tokenizer:
    """The fixtures' kind: a word with the space before it is a token; <unk> = 0 and <s> = 1."""
    words = ["<unk>", "<s>", "Ċ", "ĠThe", "Ġcat", "Ġsleeps", ".", "The"]
    tokenizer = Tokenizer(models.WordLevel(numbered(words), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level-prefix-space": lambda: byte_level(prefix_space=True),
    "byte-level-nfc": lambda: byte_level(normalizer=normalizers.NFC()),
    "wordpiece": word_piece,
    "unigram": unigram,
    "llama-2": llama_2,
    "word-level": word_level,
}


def vocabulary(kind: str, *, bos_id: int | None = 1, eos_id: int | None = None) -> Vocabulary:
    """The vocabulary of a new tokenizer of a kind."""
    return Vocabulary(MAKERS[kind](), bos_id=bos_id, eos_id=eos_id)


def with_template(tokenizer: Tokenizer, single: str, **ids: int) -> Tokenizer:
    """The tokenizer with a post-processor such as ``<s> $A``."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=list(ids.items())
    )
    return tokenizer
