"""What a model holds between its layers, for whoever compares two models layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from klcli.sources import Source
from klcli.sources.rows import Rows
from klcli.text.windows import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStates:
    """What a model held at the scored rows of a batch, from its embeddings to its logits.

    Attributes:
        hidden: the states by layer, each (rows, size): ``embedding`` is what the first block is
            given, ``block 0`` and so on what each block gives, and ``final`` what the output head
            is given. There is no ``final`` where the head does not stand alone.
        logits: the logits of the same rows.
    """

    hidden: Mapping[str, Tensor]
    logits: Rows


class Layered(Source, Protocol):
    """A live model that shows what it holds between its layers."""

    @property
    def block_names(self) -> Sequence[str]:
        """What the model calls its blocks, in the order in which they run."""
        ...

    def states(self, batch: Sequence[Window]) -> LayerStates:
        """What the model holds at the scored rows of windows of one length, window by window."""
        ...

    def states_read_otherwise(self, batch: Sequence[Window]) -> LayerStates:
        """The same, of forward passes over another number of sequences."""
        ...
