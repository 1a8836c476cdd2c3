"""Top log-probabilities as servers return them, in the order of the text: a source.

At each position stand a token and what the model held most probable in its place. Nothing is known
of what came before the first position of a text, so that it is only read, not scored.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from klcli.choices import RowKind
from klcli.errors import SourceError
from klcli.sources import UNBOUNDED
from klcli.sources.files.positions import Position, listed_at_most, read_positions
from klcli.sources.files.rounding import rounding_of
from klcli.sources.kinds import check_there
from klcli.sources.options import LoadOptions
from klcli.sources.rows import LARGEST_BLOCK, Rows, TopBlock
from klcli.sources.stored import FileSource
from klcli.sources.vocabularies import load_vocabulary
from klcli.storage.files import OpenedFile
from klcli.text.vocabulary import NamedTokens, TokenNames, Vocabulary
from klcli.text.windows import TokenizedDocument, Window, WindowTable

SUM_TOLERANCE = 1e-3
FOREIGN = 2**30
"""Ids from here on stand for tokens that the vocabulary lacks."""


class TopLogprobsSource(FileSource):
    """A file of top log-probabilities: one window for each text, kind ``topk``.

    Tokens that no vocabulary has are known by their bytes alone. ``number`` gives them ids, which
    must be the same on both sides of a comparison.
    """

    width = UNBOUNDED
    lists_only = True

    def __init__(
        self,
        name: str,
        texts: Sequence[Sequence[Position]],
        file: OpenedFile,
        vocabulary: Vocabulary | None,
    ) -> None:
        super().__init__(file)
        self.name = name
        self.vocabulary = vocabulary
        self._texts = texts
        self.tokens = frozenset(
            token for position in chain(*texts) for token in (position.token, *position.log_probs)
        )
        self.number(number_tokens(self.tokens))
        self.provenance = {
            "source": name,
            "kind": "top log-probabilities",
            "k": int(self._block.ranked.max()),
            "tokenizer": vocabulary.fingerprint if vocabulary else None,
        }

    @property
    def names(self) -> TokenNames:
        """What the tokens read like, by the file itself or the vocabulary given with it."""
        return self._names

    @property
    def lacks_context(self) -> bool:
        """Whether the first token of a text was predicted: something stood before it."""
        return any(text[0].log_probs for text in self._texts)

    def number(self, numbers: Mapping[bytes, int]) -> None:
        """Take ids for the tokens of the file that no vocabulary has."""
        if self.vocabulary is None:
            self._names: TokenNames = NamedTokens(
                UNBOUNDED, {numbers[token]: token for token in self.tokens}
            )
            known = numbers
        else:
            self._names, known = self.vocabulary, _numbers_of(self.vocabulary)
        self.windows = _windows(self.name, self._texts, known)
        ids = {token: FOREIGN + numbers[token] for token in self.tokens} | dict(known)
        self._block = _block([one for text in self._texts for one in text[1:]], ids)

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        """The lists of each batch."""
        first = np.cumsum([0, *self.windows.window_tokens])
        for batch in batches:
            own = [np.arange(len(window.targets)) + first[window.number] for window in batch]
            places = torch.from_numpy(np.concatenate(own))
            yield TopRows(TopBlock(*(tensor[places] for tensor in self._block)))


class TopRows:
    """Lists of the most probable ids of some rows."""

    kind: RowKind = "topk"
    size = LARGEST_BLOCK

    def __init__(self, block: TopBlock) -> None:
        self._block = block

    def __len__(self) -> int:
        return len(self._block.ids)

    def block(self, start: int, stop: int) -> TopBlock:
        """The lists of rows ``start`` to ``stop``."""
        return TopBlock(*(tensor[start:stop] for tensor in self._block))


def open_top_logprobs(spec: str, options: LoadOptions) -> TopLogprobsSource:
    """Open a file of top log-probabilities.

    Raises:
        SourceError: it is missing, a line is not of that shape, or a position is missing.
    """
    check_there(spec)
    file = OpenedFile(Path(spec))
    return TopLogprobsSource(spec, read_positions(spec), file, load_vocabulary(options))


def number_tokens(tokens: Iterable[bytes]) -> dict[bytes, int]:
    """An id for each token that is known by its bytes alone, and no id for two of them.

    It comes of a hash, so that a token has the same id in every run. Where two hashes are equal,
    which is a matter of chance, the later token takes the next id that is free. So all files of a
    comparison must be numbered together.
    """
    numbers: dict[bytes, int] = {}
    taken: set[int] = set()
    for token in sorted(set(tokens)):
        number = _hash(token)
        while number in taken:
            number = (number + 1) % FOREIGN
        numbers[token] = number
        taken.add(number)
    return numbers


def _hash(token: bytes) -> int:
    return int.from_bytes(hashlib.sha256(token).digest()[:4], "big") >> 2


def _numbers_of(vocabulary: Vocabulary) -> dict[bytes, int]:
    tokens = {**vocabulary.added_tokens(), **vocabulary.ordinary_tokens()}
    return {vocabulary.bytes_of(token_id): token_id for token_id in tokens}


def _windows(
    name: str, texts: Sequence[Sequence[Position]], numbers: Mapping[bytes, int]
) -> WindowTable:
    """The tokens of each text, all but the first of which are scored."""
    unknown = [position.token for position in chain(*texts) if position.token not in numbers]
    if unknown:
        raise SourceError(
            f"{name}: the token {unknown[0]!r} is not in the vocabulary: give the tokenizer of the "
            "model that the server ran with --tokenizer"
        )
    ids = [np.array([numbers[one.token] for one in text], dtype=np.int64) for text in texts]
    names = [name] if len(texts) == 1 else [f"{name}#{number}" for number in range(len(texts))]
    documents = tuple(
        TokenizedDocument(corpus=0, name=one, ids=own, encoding=None)
        for one, own in zip(names, ids, strict=True)
    )
    windows = tuple(
        Window(
            number=number, document=number, inputs=own[:-1], score_from=0, targets=own[1:],
            position=1,
        )
        for number, own in enumerate(ids)
    )  # fmt: skip
    return WindowTable(documents=documents, windows=windows)


def _block(positions: Sequence[Position], numbers: Mapping[bytes, int]) -> TopBlock:
    """The lists as tensors, best first."""
    most = max(len(position.log_probs) for position in positions)
    ids = torch.full((len(positions), most), -1)
    log_probs = torch.full((len(positions), most), -torch.inf, dtype=torch.float64)
    for row, position in enumerate(positions):
        known = [(value, numbers[token]) for token, value in position.log_probs.items()]
        for column, (value, number) in enumerate(sorted(known, key=lambda one: (-one[0], one[1]))):
            ids[row, column], log_probs[row, column] = number, value
    error = _errors(positions, log_probs)
    k = listed_at_most(positions)
    return TopBlock(
        ids=ids,
        log_probs=log_probs,
        error=error,
        log_rest=(1 - (log_probs - error).exp().sum(dim=-1)).clamp(min=0).log(),
        log_least_rest=(1 - (log_probs + error).exp().sum(dim=-1)).clamp(min=0).log(),
        ranked=torch.tensor([min(position.listed, k) for position in positions]),
    )


def _errors(positions: Sequence[Position], log_probs: Tensor) -> Tensor:
    """By how much each log-probability may be off: the file was rounded.

    Where probabilities sum to more than 1 however they were rounded, they are off by more.

    Raises:
        SourceError: they are off by more than ``SUM_TOLERANCE``.
    """
    values = [value for position in positions for value in position.log_probs.values()]
    error = rounding_of(values).error_of(log_probs)
    least = (log_probs - error).exp().sum(dim=-1)
    if (wrong := ~(least <= 1 + SUM_TOLERANCE)).any():
        row = int(wrong.nonzero()[0])
        total = float(log_probs[row].exp().sum())
        raise SourceError(
            f"{positions[row].where}: the probabilities listed sum to {total:.6g}, more than 1: "
            "give natural logarithms of probabilities"
        )
    return torch.where(least[:, None] > 1, error + SUM_TOLERANCE, error)
