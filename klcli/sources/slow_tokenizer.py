"""A tokenizer that has no fast form, as far as a vocabulary needs one."""

import base64
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from klcli.errors import SourceError
from klcli.text.backend import Backend
from klcli.text.locating import Marks, NotLocatedError, Span, locate

_KEY = "slow_tokenizer"
_WORD = re.compile(r"\S+\s*|\s+")


class SlowEncoding(NamedTuple):
    """The tokens of a text; ``word_ids`` counts the words that they are pieces of."""

    ids: Sequence[int]
    offsets: Sequence[Span]
    word_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Added:
    """A token that was added to the vocabulary, or is special."""

    content: str
    special: bool


class SlowTokenizer:
    """A Python tokenizer of transformers in the place of a fast one.

    It does not say where tokens lie in a text: their strings are matched with it. What a vocabulary
    asks without a text is known at once; the tokenizer itself is loaded when it is first needed.
    """

    model = None

    def __init__(self, state: Mapping[str, Any], tokenizer: Any = None) -> None:
        self.encode_special_tokens = False
        self._state = state
        self._given = tokenizer
        self.spelling = Marks.of(
            token for token, i in state["vocab"].items() if str(i) not in state["added"]
        )

    @classmethod
    def of(cls, tokenizer: Any) -> "SlowTokenizer":
        """From a tokenizer of transformers."""
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        state = {
            "class": type(tokenizer).__name__,
            "vocab": tokenizer.get_vocab(),
            "added": {
                str(i): {"content": token.content, "special": token.special}
                for i, token in tokenizer.added_tokens_decoder.items()
            },
            "unknown": tokenizer.unk_token,
            "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
        }
        return cls(state, tokenizer)

    def to_str(self) -> str:
        """The tokenizer as JSON, which ``read_backend`` reads again."""
        return json.dumps({_KEY: self._state}, sort_keys=True)

    def no_truncation(self) -> None:
        """It truncates nothing."""

    def no_padding(self) -> None:
        """It pads nothing."""

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Every token and its id."""
        return dict(self._state["vocab"])

    def get_added_tokens_decoder(self) -> dict[int, _Added]:
        """Added and special tokens by their ids."""
        return {int(i): _Added(**token) for i, token in self._state["added"].items()}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> SlowEncoding:
        """The tokens of a text; with special ones they have no spans.

        Raises:
            SourceError: a token cannot be located in the text.
        """
        if add_special_tokens:
            ids = self._tokenizer.encode(text, add_special_tokens=True)
            return SlowEncoding(ids, [(0, 0)] * len(ids), [0] * len(ids))
        tokens: list[str] = []
        spans: list[Span] = []
        for start, stop in self._stretches(text):
            own = self._tokenizer.tokenize(text[start:stop])
            spans += [(start + a, start + b) for a, b in self._located(own, text[start:stop])]
            tokens += own
        ids = [int(i) for i in self._tokenizer.convert_tokens_to_ids(tokens)]
        return SlowEncoding(ids, spans, list(self._words(tokens)))

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[SlowEncoding]:
        """The tokens of each of some texts."""
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    @cached_property
    def _tokenizer(self) -> Any:
        return self._given if self._given is not None else _loaded(self._state)

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        """What a text must be cut in to keep the tokenizer from reading it as a special token."""
        added = self.get_added_tokens_decoder().values()
        strings = [token.content for token in added if token.special]
        longest_first = sorted((s for s in strings if len(s) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def _stretches(self, text: str) -> Iterator[Span]:
        """The text in one, or cut inside of every string that would become a special token."""
        start = 0
        if self.encode_special_tokens and self._special is not None:
            for match in self._special.finditer(text):
                yield start, match.start() + 1
                start = match.start() + 1
        yield start, len(text)

    def _located(self, tokens: Sequence[str], text: str) -> list[Span]:
        """The spans of the tokens, word by word where the words by themselves have the same."""
        words = [(match.start(), match.group()) for match in _WORD.finditer(text)]
        parts = [self._tokenizer.tokenize(word) for _, word in words]
        try:
            if [token for part in parts for token in part] == list(tokens):
                return [
                    (start + a, start + b)
                    for (start, word), part in zip(words, parts, strict=True)
                    for a, b in locate(self._read(part), word, in_one_word=True)
                ]
            return locate(self._read(tokens), text, in_one_word=False)
        except NotLocatedError as error:
            raise SourceError(
                f"its tokenizer ({self._state['class']}) does not say where tokens lie, and they "
                f"are not in the text as it writes them ({error}): give a model with a fast "
                "tokenizer (tokenizer.json)"
            ) from error

    def _read(self, tokens: Sequence[str]) -> list[str | None]:
        """What each token stands for, None for the unknown one."""
        unknown = self._state["unknown"]
        return [None if token == unknown else self.spelling.text_of(token) for token in tokens]

    def _words(self, tokens: Sequence[str]) -> Iterator[int]:
        number, before = -1, None
        for token in tokens:
            number += self.spelling.begins_word(token, before)
            yield number
            before = token


def read_backend(content: str) -> Backend:
    """A tokenizer out of what its ``to_str`` gave."""
    if content.startswith(f'{{"{_KEY}"'):
        return SlowTokenizer(json.loads(content)[_KEY])
    return Tokenizer.from_str(content)


def _loaded(state: Mapping[str, Any]) -> Any:
    """The tokenizer of transformers.

    Raises:
        SourceError: its class or its files are not those of a tokenizer.
    """
    import transformers

    kind: Any = getattr(transformers, state["class"], None)
    is_known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedTokenizer)
    names = [name for name in state["files"] if Path(name).name != name]
    if not is_known or names:
        raise SourceError(f"the tokenizer {state['class']!r} is not one of transformers")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in state["files"].items():
            (Path(folder) / name).write_bytes(base64.b64decode(data))
        return kind.from_pretrained(folder)
