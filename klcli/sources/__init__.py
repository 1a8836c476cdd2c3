"""Who predicts: models, recordings and logit files, all of one shape to everything downstream."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from klcli.choices import Task
    from klcli.errors import Notice
    from klcli.sources.hf.proof import Proof
    from klcli.sources.rows import Rows
    from klcli.text.vocabulary import TokenNames, Vocabulary
    from klcli.text.windows import Window, WindowTable


UNBOUNDED = 2**31 - 1
"""The width of a source that lists ids and does not say how many there are."""


class Source(Protocol):
    """Whoever predicts: a live model, a recording, a file of others, a fake in a test.

    Attributes:
        name: what a user calls it.
        width: how many ids it predicts, ``UNBOUNDED`` where it lists ids and does not say.
        device: where its rows appear.
        provenance: what a report says of it.
        is_live: whether it is a model, which takes any windows.
        lists_only: whether it knows its most probable ids only.
        notices: what a reader should know of it.
    """

    name: str
    width: int
    device: "torch.device"
    provenance: dict[str, Any]
    is_live: bool
    lists_only: bool
    notices: "tuple[Notice, ...]"

    @property
    def task(self) -> "Task":
        """Whether it predicts the next token or a hidden one."""
        ...

    @property
    def longest(self) -> int | None:
        """The most tokens that a live model can read at once; None without a limit."""
        ...

    @property
    def vocabulary(self) -> "Vocabulary | None":
        """The tokenizer, None for a file that has none."""
        ...

    @property
    def names(self) -> "TokenNames | None":
        """What tokens read like, where the source itself says so."""
        ...

    @property
    def windows(self) -> "WindowTable | None":
        """The windows that the source brings; None for a live model."""
        ...

    def windows_for(self, vocabulary: "Vocabulary | None") -> "WindowTable | None":
        """The windows that the source brings, as a model with this vocabulary reads them."""
        ...

    def rows(self, batches: Sequence[Sequence["Window"]]) -> "Iterator[Rows]":
        """One Rows for each batch: its windows' scored rows, one window after the other."""
        ...

    def digest(self) -> str:
        """A sha256 of all that it predicts from: equal digests, equal predictions.

        Raises:
            SourceError: a file changed since it was opened.
        """
        ...

    def check_unchanged(self) -> None:
        """Find out whether its files still are what they were when they were opened.

        Raises:
            SourceError: one was written to, replaced or removed.
        """
        ...


class Live(Source, Protocol):
    """A model, whoever runs it: it takes any windows, and can be recorded.

    Attributes:
        proof: what a probe found of its output head.
        state_dtype: the number format of what its head is given.
    """

    proof: "Proof"
    state_dtype: "torch.dtype"
    vocabulary: "Vocabulary"


def identity_of(source: Source) -> dict[str, Any]:
    """What makes a source the same one when a run goes on: what it is, and its digest.

    Raises:
        SourceError: a file changed since it was opened.
    """
    about = {key: value for key, value in source.provenance.items() if key != "device"}
    return about | {"digest": source.digest()}
