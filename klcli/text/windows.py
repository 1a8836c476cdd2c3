"""Windows: which tokens are scored, and what the model has read before each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.text.corpus import Corpus, Part
from klcli.text.vocabulary import Encoding, IntArray

NO_TARGET = -1
"""The target of a row of which nobody knows what came next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedDocument:
    """The ids of one document, and where each ends in its text.

    ``encoding`` says which bytes and words each token covers, None where the text is not known.
    ``corpus`` is the number of the corpus that the document belongs to, and ``group`` what it has
    in the field that documents are grouped by. ``parts`` are those of the text, in tokens; without
    any every token is scored, otherwise those of the scored parts. Before a document that
    ``is_rendered`` no BOS is put.
    """

    corpus: int
    name: str
    ids: IntArray
    encoding: Encoding | None
    parts: tuple[Part, ...] = ()
    group: str | None = None
    is_rendered: bool = False

    @property
    def is_scored(self) -> npt.NDArray[np.bool_]:
        """Whether each token is to be scored."""
        if not self.parts:
            return np.ones(len(self.ids), dtype=np.bool_)
        scored = np.zeros(len(self.ids), dtype=np.bool_)
        for part in self.parts:
            scored[part.start : part.stop] |= part.is_scored
        return scored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masking:
    """How the scored tokens of a window are hidden from a masked model.

    Without ``every`` each scored token has a forward row of its own, in which ``mask_id`` stands in
    its place, and in that of every input up to ``ends`` (scored tokens,), the input after the last
    hidden one. With ``every`` = K there are K forward rows, and row r hides every K-th scored token
    from the r-th on.
    """

    mask_id: int
    ends: IntArray
    every: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """One sequence that a model reads, and the rows of it that are scored.

    Attributes:
        number: its place in the window table as planned, before any limit.
        document: number of the document in the window table.
        inputs: the ids as fed, BOS and other special tokens included.
        score_from: the first scored row.
        targets: the id that each scored row is scored on, ``NO_TARGET`` where unknown.
        position: where in the document ``targets[0]`` stands.
        steps: how many rows each scored row stands behind the first one; None where they follow
            each other without a gap.
        masking: how a masked model reads the inputs; None for a causal one. Row i of a masked
            window is scored on the token that stands at i itself.
    """

    number: int = 0
    document: int
    inputs: IntArray
    score_from: int
    targets: IntArray
    position: int
    steps: IntArray | None = None
    masking: Masking | None = None

    @property
    def rows(self) -> IntArray:
        """The scored rows, ascending: (scored,)."""
        return self.score_from + self._steps

    @property
    def positions(self) -> IntArray:
        """Where in the document each target stands: (scored,)."""
        return self.position + self._steps

    @property
    def _steps(self) -> IntArray:
        return np.arange(len(self.targets)) if self.steps is None else self.steps

    def only(self, is_scored: npt.NDArray[np.bool_]) -> "Window":
        """A causal window with only some of its rows scored, and nothing read behind the last.

        ``is_scored`` says of each token of the document whether it is.
        """
        own = is_scored[self.positions]
        if own.all():
            return self
        kept = np.flatnonzero(own)
        if not len(kept):
            return replace(self, targets=self.targets[:0], steps=None)
        first, last = int(kept[0]), int(kept[-1])
        steps = kept - first
        return replace(
            self,
            inputs=self.inputs[: self.score_from + last + 1],
            score_from=self.score_from + first,
            targets=self.targets[kept],
            position=self.position + first,
            steps=None if len(kept) == last - first + 1 else steps.astype(np.int32),
        )

    @property
    def forward_rows(self) -> int:
        """How many sequences a model reads to score this window."""
        if self.masking is None:
            return 1
        return min(self.masking.every or len(self.targets), len(self.targets))


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTable:
    """All windows of a run, in reading order, with the documents they are cut from.

    ``protocol`` says how they were cut, as a report shows it, and ``corpora`` whose documents they
    are; both are empty where that is not known. ``lacks_remainder`` says that of the text only what
    made whole windows is there.
    """

    documents: tuple[TokenizedDocument, ...]
    windows: tuple[Window, ...]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    corpora: tuple[Corpus, ...] = ()
    lacks_remainder: bool = False

    @property
    def has_tokens(self) -> bool:
        """Whether it is known which tokens the windows are about."""
        return bool((self.windows[0].inputs >= 0).all())

    @property
    def masking(self) -> dict[str, int | None] | None:
        """How tokens are hidden from a masked model: by which id, and how often; else None."""
        masking = self.windows[0].masking
        return None if masking is None else {"mask_id": masking.mask_id, "every": masking.every}

    @property
    def has_parts(self) -> bool:
        """Whether some document has parts; only then scored rows have others between them."""
        return any(document.parts for document in self.documents)

    @property
    def tokens(self) -> int:
        """How many tokens are scored."""
        return sum(self.window_tokens)

    @property
    def window_tokens(self) -> list[int]:
        """How many tokens of each window are scored."""
        return [len(window.targets) for window in self.windows]

    def limited(self, limit: int | None) -> "WindowTable":
        """Only the first ``limit`` windows of each corpus; all for None."""
        if limit is None:
            return self
        taken: dict[int, int] = {}
        kept = []
        for window in self.windows:
            corpus = self.documents[window.document].corpus
            taken[corpus] = taken.get(corpus, 0) + 1
            if taken[corpus] <= limit:
                kept.append(window)
        return replace(self, windows=tuple(kept))


def plan_batches(
    windows: Sequence[Window], budget: int, *, by_length: bool = True
) -> list[list[int]]:
    """Numbers of windows that are read together: equal in length, at most ``budget`` ids in all.

    Equal lengths need no padding. A window longer than the budget is a batch of its own. The plan
    depends on the windows alone, so that every source of a run sees the same batches. They come
    ``by_length``, the longest first, or else in the order of the windows.
    """
    batches: list[list[int]] = []
    order = list(range(len(windows)))
    if by_length:
        order = sorted(order, key=lambda i: -len(windows[i].inputs))
    read, length = 0, -1  # sequences in the last batch, and their length
    for number in order:
        window = windows[number]
        fits = (read + window.forward_rows) * length <= budget
        if len(window.inputs) == length and fits:
            batches[-1].append(number)
            read += window.forward_rows
        else:
            batches.append([number])
            read, length = window.forward_rows, len(window.inputs)
    return batches
