"""Logits that a caller holds in memory, in the place of a file."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klcli.errors import SourceError
from klcli.sources.files.arrays import ArraySource, check_values, refuse_misnamed, source_of
from klcli.sources.given import GivenLogits
from klcli.sources.options import LoadOptions
from klcli.text.vocabulary import IntArray


class Held:
    """A NumPy array or a tensor on any device, of which slices are handed out on the CPU."""

    def __init__(self, values: Any) -> None:
        self.shape: tuple[int, ...] = tuple(values.shape)
        self._values = values.detach() if isinstance(values, Tensor) else np.asarray(values)

    def __getitem__(self, key: Any) -> Any:
        part = self._values[key]
        return part.cpu() if isinstance(part, Tensor) else np.array(part)

    def digest(self) -> str:
        """The sha256 of shape, type and numbers."""
        found = hashlib.sha256(f"{self.shape} {self._values.dtype}".encode())
        for part in self._values:
            plain = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
            found.update(plain.cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def check_unchanged(self) -> None:
        """The caller sees to that."""


def open_given(given: GivenLogits, options: LoadOptions) -> ArraySource:
    """A source of logits in memory.

    Raises:
        SourceError: shape, type or token ids do not fit.
    """
    name, values = str(given), Held(given.values)
    kind = "logits" if options.values == "auto" else options.values
    check_values(name, values)
    if options.values == "auto":
        refuse_misnamed(name, values, kind)
    windows = values.shape[0] if len(values.shape) == 3 else 1
    return source_of(
        name,
        values,
        kind,
        file=values,
        tokens=_ids_of(name, given.token_ids),
        score_from=np.zeros(windows, dtype=np.int64),
        options=options,
    )


def _ids_of(name: str, given: Any) -> IntArray | None:
    if given is None:
        return None
    ids = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    if ids.dtype.kind not in "iu":
        raise SourceError(f"{name}: its token ids are {ids.dtype}, not integers")
    return ids
