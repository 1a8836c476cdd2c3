"""Rows: the distributions of one batch, handed out a few at a time.

A batch of 2,048 positions over 262,144 tokens is 2 GB in float32. Rows hold what the logits can be
made of instead, and make one block of them when it is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from klcli.choices import RowKind

LARGEST_BLOCK = 512
SMALLEST_BLOCK = 16
BLOCK_BYTES = 128 * 2**20
FILE_BYTES = 16 * 2**20
"""What is only read wants no large blocks: these stay in the cache until they are scored."""


class Rows(Protocol):
    """The distributions of n scored positions, not yet materialised.

    ``kind`` says what a block holds:

    - ``logits``: logits, a constant a row aside;
    - ``log_probs``: the logarithms of probabilities that sum to 1;
    - ``truncated``: log-probabilities of llama.cpp's base files, the tail cut off, so that they do
      not sum to 1 and must not be renormalised;
    - ``topk``: a ``TopBlock``, the most probable ids only.
    """

    @property
    def kind(self) -> RowKind: ...

    @property
    def size(self) -> int:
        """The number of rows in a block, a power of two."""
        ...

    def __len__(self) -> int: ...

    def block(self, start: int, stop: int) -> "Tensor | TopBlock":
        """Rows ``start`` to ``stop``, which lie in one block: a tensor (stop - start, vocabulary).

        Blocks begin at multiples of ``size``. It may be written over when the source makes the next
        one.
        """
        ...


class TopBlock(NamedTuple):
    """The most probable ids of some rows, best first, and what is left for all others.

    ``ids`` (rows, k) are -1 where nobody knows which id it is, and ``log_probs`` -inf too where a
    row has fewer than k. A log-probability was rounded, and the true one is at most ``error``
    (rows, k) away. All ids that are not listed have together a probability between
    e^``log_least_rest`` and e^``log_rest`` (rows,). The first ``ranked`` (rows,) ids are the most
    probable ones; behind them may stand the token of the text, of which only the probability is
    known.
    """

    ids: Tensor
    log_probs: Tensor
    error: Tensor
    log_rest: Tensor
    log_least_rest: Tensor
    ranked: Tensor


def block_rows(width: int, element_size: int, most: int = BLOCK_BYTES) -> int:
    """How many rows a block has: enough to feed the head well, at most 128 MB, a power of two.

    Small matrix products waste the head: blocks of 16 rows take 1.4 times as long as one product of
    everything, blocks of 512 the same time. Of two powers of two the smaller divides the larger, so
    that two sources of different widths still share the borders of their blocks.
    """
    rows = LARGEST_BLOCK
    while rows > SMALLEST_BLOCK and rows * width * element_size > most:
        rows //= 2
    return rows


def spans(counts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Which rows of which window the rows ``start`` to ``stop`` of a batch are.

    ``counts`` are the scored rows of each window. Gives (window, first row, row after the last).
    """
    begin = 0
    for number, count in enumerate(counts):
        first, last = max(start - begin, 0), min(stop - begin, count)
        if first < last:
            yield number, first, last
        begin += count


class TensorRows:
    """Rows of logits that exist already: a tensor (rows, vocabulary)."""

    kind: RowKind = "logits"
    size = LARGEST_BLOCK

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def __len__(self) -> int:
        return self._values.shape[0]

    def block(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``: a tensor (stop - start, vocabulary)."""
        return self._values[start:stop]


class HeadRows:
    """Rows behind the output head of a model: hidden states (rows, d), and the head.

    The head always multiplies the same number of rows, ``size``, the last block padded with zeros:
    matrix products of another shape may round differently, and the same hidden states shall give
    the same bits wherever they come from. Where all rows are fewer than a block, blocks are as
    small as the next power of two: a masked model has one row for every sequence that it reads.
    """

    kind: RowKind = "logits"

    def __init__(self, hidden: Tensor, head: Callable[[Tensor], Tensor], size: int) -> None:
        self._hidden = hidden
        self._head = head
        self.size = min(size, max(SMALLEST_BLOCK, 1 << (len(hidden) - 1).bit_length()))
        self._made_from = (-1, 0)
        self._made = hidden[:0]

    def __len__(self) -> int:
        return self._hidden.shape[0]

    @torch.inference_mode()
    def block(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (within one block): a tensor (stop - start, vocabulary)."""
        first = start - start % self.size
        if stop > first + self.size:
            raise ValueError(f"rows {start} to {stop} cross a block of {self.size}")
        if self._made_from != (first, self._turn):
            self._made = self._head(self._padded(first))
            self._made_from = first, self._turn
        return self._made[start - first : stop - first]

    def hidden(self, start: int, stop: int) -> Tensor:
        """The hidden states of rows ``start`` to ``stop``: a tensor (stop - start, d)."""
        return self._hidden[start:stop]

    @property
    def _turn(self) -> int:
        """Of a head that writes over what it made: how often it has."""
        return getattr(self._head, "made", 0)

    def _padded(self, first: int) -> Tensor:
        part = self._hidden[first : first + self.size]
        missing = self.size - part.shape[0]
        return torch.nn.functional.pad(part, (0, 0, 0, missing)) if missing else part
