"""Where the columns of TokenScores are kept: in memory while they are few, then in a file.

A scored token of a comparison has some 120 bytes of measured numbers. Past a limit they are written
to a temporary file without a name, which goes with its process, so that memory stays flat in the
length of the text; a column is read back when it is asked for. Where a token stands is not kept at
all but follows from the window table.
"""

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.text.windows import TokenizedDocument, Window, WindowTable

Column = npt.NDArray[Any]

IN_MEMORY = 32 * 2**20
"""Bytes of measured columns that stay in memory."""


class Columns(Mapping[str, Column]):
    """Columns by name, all of one length: where the tokens of a table stand, and what was measured.

    Args:
        table: the tokens.
        places: names and types of the columns that follow from the table.
        measured: names and types of those that are written.
        windows: the numbers of the table's windows, where it is a part of another table.
    """

    def __init__(
        self,
        table: WindowTable,
        places: Mapping[str, type],
        measured: Mapping[str, type],
        windows: Sequence[int] | None = None,
    ) -> None:
        self._windows = range(len(table.windows)) if windows is None else windows
        self.tokens = table.tokens
        self._table = table
        self._ends = np.cumsum(table.window_tokens)
        self._places = places
        self._measured = measured
        in_memory = self.tokens * sum(np.dtype(t).itemsize for t in measured.values()) <= IN_MEMORY
        store = _InMemory if in_memory else _InFile
        self._stores = {name: store(self.tokens, np.dtype(t)) for name, t in measured.items()}

    def __len__(self) -> int:
        return len(self._places) + len(self._measured)

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from self._measured

    def __getitem__(self, name: str) -> Column:
        return self.part(name, 0, self.tokens)

    def part(self, name: str, start: int, stop: int) -> Column:
        """Rows ``start`` to ``stop`` of a column."""
        if name in self._places:
            return self._place(name, np.dtype(self._places[name]), start, stop)
        return self._stores[name].read(start, min(stop, self.tokens))

    def write(self, name: str, index: npt.NDArray[np.int64], values: Column) -> None:
        """Set some rows of a measured column."""
        borders = np.flatnonzero(np.diff(index) != 1) + 1
        for run, part in zip(np.split(index, borders), np.split(values, borders), strict=True):
            self._stores[name].write(int(run[0]), part)

    def only(
        self, table: WindowTable, windows: Sequence[int], rows: npt.NDArray[np.int64]
    ) -> "Columns":
        """Columns of a table that has only some of the ``windows``: those ``rows`` of these."""
        fewer = Columns(table, self._places, self._measured, windows)
        for name in self._measured:
            fewer.write(name, np.arange(len(rows)), self[name][rows])
        return fewer

    def _place(self, name: str, dtype: np.dtype[Any], start: int, stop: int) -> Column:
        """Part of a column that follows from the table."""
        parts: list[Column] = [np.empty(0, dtype=dtype)]
        for number in range(int(np.searchsorted(self._ends, start, side="right")), len(self._ends)):
            window = self._table.windows[number]
            begin = int(self._ends[number]) - len(window.targets)
            if begin >= stop:
                break
            first, last = max(start - begin, 0), min(stop - begin, len(window.targets))
            document = self._table.documents[window.document]
            values = _PLACES[name](self._windows[number], window, document)
            part = values[first:last] if isinstance(values, np.ndarray) else values
            parts.append(np.broadcast_to(np.asarray(part, dtype=dtype), (last - first,)))
        return np.concatenate(parts)


class _InMemory:
    def __init__(self, tokens: int, dtype: np.dtype[Any]) -> None:
        self._values = np.zeros(tokens, dtype=dtype)

    def read(self, start: int, stop: int) -> Column:
        return self._values[start:stop]

    def write(self, start: int, values: Column) -> None:
        self._values[start : start + len(values)] = values


class _InFile:
    """A column in a file, read and written plainly: mapped pages would count as memory."""

    def __init__(self, tokens: int, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._file = tempfile.TemporaryFile(prefix="klcli-")  # noqa: SIM115
        self._file.truncate(tokens * dtype.itemsize)
        weakref.finalize(self, self._file.close)

    def read(self, start: int, stop: int) -> Column:
        size = self._dtype.itemsize
        content = os.pread(self._file.fileno(), (stop - start) * size, start * size)
        return np.frombuffer(content, dtype=self._dtype)

    def write(self, start: int, values: Column) -> None:
        content = values.astype(self._dtype).tobytes()
        os.pwrite(self._file.fileno(), content, start * self._dtype.itemsize)


def _of_text(field: str) -> Callable[[int, Window, TokenizedDocument], Column | int]:
    """What the text says of each token, -1 where it is not known.

    A row whose target is not known may stand after the last token.
    """

    def values(_: int, window: Window, document: TokenizedDocument) -> Column | int:
        if document.encoding is None:
            return -1
        known: Column = getattr(document.encoding, field)
        return known.take(window.positions, mode="clip")

    return values


def _byte_start(_: int, window: Window, document: TokenizedDocument) -> Column | int:
    if document.encoding is None:
        return -1
    before = window.positions - 1
    ends = document.encoding.ends
    return np.where(before < 0, 0, ends.take(np.maximum(before, 0), mode="clip"))


_PLACES: Mapping[str, Callable[[int, Window, TokenizedDocument], Column | int]] = {
    "document": lambda number, window, document: window.document,
    "window": lambda number, window, document: number,
    "position": lambda number, window, document: window.positions,
    "token_id": lambda number, window, document: window.targets,
    "byte_start": _byte_start,
    "byte_end": _of_text("ends"),
    "words": _of_text("words"),
}
