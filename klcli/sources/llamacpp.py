"""llama.cpp's base files, read and written: what ``llama-perplexity --kl-divergence-base`` leaves.

Little-endian, for n_chunk chunks of n_ctx tokens of one text:

=======================  ===================================================================
bytes                    what
=======================  ===================================================================
8                        ``_logits_``
4 + 4 + 4                uint32 n_ctx, int32 n_vocab, int32 n_chunk
4 · n_ctx · n_chunk      int32 token ids of the chunks
2 · nv a scored target   one *record* for each of the targets n_ctx/2 + 1 … n_ctx - 1 of a chunk,
                         chunk after chunk; nv = 4 + n_vocab, n_vocab rounded up to an even number
=======================  ===================================================================

A record is float32 ``scale``, float32 ``min_log_prob``, n_vocab uint16 codes and perhaps one of
padding; ln p_i = scale · code_i + min_log_prob. Logits more than 16 below the largest were raised
to that before coding, yet ln Σ e^logit was taken before: the file's p do not sum to 1, and an id
with code 0 has any p up to the one that stands there.

**Tokens and BOS.** The file has the text's tokens as the tokenizer gives them: where it adds a BOS,
one BOS in front of the whole text, so it is the first id of the first chunk. When a chunk is run,
llama.cpp puts a BOS in place of the chunk's first token, but it writes the token itself. Which of
the two a model has read, the file does not say: it follows from the tokenizer (``as_read_by``).

Source: ``tools/perplexity/perplexity.cpp`` of llama.cpp at commit 050fc7f.
"""

import contextlib
import math
import mmap
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klcli.errors import MismatchError, OutputError, SourceError, UsageError
from klcli.sources import BASE_FILE_MAGIC
from klcli.sources.options import LoadOptions, Task, load_vocabulary
from klcli.sources.rows import RowKind, Rows, TopBlock, block_rows, pieces
from klcli.text.vocabulary import IntArray, Vocabulary
from klcli.text.windows import TokenizedDocument, Window, WindowTable, plan_batches

HEADER = struct.Struct("<8sIii")
TOKEN = np.dtype("<i4")
CODE = np.dtype("<u2")
SETTING = np.dtype("<f4")
SETTINGS = 4
"""How many codes' room ``scale`` and ``min_log_prob`` take."""

REACH = 16.0
"""Nats: how far below the largest logit the coded range ends."""
TOP_CODE = 65535.0
SHORTEST = 3
"""The shortest chunk of which anything is scored."""
TOLERANCE = 1e-3
"""Nats: how far rounding may put the largest ln p of a row beyond what is possible."""
ENCODED_AT_ONCE = 2**20
"""How many logits are encoded at once, so that the temporaries stay small."""

FloatArray = npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.uint16]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Header:
    """What a base file says of itself: ``chunks`` chunks of ``context`` ids, ``width`` codes a row.

    Everything about the layout follows from these three.
    """

    context: int
    width: int
    chunks: int

    @property
    def score_from(self) -> int:
        """The first scored row of a chunk."""
        return self.context // 2

    @property
    def scored(self) -> int:
        """How many rows of a chunk are scored: its last row is not, for its target is elsewhere."""
        return self.context - 1 - self.score_from

    @property
    def codes(self) -> int:
        """How many uint16 a record has."""
        return SETTINGS + self.width + self.width % 2

    @property
    def records_at(self) -> int:
        """The byte at which the records begin."""
        return HEADER.size + TOKEN.itemsize * self.context * self.chunks

    @property
    def size(self) -> int:
        """How many bytes the whole file has."""
        return self.records_at + CODE.itemsize * self.codes * self.scored * self.chunks

    def pack(self) -> bytes:
        """The first 20 bytes of the file."""
        return HEADER.pack(BASE_FILE_MAGIC, self.context, self.width, self.chunks)


class BaseFileSource:
    """A base file, opened; the predictions stay on disk.

    Attributes:
        windows: one window for each chunk, its inputs the ids *as in the file*: see ``as_read_by``.
        width: n_vocab.
        vocabulary: that of ``--tokenizer``; the file has none.
        longest: None, for a file reads nothing.
    """

    longest: int | None = None
    task: Task = "causal"
    device = torch.device("cpu")
    has_tokens = True

    def __init__(
        self,
        name: str,
        header: Header,
        tokens: IntArray,
        records: "Records",
        vocabulary: Vocabulary | None,
    ) -> None:
        self.name = name
        self.width = header.width
        self.windows = _windows_of(name, header, tokens)
        self.vocabulary = vocabulary
        self._header = header
        self._records = records
        self.provenance: dict[str, Any] = {
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
    exact = False

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
        found = pieces(self._counts, start, stop)
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
    """The records of a base file, chunk after chunk, memory-mapped."""

    def __init__(self, whole: mmap.mmap, header: Header) -> None:
        self._whole = whole
        self._width = header.width
        codes = np.frombuffer(whole, dtype=CODE, offset=header.records_at)
        self._codes = codes.reshape(-1, header.codes)

    def read(self, start: int, stop: int) -> FloatArray:
        """Records ``start`` to ``stop`` as ln p, float32 (stop - start, n_vocab)."""
        log_p = decode(self._codes[start:stop], self._width)
        if hasattr(mmap, "MADV_DONTNEED"):  # or what was read counts as ours until memory is short
            self._whole.madvise(mmap.MADV_DONTNEED)
        return log_p


def decode(records: CodeArray, width: int) -> FloatArray:
    """Records (rows, nv) as ln p, float32 (rows, ``width``): scale · code + min_log_prob.

    The product and the sum are each rounded to float32, as in llama.cpp's own loop.
    """
    settings = records[:, :SETTINGS].copy().view(SETTING).astype(np.float32)
    log_p: FloatArray = records[:, SETTINGS : SETTINGS + width].astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # damaged, or of a model that gave NaN
        log_p *= settings[:, :1]
        log_p += settings[:, 1:]
    return log_p


@torch.inference_mode()
def encode(logits: Tensor) -> CodeArray:
    """Logits (rows, width) as records, uint16 (rows, nv).

    In float32 but for the sum over the vocabulary, as llama.cpp does it, so that the same logits
    give the same bytes. ``exp`` is rounded from float64, which is what the C library's float32
    function gives to the last bit nearly always.
    """
    logits = logits.cpu().float()
    highest = logits.amax(dim=-1, keepdim=True)
    lowest = torch.maximum(logits.amin(dim=-1, keepdim=True), highest - REACH)
    scale = (highest - lowest) / torch.tensor(TOP_CODE)
    min_log_prob = lowest - highest - _log_sum_exp(logits - highest)
    codes = torch.round(torch.reciprocal(scale) * (logits - lowest))
    # A scale so small that its reciprocal overflows gives llama.cpp nothing but zeros.
    codes = torch.where((logits > lowest) & codes.isfinite(), codes, 0.0)
    return _pack(torch.cat([scale, min_log_prob], dim=-1).numpy(), codes.numpy())


def _log_sum_exp(below: Tensor) -> Tensor:
    """The logarithm of Σ e^x, float32 (rows, 1), of logits less their largest."""
    powers = below.double().exp_().float()
    return powers.sum(dim=-1, keepdim=True, dtype=torch.float64).log().float()


def _pack(settings: FloatArray, codes: FloatArray) -> CodeArray:
    rows, width = codes.shape
    records = np.zeros((rows, SETTINGS + width + width % 2), dtype=CODE)
    records[:, :SETTINGS] = settings.astype(SETTING).view(CODE)
    records[:, SETTINGS : SETTINGS + width] = codes
    return records


def open_base_file(spec: str, options: LoadOptions) -> BaseFileSource:
    """Open a base file of llama.cpp.

    Raises:
        SourceError: it is missing, foreign, truncated or too long, its header contradicts itself,
            or a token lies outside the vocabulary.
    """
    path = Path(spec)
    try:
        header = _read_header(path)
        with path.open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise SourceError(f"cannot read {spec}: {error.strerror or error}") from error
    count = header.context * header.chunks
    tokens = np.frombuffer(whole, dtype=TOKEN, count=count, offset=HEADER.size).astype(np.int64)
    _check_tokens(spec, tokens, header)
    return BaseFileSource(spec, header, tokens, Records(whole, header), load_vocabulary(options))


def _read_header(path: Path) -> Header:
    with path.open("rb") as file:
        first = file.read(HEADER.size)
        size = file.seek(0, os.SEEK_END)
    if first[: len(BASE_FILE_MAGIC)] != BASE_FILE_MAGIC:
        raise SourceError(f"{path} is no base file of llama.cpp: it does not begin with _logits_")
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
        "name": "llama.cpp",
        "context": header.context,
        "stride": header.context,
        "score_from": header.score_from,
        "bos": None,
        "special_tokens": "text",
        "documents": "file",
        "limit": None,
    }
    document = TokenizedDocument(corpus=0, name=name, ids=tokens, encoding=None)
    return WindowTable(documents=(document,), windows=tuple(windows), protocol=protocol)


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


class Predictor(Protocol):
    """Whose predictions can be written to a base file: one that gives logits."""

    name: str
    width: int

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The tokenizer, None where it is not known."""
        ...

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        """One Rows for each batch: its windows' scored rows, one window after the other."""
        ...


def write_base_file(
    path: Path,
    source: Predictor,
    table: WindowTable,
    *,
    batch_tokens: int,
    progress: Progress | None = None,
) -> None:
    """Write a base file as llama.cpp would, whole or not at all; memory is flat in its length.

    Args:
        path: the file; one that is there already is replaced at the end.
        source: who predicts, at its full width, padding included.
        table: windows of the protocol ``llama.cpp``, of one text.
        batch_tokens: how many ids the model reads at once.
        progress: told the rows written and the rows in all.

    Raises:
        UsageError: windows of another protocol, or a BOS where llama.cpp has none, or the reverse.
        SourceError: a token lies outside the source's width, the source gives no logits, or fails.
        OutputError: the file cannot be written.
    """
    header = _header_for(source, table)
    ids = _ids_of(table)
    if ids.max() >= header.width:
        raise SourceError(
            f"the text has token id {ids.max()} and {source.name} predicts only {header.width} ids"
        )
    with _whole_or_not_at_all(path) as file:
        file.write(header.pack())
        file.write(ids.astype(TOKEN).tobytes())
        _write_records(file, source, table, batch_tokens, progress)


def _header_for(source: Predictor, table: WindowTable) -> Header:
    context = len(table.windows[0].inputs)
    header = Header(context=context, width=source.width, chunks=len(table.windows))
    if len(table.documents) != 1:
        raise UsageError(
            f"a base file of llama.cpp holds one text, not {len(table.documents)}: give one file, "
            "and --documents file"
        )
    if not all(_is_chunk(window, header) for window in table.windows):
        raise UsageError(
            "a base file of llama.cpp holds windows of --protocol llama.cpp, scored from the "
            "middle on: leave out --stride and --score-from"
        )
    if source.vocabulary is not None:
        _check_bos(table, source.vocabulary)
    return header


def _is_chunk(window: Window, header: Header) -> bool:
    ids = window.inputs
    targets = ids[header.score_from + 1 :]
    return len(ids) == header.context and np.array_equal(window.targets, targets)


def _check_bos(table: WindowTable, vocabulary: Vocabulary) -> None:
    """llama.cpp goes by the tokenizer alone: it would put into a chunk what was not read here."""
    in_front = int(vocabulary.adds_bos)
    if any((_start(window) + in_front) % len(window.inputs) for window in table.windows):
        what = "a BOS" if in_front else "no BOS"
        raise UsageError(f"the tokenizer adds {what}, and llama.cpp goes by that: leave out --bos")


def _start(window: Window) -> int:
    """Where in the document a chunk begins: -1 if with the BOS in front of the text."""
    return window.position - window.score_from - 1


def _chunk_ids(table: WindowTable) -> Iterator[IntArray]:
    """The ids of each chunk, its first token in its place again where a BOS was read instead."""
    document = table.documents[0].ids
    for window in table.windows:
        start = _start(window)
        first = window.inputs[:1] if start < 0 else document[start : start + 1]
        yield np.concatenate([first, window.inputs[1:]])


def _ids_of(table: WindowTable) -> IntArray:
    return np.concatenate(list(_chunk_ids(table)))


@torch.inference_mode()
def _write_records(
    file: BinaryIO,
    source: Predictor,
    table: WindowTable,
    batch_tokens: int,
    progress: Progress | None,
) -> None:
    """Write the records in reading order, which batches of windows of one length keep."""
    plan = plan_batches(table.windows, batch_tokens)
    batches = [[table.windows[number] for number in batch] for batch in plan]
    done = 0
    for rows in source.rows(batches):
        if rows.kind != "logits":
            raise SourceError(f"{source.name} gives {rows.kind}, not logits: give a model")
        for start in range(0, len(rows), rows.size):
            _write_block(file, rows.block(start, min(start + rows.size, len(rows))))
        done += len(rows)
        if progress is not None:
            progress(done, table.tokens)


def _write_block(file: BinaryIO, logits: Tensor | TopBlock) -> None:
    assert isinstance(logits, Tensor)
    step = max(1, ENCODED_AT_ONCE // logits.shape[-1])
    for start in range(0, len(logits), step):
        file.write(encode(logits[start : start + step]).tobytes())


@contextlib.contextmanager
def _whole_or_not_at_all(path: Path) -> Iterator[BinaryIO]:
    """A new file beside ``path``, put in its place if all goes well and removed if not."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".klcli-{secrets.token_hex(8)}.tmp")
    if target.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
