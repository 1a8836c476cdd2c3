"""llama.cpp's base files, written; ``llamacpp_format`` says what stands in them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from klcli.errors import OutputError, SourceError, UsageError
from klcli.hooks import Progress
from klcli.sources import Source
from klcli.sources.files.llamacpp_format import TOKEN, Header, encode
from klcli.sources.rows import TopBlock
from klcli.storage.files import remove_left_over, whole_file
from klcli.text.vocabulary import IntArray, Vocabulary
from klcli.text.windows import Window, WindowTable, plan_batches

ENCODED_AT_ONCE = 2**20
"""How many logits are encoded at once, so that the temporaries stay small."""


def write_base_file(
    path: Path,
    source: Source,
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
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    try:
        target = Path(os.path.realpath(path))
        remove_left_over(target.parent)
        with whole_file(target) as file:
            file.write(header.pack())
            file.write(ids.astype(TOKEN).tobytes())
            _write_records(file, source, table, batch_tokens, progress)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _header_for(source: Source, table: WindowTable) -> Header:
    context = len(table.windows[0].inputs)
    header = Header(context=context, width=source.width, chunks=len(table.windows))
    if len(table.documents) != 1:
        raise UsageError(
            f"a base file of llama.cpp holds one text, not {len(table.documents)}: give one file, "
            "and --documents file"
        )
    if table.has_parts or not all(_is_chunk(window, header) for window in table.windows):
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
    source: Source,
    table: WindowTable,
    batch_tokens: int,
    progress: Progress | None,
) -> None:
    """Write the records in reading order, which batches of windows of one length keep."""
    plan = plan_batches(table.windows, batch_tokens)
    batches = [[table.windows[number] for number in batch] for batch in plan]
    done = 0
    if progress is not None:
        progress(done, table.tokens)
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
