"""Rows out of llama.cpp: a text is read as far as the rows that are asked for, block by block."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from klcli.choices import RowKind
from klcli.sources.llamacpp.binding import Context
from klcli.sources.rows import spans
from klcli.text.windows import Window


class LlamaRows:
    """The scored rows of some windows, made as they are asked for, in order.

    What was read of a window stays in the context, so that rows that follow on each other cost one
    pass. Whoever goes back has the window read again.
    """

    kind: RowKind = "logits"

    def __init__(
        self, windows: Sequence[Window], context: Callable[[], Context], size: int
    ) -> None:
        self._windows, self._context, self.size = windows, context, size
        self._counts = [len(window.targets) for window in windows]
        self._open, self._read = -1, 0  # the window in the context, and how many ids of it
        self._made: tuple[int, int, Tensor] | None = None

    def __len__(self) -> int:
        return sum(self._counts)

    def block(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (within one block): a tensor (stop - start, vocabulary)."""
        if self._made is None or self._made[:2] != (start, stop):
            parts = [self._rows(*one) for one in spans(self._counts, start, stop)]
            self._made = start, stop, torch.cat(parts)
        return self._made[2]

    def _rows(self, number: int, first: int, last: int) -> Tensor:
        """Some scored rows of one window."""
        window = self._windows[number]
        rows = window.rows[first:last]
        stop, context = int(rows[-1]) + 1, self._context()
        goes_on = number == self._open and int(rows[0]) >= self._read
        if not goes_on or context.reader is not self:
            context.forget(self)
            self._open, self._read = number, 0
        is_wanted = np.zeros(stop, dtype=np.bool_)
        is_wanted[rows] = True
        parts = []
        while self._read < stop:
            end = min(self._read + context.block, stop)
            ids, wanted = window.inputs[self._read : end], is_wanted[self._read : end]
            parts.append(torch.from_numpy(context.read(ids, self._read, wanted)))
            self._read = end
        return torch.cat(parts)
