"""Top log-probabilities as servers return them: JSONL, one object a position.

Each line is ``{"token": …, "logprob": …, "top_logprobs": [{"token": …, "logprob": …}, …]}``, the
shape of OpenAI-compatible servers, in the order of the text: the token that stands there, and what
the model held most probable in its place. ``bytes`` may say which bytes a token is; otherwise its
text does. Nothing is known of what came before the first line, so that it is only read, not scored.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from klcli.errors import SourceError
from klcli.sources import UNBOUNDED
from klcli.sources.options import LoadOptions
from klcli.sources.rows import LARGEST_BLOCK, RowKind, Rows, TopBlock
from klcli.sources.stored import FileSource
from klcli.sources.vocabularies import load_vocabulary
from klcli.storage.files import OpenedFile
from klcli.text.corpus import read_corpus_lines
from klcli.text.vocabulary import NamedTokens, TokenNames, Vocabulary
from klcli.text.windows import TokenizedDocument, Window, WindowTable

SUM_TOLERANCE = 1e-3
LEAST_REST = 1e-8
"""Rounded log-probabilities may sum to 1 or more; something is left for the other tokens all the
same, or the divergence from a model that knows of it would be infinite."""


class Position(NamedTuple):
    """One line: the token that stands there, and log-probabilities by token, both as bytes.

    The first ``ranked`` of them were listed as the most probable.
    """

    token: bytes
    log_probs: Mapping[bytes, float]
    ranked: int


class TopLogprobsSource(FileSource):
    """A file of top log-probabilities: one window, kind ``topk``."""

    width = UNBOUNDED
    lists_only = True

    def __init__(
        self,
        name: str,
        positions: Sequence[Position],
        file: OpenedFile,
        vocabulary: Vocabulary | None,
    ) -> None:
        super().__init__(file)
        self.name = name
        self.vocabulary = vocabulary
        tokens = {
            token for position in positions for token in (position.token, *position.log_probs)
        }
        self._names: TokenNames = vocabulary or NamedTokens(
            UNBOUNDED, {_number(token): token for token in tokens}
        )
        numbers = _numbers_of(vocabulary) if vocabulary else {p: _number(p) for p in tokens}
        self.windows = _window(name, positions, numbers)
        self._block = _block(positions[1:], numbers)
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

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        """The lists of each batch; there is one window, and so one batch."""
        for batch in batches:
            yield TopRows(self._block, len(batch[0].targets))


class TopRows:
    """Lists of the most probable ids of some rows."""

    kind: RowKind = "topk"
    size = LARGEST_BLOCK

    def __init__(self, block: TopBlock, rows: int) -> None:
        self._block = block
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def block(self, start: int, stop: int) -> TopBlock:
        """The lists of rows ``start`` to ``stop``."""
        return TopBlock(*(tensor[start:stop] for tensor in self._block))


def open_top_logprobs(spec: str, options: LoadOptions) -> TopLogprobsSource:
    """Open a file of top log-probabilities.

    Raises:
        SourceError: it is missing, a line is not of that shape, or a position is missing.
    """
    if not Path(spec).is_file():
        raise SourceError(f"no file of top log-probabilities at {spec!r}: check the path")
    file = OpenedFile(Path(spec))
    lines = read_corpus_lines(spec)
    positions = [_read(line, number, f"{spec}, line {number + 1}") for number, line in lines]
    if len(positions) < 2:
        raise SourceError(f"{spec} has {len(positions)} positions: nothing can be scored")
    return TopLogprobsSource(spec, positions, file, load_vocabulary(options))


def _read(line: str, number: int, where: str) -> Position:
    try:
        record = json.loads(line)
        token, listed = _bytes_of(record), record.get("top_logprobs")
        if listed is None and number == 0:
            return Position(token, {}, 0)
        if record.get("position", number) != number:
            raise SourceError(
                f"{where} is position {record['position']} and should be {number}: there is a gap"
            )
        log_probs = {_bytes_of(one): float(one["logprob"]) for one in listed}
        if len(log_probs) < len(listed):
            raise SourceError(f"{where} lists a token twice")
        ranked = len(log_probs)
        if record.get("logprob") is not None:
            log_probs.setdefault(token, float(record["logprob"]))
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise SourceError(f"{where} is not a position with its top_logprobs ({error!r})") from None
    _check(log_probs, where)
    return Position(token, log_probs, ranked)


def _bytes_of(record: Mapping[str, Any]) -> bytes:
    given = record.get("bytes")
    if given is None:
        return str(record["token"]).encode()
    if not isinstance(given, list):
        raise TypeError(f"bytes must be a list, not {given!r}")
    return bytes(given)


def _check(log_probs: Mapping[bytes, float], where: str) -> None:
    if not log_probs:
        raise SourceError(f"{where} lists no token: the file has a gap")
    total = math.fsum(math.exp(min(value, 1.0)) for value in log_probs.values())
    if any(math.isnan(value) for value in log_probs.values()) or total > 1 + SUM_TOLERANCE:
        raise SourceError(f"{where}: the probabilities listed sum to {total:.6g}, more than 1")


def _number(token: bytes) -> int:
    """An id for a token that is known by its bytes alone, the same in every file."""
    return int.from_bytes(hashlib.sha256(token).digest()[:4], "big") >> 2


def _numbers_of(vocabulary: Vocabulary) -> dict[bytes, int]:
    tokens = {**vocabulary.added_tokens(), **vocabulary.ordinary_tokens()}
    return {vocabulary.bytes_of(token_id): token_id for token_id in tokens}


def _window(name: str, positions: Sequence[Position], numbers: Mapping[bytes, int]) -> WindowTable:
    unknown = [position.token for position in positions if position.token not in numbers]
    if unknown:
        raise SourceError(
            f"{name}: the token {unknown[0]!r} is not in the vocabulary: give the tokenizer of the "
            "model that the server ran with --tokenizer"
        )
    ids = np.array([numbers[position.token] for position in positions], dtype=np.int64)
    document = TokenizedDocument(corpus=0, name=name, ids=ids, encoding=None)
    window = Window(document=0, inputs=ids[:-1], score_from=0, targets=ids[1:], position=1)
    return WindowTable(documents=(document,), windows=(window,))


def _block(positions: Sequence[Position], numbers: Mapping[bytes, int]) -> TopBlock:
    """The lists as tensors, best first; a token that the vocabulary lacks counts as rest."""
    most = max(len(position.log_probs) for position in positions)
    ids = torch.full((len(positions), most), -1)
    log_probs = torch.full((len(positions), most), -torch.inf, dtype=torch.float64)
    for row, position in enumerate(positions):
        known = [(value, numbers[p]) for p, value in position.log_probs.items() if p in numbers]
        for column, (value, number) in enumerate(sorted(known, key=lambda one: (-one[0], one[1]))):
            ids[row, column], log_probs[row, column] = number, value
    rest = (1 - log_probs.exp().sum(dim=-1)).clamp(min=LEAST_REST).log()
    return TopBlock(ids, log_probs, rest, torch.tensor([p.ranked for p in positions]))
