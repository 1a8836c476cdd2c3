"""What recordings and logit files have in common: they bring their windows, and read nothing."""

from typing import Any

import torch

from klcli.choices import Task
from klcli.text.vocabulary import TokenNames, Vocabulary
from klcli.text.windows import WindowTable


class StoredSource:
    """A source that is a file: predictions of windows that it brings. See ``Source``."""

    task: Task = "causal"
    device = torch.device("cpu")
    longest: int | None = None
    is_live = False
    lists_only = False

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

    def identity(self) -> dict[str, Any]:
        """What makes it the same source when a run goes on."""
        return {key: value for key, value in self.provenance.items() if key != "device"}
