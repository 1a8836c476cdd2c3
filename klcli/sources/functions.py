"""A function that predicts, in the place of a model: any engine that Python can call."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klcli.choices import RowKind
from klcli.errors import SourceError, gist, is_out_of_memory
from klcli.sources.given import GivenFunction
from klcli.sources.logits_only import LogitsOnly, unproved
from klcli.sources.options import LoadOptions
from klcli.sources.rows import LARGEST_BLOCK, spans
from klcli.text.vocabulary import IntArray, Vocabulary
from klcli.text.windows import Window

PROBE = 8
"""Ids of the text on which it is found out what a function returns."""
SAME = 1e-3
"""Logits that differ by more are not rounded otherwise, but others."""


class FunctionSource(LogitsOnly):
    """What ``predict(ids)`` says of the token behind each id.

    ``predict`` is given the ids of one window, (n,) int64, and returns logits, (n, vocabulary): row
    i after ids 0 to i. One window's logits are held at a time.
    """

    def __init__(self, given: GivenFunction, vocabulary: Vocabulary) -> None:
        self.name, self.vocabulary = str(given), vocabulary
        self._predict = given.predict
        self.longest: int | None = None
        self.width = 0
        ids = np.arange(PROBE) % vocabulary.size
        probed = self.logits(ids)
        self.width = probed.shape[-1]
        self._check_causal(ids, probed)
        self._probed = probed
        self.proof = unproved(self.width, probed.dtype, "a function gives logits")
        self.provenance: dict[str, Any] = {
            "source": self.name,
            "kind": self.task,
            "revision": None,
            "dtype": str(probed.dtype).removeprefix("torch."),
            "device": "cpu",
            "architecture": "function",
            "vocabulary_width": self.width,
            "tokenizer": vocabulary.fingerprint,
        }

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator["FunctionRows"]:
        """The scored rows of each batch, window by window.

        Raises:
            SourceError: the function fails, or returns something else than logits.
        """
        for batch in batches:
            yield FunctionRows(batch, self.logits)

    def digest(self) -> str:
        """A sha256 of what it predicts on a probe: nobody can look into a function."""
        content = self._probed.contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()

    def check_unchanged(self) -> None:
        """There is no file that could change."""

    def logits(self, ids: IntArray) -> Tensor:
        """What the function returns for some ids: (n, vocabulary).

        Raises:
            SourceError: it fails, or that is not logits.
        """
        try:
            found = self._predict(np.asarray(ids, dtype=np.int64))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            fewer = "" if len(ids) <= PROBE else "; if it cannot read as many, give a context"
            raise SourceError(
                f"{self.name} failed on {len(ids)} ids: {gist(error)}{fewer}"
            ) from error
        logits = torch.as_tensor(found)
        wanted = (len(ids), self.width or logits.shape[-1])
        if not logits.is_floating_point() or tuple(logits.shape) != wanted:
            shown = "×".join(map(str, logits.shape))
            raise SourceError(
                f"{self.name} returned {str(logits.dtype).removeprefix('torch.')} of {shown} for "
                f"{len(ids)} ids: it must return logits, a row for each id"
            )
        return logits.detach().cpu()

    def _check_causal(self, ids: IntArray, probed: Tensor) -> None:
        """Find out whether rows are of what was read up to them.

        Raises:
            SourceError: an id changes what stands before it.
        """
        other = ids.copy()
        other[-1] = (ids[-1] + 1) % self.vocabulary.size
        changed = (self.logits(other)[:-1].double() - probed[:-1].double()).abs().max()
        if float(changed) > SAME:
            raise SourceError(
                f"{self.name} is not causal: an id changes the logits before it; row i must be the "
                "prediction after ids 0 to i"
            )


class FunctionRows:
    """The scored rows of some windows; the function is called as they are asked for."""

    kind: RowKind = "logits"
    size = LARGEST_BLOCK

    def __init__(self, windows: Sequence[Window], logits: Callable[[IntArray], Tensor]) -> None:
        self._windows, self._logits = windows, logits
        self._counts = [len(window.targets) for window in windows]
        self._held, self._rows = -1, torch.empty(0)

    def __len__(self) -> int:
        return sum(self._counts)

    def block(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``: a tensor (stop - start, vocabulary)."""
        parts = [
            self._scored(number)[first:last]
            for number, first, last in spans(self._counts, start, stop)
        ]
        return torch.cat(parts)

    def _scored(self, number: int) -> Tensor:
        """The scored rows of one window, which are held until another is asked for."""
        if self._held != number:
            window = self._windows[number]
            self._rows = self._logits(window.inputs)[torch.from_numpy(np.array(window.rows))]
            self._held = number
        return self._rows


def open_function(given: GivenFunction, options: LoadOptions) -> FunctionSource:
    """A source of what a function predicts.

    Raises:
        SourceError: its tokenizer cannot be had, it fails, or it does not return logits.
    """
    from klcli.sources.hf.tokenizer import load_tokenizer, vocabulary_of

    if isinstance(given.tokenizer, str):
        return FunctionSource(given, load_tokenizer(given.tokenizer, options))
    return FunctionSource(given, vocabulary_of(given.tokenizer, str(given)))
