"""llama.cpp's base files, read; ``llamacpp_format`` says what stands in them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from klcli.choices import RowKind
from klcli.errors import MismatchError, SourceError
from klcli.sources.files.llamacpp_format import (
    CODE,
    HEADER,
    SETTING,
    TOKEN,
    FloatArray,
    Header,
    decode,
)
from klcli.sources.kinds import BASE_FILE_MAGIC
from klcli.sources.options import LoadOptions
from klcli.sources.rows import Rows, block_rows, spans
from klcli.sources.stored import FileSource
from klcli.sources.vocabularies import load_vocabulary
from klcli.storage.files import OpenedFile
from klcli.text.protocols import BASE_FILE_PROTOCOL
from klcli.text.vocabulary import IntArray, Vocabulary
from klcli.text.windows import TokenizedDocument, Window, WindowTable

SHORTEST = 3
"""The shortest chunk of which anything is scored."""
TOLERANCE = 1e-3
"""Nats: how far rounding may put the largest ln p of a row beyond what is possible."""


class BaseFileSource(FileSource):
    """A base file, opened; the predictions stay on disk.

    Attributes:
        windows: one window for each chunk, its inputs the ids *as in the file*: see ``as_read_by``.
        width: n_vocab.
        vocabulary: that of ``--tokenizer``; the file has none.
    """

    def __init__(
        self,
        name: str,
        header: Header,
        tokens: IntArray,
        file: OpenedFile,
        vocabulary: Vocabulary | None,
    ) -> None:
        super().__init__(file)
        self.name = name
        self.width = header.width
        self.windows = _windows_of(name, header, tokens)
        self.vocabulary = vocabulary
        self._header = header
        self._records = Records(file, header)
        self.provenance = {
            "source": name,
            "kind": "llama.cpp base file",
            "values": "truncated, 16-bit",
            "context": header.context,
            "chunks": header.chunks,
            "vocabulary_width": header.width,
            "tokenizer": vocabulary.fingerprint if vocabulary else None,
        }

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        """The scored rows of each batch, read from the file a block at a time.

        Raises:
            MismatchError: a window asks for rows that the file does not have.
        """
        for batch in batches:
            for window in batch:
                self._check_window(window)
            yield BaseFileRows(self.name, self._header, self._records, batch)

    def windows_for(self, vocabulary: Vocabulary | None) -> WindowTable:
        """The windows as a model with this vocabulary reads them: see ``as_read_by``."""
        return self.windows if vocabulary is None else as_read_by(self.windows, vocabulary)

    def _check_window(self, window: Window) -> None:
        """Rows stand one after the other: one too many would be read from the next chunk."""
        chunks, first, count = self._header.chunks, self._header.score_from, self._header.scored
        fits = window.score_from == first and len(window.targets) <= count
        if not fits or window.number >= chunks:
            raise MismatchError(
                f"{self.name} has {chunks} windows of {count} rows from row {first} on, and of "
                f"window {window.number} {len(window.targets)} rows from row {window.score_from} "
                "on are wanted: give sides with the same windows"
            )


class BaseFileRows:
    """The scored rows of some chunks of a base file."""

    kind: RowKind = "truncated"

    def __init__(
        self, name: str, header: Header, records: "Records", windows: Sequence[Window]
    ) -> None:
        self.size = block_rows(header.width, SETTING.itemsize)
        self._name = name
        self._header = header
        self._records = records
        self._chunks = [window.number for window in windows]
        self._counts = [len(window.targets) for window in windows]

    def __len__(self) -> int:
        return sum(self._counts)

    def block(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``: ln p, float32 (stop - start, n_vocab).

        Every number is the float32 that llama.cpp computes of it. A row that the model could not
        compute, of which llama.cpp wrote NaN, is NaN throughout.

        Raises:
            SourceError: a row that cannot be what llama.cpp wrote.
        """
        found = spans(self._counts, start, stop)
        return torch.cat([self._read(self._chunks[n], first, last) for n, first, last in found])

    def _read(self, chunk: int, first: int, last: int) -> Tensor:
        row = chunk * self._header.scored
        log_p = self._records.read(row + first, row + last)
        self._check(log_p, chunk, first)
        return torch.from_numpy(log_p)

    def _check(self, log_p: FloatArray, chunk: int, first: int) -> None:
        """The largest of n probabilities lies between 1/n and 1: bytes of anything else do not."""
        top = log_p.max(axis=-1)
        wrong = (top > TOLERANCE) | (top < -math.log(self._header.width) - TOLERANCE)
        if wrong.any():
            row = int(wrong.argmax())
            raise SourceError(
                f"{self._name} is damaged: row {first + row} of chunk {chunk} has "
                f"{float(top[row]):.6g} for its largest log-probability; make the file again"
            )


class Records:
    """The records of a base file, chunk after chunk."""

    def __init__(self, file: OpenedFile, header: Header) -> None:
        self._file = file
        self._header = header

    def read(self, start: int, stop: int) -> FloatArray:
        """Records ``start`` to ``stop`` as ln p, float32 (stop - start, n_vocab)."""
        header, size = self._header, CODE.itemsize * self._header.codes
        content = self._file.read(header.records_at + start * size, (stop - start) * size)
        codes = np.frombuffer(content, dtype=CODE).reshape(-1, header.codes)
        return decode(codes, header.width)


def open_base_file(spec: str, options: LoadOptions) -> BaseFileSource:
    """Open a base file of llama.cpp.

    Raises:
        SourceError: it is missing, foreign, truncated or too long, its header contradicts itself,
            or a token lies outside the vocabulary.
    """
    file = OpenedFile(Path(spec))
    header = _read_header(file)
    content = file.read(HEADER.size, header.records_at - HEADER.size)
    tokens = np.frombuffer(content, dtype=TOKEN).astype(np.int64)
    _check_tokens(spec, tokens, header)
    return BaseFileSource(spec, header, tokens, file, load_vocabulary(options))


def _read_header(file: OpenedFile) -> Header:
    path, size = file.path, file.size
    first = file.read(0, min(size, HEADER.size))
    if first[: len(BASE_FILE_MAGIC)] != BASE_FILE_MAGIC:
        raise SourceError(
            f"{path} is not a base file of llama.cpp: it does not begin with _logits_"
        )
    if len(first) < HEADER.size:
        raise SourceError(f"{path} has {size} bytes, less than the {HEADER.size} of a header")
    header = Header(*HEADER.unpack(first)[1:])
    if header.context < SHORTEST or header.width < 1 or header.chunks < 1:
        raise SourceError(
            f"{path} is damaged: its header says {header.chunks} chunks of {header.context} tokens "
            f"and a vocabulary of {header.width}"
        )
    if size != header.size:
        raise SourceError(
            f"{path} has {size} bytes and should have {header.size} for {header.chunks} chunks of "
            f"{header.context} tokens and a vocabulary of {header.width}: make the file again"
        )
    return header


def _check_tokens(spec: str, tokens: IntArray, header: Header) -> None:
    if tokens.min() < 0 or tokens.max() >= header.width:
        raise SourceError(
            f"{spec} is damaged: it has token ids from {tokens.min()} to {tokens.max()} and a "
            f"vocabulary of {header.width}"
        )


def _windows_of(name: str, header: Header, tokens: IntArray) -> WindowTable:
    first_target = header.score_from + 1
    windows = [
        Window(
            number=number,
            document=0,
            inputs=ids,
            score_from=header.score_from,
            targets=ids[first_target:],
            position=number * header.context + first_target,
        )
        for number, ids in enumerate(tokens.reshape(header.chunks, header.context))
    ]
    protocol = {
        "name": BASE_FILE_PROTOCOL,
        "context": header.context,
        "stride": header.context,
        "score_from": header.score_from,
        "bos": None,
        "special_tokens": "text",
        "documents": "file",
        "limit": None,
    }
    document = TokenizedDocument(corpus=0, name=name, ids=tokens, encoding=None)
    return WindowTable(
        documents=(document,), windows=tuple(windows), protocol=protocol, lacks_remainder=True
    )


def as_read_by(table: WindowTable, vocabulary: Vocabulary) -> WindowTable:
    """The windows of a base file as a model with this vocabulary reads them.

    If its tokenizer adds a BOS, one takes the place of the first token of every window, as in
    llama.cpp; and the BOS in front of the whole text is no longer counted as a token of the
    document. The windows are then those that ``plan_windows`` cuts of the same text.
    """
    if not vocabulary.adds_bos:
        return replace(table, protocol={**table.protocol, "bos": "none"})
    (document,) = table.documents
    in_front = int(document.ids[0] == vocabulary.bos_id)
    windows = tuple(
        replace(
            window,
            inputs=np.concatenate([[vocabulary.bos_id], window.inputs[1:]]),
            position=window.position - in_front,
        )
        for window in table.windows
    )
    return replace(
        table,
        documents=(replace(document, ids=document.ids[in_front:]),),
        windows=windows,
        protocol={**table.protocol, "bos": "window"},
    )
