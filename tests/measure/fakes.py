"""Sources with known distributions, to put where a model would stand."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klcli.choices import Task
from klcli.errors import Notice
from klcli.sources.rows import Rows, TensorRows
from klcli.text.cutting import plan_windows
from klcli.text.protocols import Protocol as WindowProtocol
from klcli.text.vocabulary import TokenNames, Vocabulary
from klcli.text.windows import TokenizedDocument, Window, WindowTable


class FakeModel:
    """A live model, as far as it can be one without weights. See ``Source``."""

    name = "fake"
    task: Task = "causal"
    width = 0
    device = torch.device("cpu")
    longest: int | None = None
    vocabulary: Vocabulary | None = None
    windows: WindowTable | None = None
    is_live = True
    lists_only = False
    notices: tuple[Notice, ...] = ()

    def __init__(self) -> None:
        self.provenance: dict[str, Any] = {}

    @property
    def names(self) -> TokenNames | None:
        return self.vocabulary

    def windows_for(self, _vocabulary: Vocabulary | None) -> WindowTable | None:
        return self.windows

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        return iter(())

    def digest(self) -> str:
        return self.name

    def check_unchanged(self) -> None: ...


class FakeSource(FakeModel):
    """Predicts from a table: row ``t`` of ``logits`` (tokens, width) after token ``t`` of the text.

    ``block`` caps how many rows are handed out at once.
    """

    def __init__(self, logits: Tensor, block: int = 512) -> None:
        super().__init__()
        self.width = logits.shape[1]
        self._logits = logits
        self._block = block

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        for batch in batches:
            rows = TensorRows(torch.cat([self._of(window) for window in batch]))
            rows.size = self._block
            yield rows

    def _of(self, window: Window) -> Tensor:
        first = window.position - 1
        return self._logits[first : first + len(window.targets)]


def table_of(ids: Sequence[int], context: int = 8, stride: int | None = None) -> WindowTable:
    """The rolling windows of one document of these ids."""
    document = TokenizedDocument(
        corpus=0, name="text", ids=np.array(ids, dtype=np.int64), encoding=None
    )
    protocol = WindowProtocol(
        name="rolling",
        context=context,
        stride=stride or context,
        score_from=0,
        bos="none",
        special_tokens="text",
    )
    return plan_windows([document], protocol, None)
