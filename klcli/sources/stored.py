"""What recordings and logit files have in common: they bring their windows, and read nothing."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch

from klcli.choices import Task
from klcli.errors import Notice
from klcli.text.vocabulary import TokenNames, Vocabulary
from klcli.text.windows import WindowTable


class StoredSource(ABC):
    """A source that is in files: predictions of windows that it brings. See ``Source``."""

    task: Task = "causal"
    device = torch.device("cpu")
    longest: int | None = None
    is_live = False
    lists_only = False
    notices: tuple[Notice, ...] = ()

    name: str
    width: int
    windows: WindowTable
    vocabulary: Vocabulary | None
    provenance: dict[str, Any]

    @property
    def names(self) -> TokenNames | None:
        """What tokens read like, where the file itself says so."""
        return self.vocabulary

    def windows_for(self, _vocabulary: Vocabulary | None) -> WindowTable:
        """The windows of the file, whoever reads them."""
        return self.windows

    @abstractmethod
    def digest(self) -> str:
        """A sha256 of all that it predicts from."""

    @abstractmethod
    def check_unchanged(self) -> None:
        """Raise a SourceError where a file is not what it was when it was opened."""


class Origin(Protocol):
    """Where predictions lie: a file, or the memory of a caller."""

    def digest(self) -> str:
        """A sha256 of all of it."""
        ...

    def check_unchanged(self) -> None:
        """Raise a SourceError where it is not what it was."""
        ...


class FileSource(StoredSource):
    """A source that is one file, or what a file would hold."""

    def __init__(self, file: Origin) -> None:
        self._file = file

    def digest(self) -> str:
        """The sha256 of the file."""
        return self._file.digest()

    def check_unchanged(self) -> None:
        """Raise a SourceError where the file is not what it was when it was opened."""
        self._file.check_unchanged()
