"""What causal and masked models have in common: they read batches within a budget of ids."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klcli.choices import Task
from klcli.errors import Notice, SourceError, gist, is_out_of_memory
from klcli.sources.devices import batch_tokens_for
from klcli.sources.head import Head
from klcli.sources.hf.blocks import Read, Taps, names_of, running_blocks
from klcli.sources.hf.fingerprint import weights_digest
from klcli.sources.hf.heads import Place, heads_of, place_of
from klcli.sources.hf.limits import longest_of
from klcli.sources.hf.memory import Memory
from klcli.sources.hf.proof import (
    Proof,
    bound_for,
    divergence_of_head,
    largest_kl,
    prove_head,
)
from klcli.sources.hf.sharing import Base
from klcli.sources.layers import LayerStates
from klcli.sources.rows import HeadRows, TensorRows, block_rows
from klcli.storage.files import FileState, check_state
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import Window

PROBE_LENGTH = 32
NOISY = 1e-4
"""Nats. A model that differs from itself by more when it reads the same again draws at random."""


class ModelSource(ABC):
    """A live model that predicts tokens of a window. See ``Source``.

    Where the model allows it the body runs once a batch and the output head a block of rows at a
    time, so that the logits of a whole batch never exist; a probe at load proves that this gives
    the model's own logits. Otherwise a batch's logits are held whole.

    ``batch_tokens`` is how many ids one forward pass reads, if its sequences are not longer.
    """

    task: Task
    windows = None
    is_live = True
    lists_only = False
    notices: tuple[Notice, ...] = ()

    def __init__(
        self,
        name: str,
        model: Any,
        vocabulary: Vocabulary,
        revision: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.name = name
        self.vocabulary = vocabulary
        self._model = model
        self._memory = Memory(model)
        self.device = _device_of(model)
        self.batch_tokens = batch_tokens or batch_tokens_for([self.device])
        self.longest = longest_of(model)
        self.proof = self._prove()
        self._memory.restore()
        self._head = self.proof.head
        self.width, self._dtype = self.proof.width, self.proof.dtype
        self.state_dtype: torch.dtype = model.dtype
        self._digest: str | None = None
        self.base: Base | None = None
        self._found: Sequence[torch.nn.Module] | None = None
        self._files: Mapping[Path, FileState] = {}
        self.provenance: dict[str, Any] = {
            "source": name,
            "kind": self.task,
            "revision": revision or getattr(model.config, "_commit_hash", None),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": ", ".join(_devices_of(model)),
            "architecture": type(model).__name__,
            "vocabulary_width": self.width,
            "tokenizer": vocabulary.fingerprint,
        }

    @property
    def model(self) -> Any:
        """The model itself, as transformers has it."""
        return self._model

    @property
    def names(self) -> Vocabulary:
        """What tokens read like."""
        return self.vocabulary

    def windows_for(self, _vocabulary: Vocabulary | None) -> None:
        """It brings no windows: it takes any."""
        return None  # noqa: RET501

    def use_plain_attention(self) -> None:
        """Compute attention step by step from now on, not with a fused kernel."""
        self._model.set_attn_implementation("eager")
        self._memory = Memory(self._model)

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[HeadRows | TensorRows]:
        """The scored rows of each batch, window by window. All windows of a batch have one length.

        Raises:
            SourceError: the model fails on a batch.
        """
        head = None if self._head is None else self._head.reusing()
        for batch in batches:
            yield self._rows_of(*self._sequences(batch), head)

    @torch.inference_mode()
    def _rows_of(
        self, ids: Tensor, places: Tensor, head: Callable[[Tensor], Tensor] | None
    ) -> HeadRows | TensorRows:
        """Rows at ``places`` (rows,), which count through the flattened ``ids`` (n, length)."""
        return self._as_rows(self._read(self._end, ids, places), head)

    @property
    def _end(self) -> Read:
        """What reads the end of the model: what its head is given, or else its logits."""
        return self._logits if self._head is None else self._hidden

    def _as_rows(
        self, end: Tensor, head: Callable[[Tensor], Tensor] | None
    ) -> HeadRows | TensorRows:
        if head is None:
            return TensorRows(end)
        return HeadRows(end, head, block_rows(self.width, self._dtype.itemsize))

    @property
    def block_names(self) -> tuple[str, ...]:
        """What the model calls its blocks, in the order in which they run.

        Raises:
            SourceError: it has none.
        """
        return names_of(self._model, self._blocks())

    def states(self, batch: Sequence[Window]) -> LayerStates:
        """What it holds between its layers at the scored rows of a batch. See ``LayerStates``.

        Raises:
            SourceError: the model fails on a batch, or its layers cannot be told apart.
        """
        return self._states(*self._sequences(batch))

    def states_read_otherwise(self, batch: Sequence[Window]) -> LayerStates:
        """The same, read one sequence at a time, or two where it was read one at a time.

        Raises:
            SourceError: as ``states``.
        """
        ids, places = self._sequences(batch)
        together = min(len(ids), self.batch_tokens // ids.shape[1])
        again = copy.copy(self)
        again.batch_tokens = 1 if together > 1 else 2 * ids.shape[1]
        return again._states(ids if len(ids) > 1 else ids.repeat(2, 1), places)

    @torch.inference_mode()
    def _states(self, ids: Tensor, places: Tensor) -> LayerStates:
        taps = Taps(self.name, self._blocks(), self._end)
        embedding, *blocks, end = taps.apart(self._read(taps, ids, places))
        hidden = {"embedding": embedding}
        hidden |= {f"block {number}": state for number, state in enumerate(blocks)}
        if self._head is None:
            return LayerStates(hidden=hidden, logits=self._as_rows(end, None))
        hidden["final"] = end
        return LayerStates(hidden=hidden, logits=self._as_rows(end, self._head.reusing()))

    @torch.inference_mode()
    def _blocks(self) -> Sequence[torch.nn.Module]:
        """Its blocks, found once by a probe."""
        if self._found is None:
            self._found = running_blocks(self._model, lambda: self._all_logits(self._probe()))
            self._memory.restore()
        return self._found

    def _read(self, read: Read, ids: Tensor, places: Tensor) -> Tensor:
        """What ``read`` makes of the rows.

        Raises:
            SourceError: the model fails on them.
        """
        try:
            return self._within_memory(read, ids, places)
        except (RuntimeError, MemoryError, ValueError, IndexError) as error:
            raise SourceError(
                f"{self.name} fails on a batch of {ids.shape[0]} x {ids.shape[1]} tokens: "
                f"{gist(error)}; try a smaller --batch-tokens or --context"
            ) from error

    def _within_memory(self, read: Read, ids: Tensor, places: Tensor) -> Tensor:
        """What ``read`` makes of the rows, with half the budget from now on if memory runs out."""
        while True:
            try:
                return self._in_passes(read, ids, places)
            except (RuntimeError, MemoryError) as error:
                sequences = min(len(ids), self.batch_tokens // ids.shape[1])
                if not is_out_of_memory(error) or sequences < 2:
                    raise
                self.batch_tokens = sequences // 2 * ids.shape[1]
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _in_passes(self, read: Read, ids: Tensor, places: Tensor) -> Tensor:
        """What ``read`` makes of the rows, in as many forward passes as the budget asks for."""
        length = ids.shape[1]
        step = max(1, self.batch_tokens // length)
        if len(ids) <= step:
            return self._from_the_start(read, ids, places)
        order = places.argsort()
        ordered = places[order]
        parts = []
        for first in range(0, len(ids), step):
            begin, end = torch.searchsorted(
                ordered, torch.tensor([first * length, (first + step) * length])
            )
            part = ids[first : first + step]
            parts.append(self._from_the_start(read, part, ordered[begin:end] - first * length))
        joined = torch.cat(parts)
        return joined[order.argsort().to(joined.device)]

    def _from_the_start(self, read: Read, ids: Tensor, places: Tensor) -> Tensor:
        """What ``read`` makes of the rows by a model that has seen nothing before."""
        states: Tensor = read(ids.to(self.device), places.to(self.device))
        self._memory.restore()
        return states

    @abstractmethod
    def _sequences(self, batch: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """What the model reads for a batch, and where in it the scored rows are."""

    def _logits(self, ids: Tensor, places: Tensor) -> Tensor:
        """The model's logits (rows, vocabulary) at some places."""
        return self._all_logits(ids).flatten(0, 1)[places]

    @abstractmethod
    def _hidden(self, ids: Tensor, places: Tensor) -> Tensor:
        """What the output head is given at some places: (rows, d).

        Raises:
            ValueError: the model does not apply its head once to every position.
        """

    @abstractmethod
    def _check_task(self, ids: Tensor, whole: Tensor, bound: float) -> None:
        """Raise a SourceError where the model does not do what it was loaded for.

        ``whole`` has its logits on ``ids`` (n, length, vocabulary), ``bound`` is the KL in nats
        that another batch shape may make.
        """

    def _all_logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=ids).logits
        return logits

    @cached_property
    def _place(self) -> Place:
        """Where the output head begins."""
        return place_of(self._model)

    @torch.inference_mode()
    def _prove(self) -> Proof:
        """Find out by a probe whether the model does its task, and whether its head stands alone.

        Raises:
            SourceError: the model does not do its task.
        """
        ids = self._probe()
        places = torch.arange(ids.numel(), device=ids.device)
        whole = self._all_logits(ids)
        noise = largest_kl(whole, torch.cat([self._all_logits(one[None]) for one in ids]))
        if noise > NOISY and (moved := largest_kl(whole, self._all_logits(ids))) > NOISY:
            self.notices = (_noisy(self.name, moved),)
        self._check_task(ids, whole, bound_for(noise))
        return prove_head(
            lambda: self._hidden(ids, places),
            lambda size, dtype: heads_of(self._place.project, self._model.config, size, dtype),
            whole,
            noise,
        )

    @torch.inference_mode()
    def self_kl(self, head: Head) -> float:
        """The largest KL (nats) of the logits of ``head`` from the model's own, on a probe."""
        ids = self._probe()
        places = torch.arange(ids.numel(), device=ids.device)
        found = divergence_of_head(
            head, self._hidden(ids, places), self._all_logits(ids).flatten(0, 1)
        )
        self._memory.restore()
        return found

    @torch.inference_mode()
    def stored_matrix(self) -> dict[str, Tensor]:
        """The output head's matrix, as a recording keeps it."""
        if self._head is None:
            raise ValueError("the head does not stand alone")
        return self._head.matrix(self.state_dtype, self.device)

    def digest(self) -> str:
        """A sha256 of the config and all weights, worked out once.

        Raises:
            SourceError: the model predicts otherwise after its weights were read.
        """
        if self._digest is None:
            before = self._last_logits()
            self._digest = weights_digest(self._model)
            if (moved := largest_kl(before, self._last_logits())) > self.proof.bound:
                raise SourceError(
                    f"{self.name} changed while its weights were hashed: it now predicts otherwise "
                    f"(KL {moved:.2g} nats); without --run nothing is hashed"
                )
        return self._digest

    @torch.inference_mode()
    def _last_logits(self) -> Tensor:
        """What it predicts at the end of the probe: (2, vocabulary)."""
        logits = self._all_logits(self._probe())[:, -1]
        self._memory.restore()
        return logits

    def watch(self, files: Mapping[Path, FileState]) -> None:
        """Know the files that the model was loaded from, and what they were before.

        Of weights that all lie on accelerators they are not needed any more.
        """
        is_copied = all(p.device.type not in ("cpu", "meta") for p in self._model.parameters())
        self._files = {} if is_copied else files
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raise a SourceError where a file that weights are mapped from was written to."""
        for path, state in self._files.items():
            check_state(path, state)

    def _probe(self) -> Tensor:
        """Two short windows of random tokens."""
        generator = torch.Generator().manual_seed(0)
        top = min(self._model.config.get_text_config().vocab_size, self.vocabulary.size)
        shape = (2, min(PROBE_LENGTH, self.longest or PROBE_LENGTH))
        return torch.randint(0, top, shape, generator=generator).to(self.device)


def _noisy(name: str, moved: float) -> Notice:
    return Notice(
        code="noisy_model",
        message=f"{name} predicts otherwise when it reads the same text again (KL up to "
        f"{moved:.2g} nats on a probe): no KL below that says anything",
    )


def _device_of(model: Any) -> torch.device:
    """Where logits appear: where the head runs, whose hook knows it if a model is split."""
    hook = getattr(model.get_output_embeddings(), "_hf_hook", None)
    return torch.device(model.device if hook is None else hook.execution_device)


def _devices_of(model: Any) -> list[str]:
    """Every device that has weights, and "disk" where some are in files still."""
    places = getattr(model, "hf_device_map", {"": model.device}).values()
    names = [place if place == "disk" else str(torch.device(place)) for place in places]
    return list(dict.fromkeys(names))
