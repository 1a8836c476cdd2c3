"""A tokenizer as klcli needs it: ids, the bytes each token covers, and what a token reads like."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from klcli.errors import MismatchError
from klcli.text.backend import Backend
from klcli.text.pieces import CUTTING, PIECE, Piece, encode_pieces
from klcli.text.spelling import Spelling
from klcli.text.templates import ChatTemplate

IntArray = npt.NDArray[np.integer[Any]]

PROBE = (
    "The quick brown fox, aged 3.14 years, didn't jump:\n\n\tna\u00efve \u6771\u4eac "
    "\U0001f642 \u0645\u0631\u062d\u0628\u0627 https://example.org/?q=1 x_y += 2;  end"
)
"""A text of many scripts and kinds: two tokenizers that encode it alike split text alike."""

_WORD = re.compile(r"\S+")
_SPANNED = re.compile(rb"(?=(\S[%s]))" % CUTTING.encode())


class TokenNames(Protocol):
    """What a report needs of a vocabulary: the size, and the bytes behind an id."""

    @property
    def size(self) -> int:
        """One more than the largest id that stands for a token."""
        ...

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        ...


@dataclass(frozen=True, slots=True)
class NumberedTokens:
    """The vocabulary of a logit file that came without a tokenizer: ids are shown as ``#id``."""

    size: int

    def bytes_of(self, token_id: int) -> bytes:
        """``#17`` for id 17, with a space before it, as a word has."""
        return f" #{token_id}".encode()


@dataclass(frozen=True, slots=True)
class NamedTokens:
    """A vocabulary of tokens that are known by their bytes, and of no others."""

    size: int
    token_bytes: Mapping[int, bytes]

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        return self.token_bytes.get(token_id, b"?")


@dataclass(frozen=True, slots=True)
class Encoding:
    """The tokens of one text.

    ``ids`` has one id a token. ``ends`` has the UTF-8 byte at which each token ends; a token begins
    where the one before it ended, so the tokens tile the text whatever the tokenizer trims.
    ``words`` has the number of words that begin in each token, a word being what stands between
    white space. ``word_ends``, where it was asked for, has the token after the last of each token's
    word; here a word is what the tokenizer splits text into before it makes tokens.
    """

    ids: IntArray
    ends: IntArray
    words: IntArray
    word_ends: IntArray | None = None


class Vocabulary:
    """The tokenizer of one model.

    Args:
        backend: the tokenizer. Truncation and padding are switched off in it.
        bos_id, eos_id: ids of the tokens that begin and end a text, None where there are none.
        mask_id: the token that a masked model fills in, None where there is none.
        unknown_id: the token that stands for text that the tokenizer has no other for.
        chat: how it writes conversations, None where it does not say.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        bos_id: int | None,
        eos_id: int | None,
        mask_id: int | None = None,
        unknown_id: int | None = None,
        chat: ChatTemplate | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        _make_certain(backend)
        self._backend = backend
        self._tokens: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self._strings = {token_id: token for token, token_id in self._tokens.items()}
        self._added = {
            token_id: token.content
            for token_id, token in backend.get_added_tokens_decoder().items()
        }
        self._spelling = getattr(backend, "spelling", None) or Spelling(backend)
        self._bytes: dict[int, bytes] = {}
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.mask_id = mask_id
        self.unknown_id = unknown_id
        self.chat = chat

    @property
    def size(self) -> int:
        """One more than the largest id that stands for a token."""
        return max(self._strings) + 1

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer itself puts ``bos_id`` in front of a text."""
        ids = self._backend.encode("a", add_special_tokens=True).ids
        return self.bos_id is not None and len(ids) > 0 and ids[0] == self.bos_id

    @property
    def prefix_id(self) -> int | None:
        """The token that can stand before a text: BOS, or EOS where there is no BOS."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer itself puts before and after a text, such as [CLS] and [SEP].

        A masked model was trained on texts in this frame.
        """
        text = self._backend.encode("a", add_special_tokens=False).ids
        framed = self._backend.encode("a", add_special_tokens=True).ids
        for before in range(len(framed) - len(text) + 1):
            if framed[before : before + len(text)] == text:
                return framed[:before], framed[before + len(text) :]
        return [], []

    @cached_property
    def control_ids(self) -> IntArray:
        """Ids of special tokens that are never text: all but the one for unknown text."""
        ids = {self._tokens[string] for string in self.special_strings} - {self.unknown_id}
        return np.array(sorted(ids), dtype=int)

    @cached_property
    def special_strings(self) -> tuple[str, ...]:
        """Strings such as ``<|endoftext|>`` that the tokenizer can read as one special token."""
        decoder = self._backend.get_added_tokens_decoder()
        return tuple(token.content for token in decoder.values() if token.special)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every id and its token, and over the encoding of a probe text."""
        content = [sorted(self._strings.items()), self.encode(PROBE).ids.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> str:
        """The tokenizer itself, which ``tokenizers.Tokenizer.from_str`` reads again."""
        self._backend.encode_special_tokens = False
        return str(self._backend.to_str())

    def encode(
        self, text: str, *, parse_special: bool = False, find_words: bool = False
    ) -> Encoding:
        """Tokenise ``text`` without adding a token to it.

        With ``parse_special`` a string such as ``<unk>`` in the text becomes that special token;
        otherwise it is text like any other. With ``find_words`` the encoding has ``word_ends``.
        """
        self._backend.encode_special_tokens = not parse_special
        read = partial(self._backend.encode_batch, add_special_tokens=False)
        size = max(1, len(text)) if find_words else PIECE
        parts, first_byte = [], 0
        word_ids: Sequence[int | None] = ()
        for piece in encode_pieces(text, read, lambda: self._spanned, size):
            part = text[piece.start : piece.stop]
            ends = self._ends(piece, part)
            words = _words_of_tokens(ends, part)
            parts.append((piece.ids.astype(np.int32), _compact(ends + first_byte), words))
            first_byte += len(part.encode())
            word_ids = piece.word_ids  # where they are wanted there is one piece
        ids, ends, words = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        word_ends = _word_ends(word_ids, words) if find_words else None
        return Encoding(ids=ids, ends=ends, words=words, word_ends=word_ends)

    def encoding_of(self, ids: IntArray) -> Encoding:
        """The encoding of tokens that are given, over the bytes that they stand for."""
        tokens = [self.bytes_of(token_id) for token_id in ids.tolist()]
        ends = np.cumsum([len(token) for token in tokens], dtype=np.int64)
        # Bytes that are not UTF-8, such as half a character, count as one sign each.
        text = b"".join(tokens).decode("ascii", errors="replace")
        return Encoding(
            ids=ids.astype(np.int32),
            ends=_compact(ends),
            words=_words_at(np.array([m.start() for m in _WORD.finditer(text)], dtype=int), ends),
        )

    def string(self, token_id: int) -> str | None:
        """The token as the tokenizer writes it, None for an id without a token."""
        return self._strings.get(token_id)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token stands for; part of a character where the token is one."""
        if token_id not in self._bytes:
            self._bytes[token_id] = self._find_bytes(token_id)
        return self._bytes[token_id]

    def ordinary_tokens(self) -> dict[int, str]:
        """Every id that stands for plain text, not added to the model afterwards."""
        return {i: token for i, token in self._strings.items() if i not in self._added}

    def added_tokens(self) -> dict[int, str]:
        """Every added or special id."""
        return dict(self._added)

    def _find_bytes(self, token_id: int) -> bytes:
        token = self._strings.get(token_id)
        if token is None:
            return f"<id {token_id}>".encode()
        if token_id in self._added:
            return token.encode()
        return self._spelling.bytes_of(token)

    @cached_property
    def _spanned(self) -> frozenset[bytes]:
        """The pairs inside of tokens that ``encode_pieces`` asks for."""
        tokens = (self.bytes_of(token_id) for token_id in self._strings)
        return frozenset(pair for token in tokens for pair in _SPANNED.findall(token))

    def _ends(self, piece: Piece, part: str) -> IntArray:
        """The byte of its own part of the text at which each token of a piece ends."""
        exact = self._ends_of_bytes(piece.ids, part)
        return _ends_of_offsets(piece.ends - piece.start, part) if exact is None else exact

    def _ends_of_bytes(self, ids: IntArray, text: str) -> IntArray | None:
        if not self._spelling.is_of_bytes:
            return None
        parts = [self.bytes_of(token_id) for token_id in ids.tolist()]
        content, read = text.encode(), b"".join(parts)
        begins_with_space = read == b" " + content  # one that the tokenizer has put there
        if read != content and not begins_with_space:
            return None
        return np.cumsum([len(part) for part in parts], dtype=np.int64) - begins_with_space


def readable(tokens: Iterable[bytes]) -> str:
    r"""The bytes of tokens as text; those that are not UTF-8 are written ``\xe2``."""
    return b"".join(tokens).decode(errors="backslashreplace")


def check_same_vocabulary(
    reference: Vocabulary, candidate: Vocabulary, names: tuple[str, str]
) -> list[str]:
    """Raise unless both sides mean the same by every ordinary token.

    Returns what a reader should know all the same: the added or special ids that differ.

    Raises:
        MismatchError: an ordinary id, or the encoding of a probe text, differs.
    """
    left, right = reference.ordinary_tokens(), candidate.ordinary_tokens()
    shared = {**right, **left}
    differing = [i for i in sorted(shared) if reference.string(i) != candidate.string(i)]
    if differing:
        raise MismatchError(
            f"the vocabularies differ: {len(differing)} of {len(shared)} ids, first "
            f"{_describe_ids(differing[:3], reference, candidate, names)}; "
            "compare models that share a tokenizer"
        )
    ids = reference.encode(PROBE).ids.tolist(), candidate.encode(PROBE).ids.tolist()
    if ids[0] != ids[1]:
        raise MismatchError(
            f"the tokenizers split text differently: {names[0]} makes {len(ids[0])} tokens of a "
            f"probe text, {names[1]} {len(ids[1])}; compare models that share a tokenizer"
        )
    return _added_differences(reference, candidate, names)


def _added_differences(
    reference: Vocabulary, candidate: Vocabulary, names: tuple[str, str]
) -> list[str]:
    added = {**reference.added_tokens(), **candidate.added_tokens()}
    differing = [i for i in sorted(added) if reference.string(i) != candidate.string(i)]
    if not differing:
        return []
    shown = _describe_ids(differing[:5], reference, candidate, names)
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    return [f"added or special tokens differ: {shown}{more}"]


def _describe_ids(
    ids: Sequence[int], reference: Vocabulary, candidate: Vocabulary, names: tuple[str, str]
) -> str:
    return ", ".join(
        f"id {i} is {reference.string(i)!r} in {names[0]} and {candidate.string(i)!r} in {names[1]}"
        for i in ids
    )


def _ends_of_offsets(character_ends: IntArray, text: str) -> IntArray:
    """Byte ends out of character ends, made to tile: ordered, and the last one ends the text."""
    byte_of_character = _bytes_before(text)
    ends = np.maximum.accumulate(byte_of_character[character_ends])
    if len(ends):
        ends[-1] = byte_of_character[-1]
    return ends.astype(np.int64)


def _compact(ends: IntArray) -> IntArray:
    """Half the size, where the text has less than 2 GB."""
    fits = len(ends) == 0 or int(ends[-1]) <= np.iinfo(np.int32).max
    return ends.astype(np.int32) if fits else ends


def _bytes_before(text: str) -> IntArray:
    """How many UTF-8 bytes stand before each character, and in all."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    return np.append(0, np.cumsum(widths, dtype=np.int64))


def _words_of_tokens(ends: IntArray, text: str) -> IntArray:
    places = np.array([match.start() for match in _WORD.finditer(text)], dtype=np.int64)
    return _words_at(_bytes_before(text)[places], ends)


def _words_at(starts: IntArray, ends: IntArray) -> IntArray:
    """How many words begin in each token, by the bytes at which they begin."""
    words = np.bincount(np.searchsorted(ends, starts, side="right"), minlength=len(ends))
    few = words.max(initial=0) <= np.iinfo(np.uint8).max
    compact: IntArray = words.astype(np.uint8 if few else np.int32)
    return compact[: len(ends)]


def _word_ends(word_ids: Sequence[int | None], words: IntArray) -> IntArray:
    """For each token the token after the last of its word.

    A word of the tokenizer may begin with white space but never holds any inside: some tokenizers
    split no further than into whole texts.
    """
    begins = np.zeros(len(words), dtype=np.bool_)
    last, has_begun = None, False
    for i, (word_id, started) in enumerate(zip(word_ids, (words > 0).tolist(), strict=True)):
        begins[i] = word_id is None or word_id != last or (started and has_begun)
        has_begun = started or (has_begun and not begins[i])
        last = word_id
    borders = np.append(np.flatnonzero(begins), len(words))
    after: IntArray = borders[np.cumsum(begins)]
    return after.astype(np.int32)


def _make_certain(backend: Any) -> None:
    """Switch off what makes a tokenizer split at random, as in training."""
    for name in ("dropout", "alpha"):
        if getattr(backend.model, name, None):
            setattr(backend.model, name, None)
