"""What causal and masked models have in common: the rows of a batch, and the proof of the head."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from klcli.errors import SourceError
from klcli.sources.head import Head, numbers_of
from klcli.sources.loading import gist
from klcli.sources.options import Task
from klcli.sources.rows import HeadRows, TensorRows, block_rows
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import Window

PROBE_LENGTH = 32
SAMPLED = 1024
"""How many numbers of a weight go into its fingerprint."""
EXACT_ENOUGH = 1e-7
"""Nats. A head applied apart from its model may differ from it by this, or by twice what the model
differs from itself in another batch shape, whichever is more."""
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}
"""How many ids a model reads at once, by kind of device, where nothing is given."""


class ModelSource(ABC):
    """A live model that predicts tokens of a window.

    Where the model allows it the body runs once a batch and the output head a block of rows at a
    time, so that the logits of a whole batch never exist; a probe at load proves that this gives
    the model's own logits. Otherwise (``separates_head`` is False) a batch's logits are held whole.

    ``batch_tokens`` is how many ids one forward pass reads, if its sequences are not longer.
    """

    task: Task
    windows = None

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
        self._embeddings = model.get_output_embeddings()
        self.device = _device_of(self._embeddings, model)
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, 2048)
        self.longest = self._longest()
        self.proof = self._prove()
        self._head = self.proof.head
        self.width, self._dtype = self.proof.width, self.proof.dtype
        self.state_dtype: torch.dtype = model.dtype
        self.provenance: dict[str, Any] = {
            "source": name,
            "kind": self.task,
            "revision": revision or getattr(model.config, "_commit_hash", None),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": ", ".join(_devices_of(model)),
            "architecture": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "vocabulary_width": self.width,
            "tokenizer": vocabulary.fingerprint,
        }

    @property
    def separates_head(self) -> bool:
        """Whether the output head is applied block by block."""
        return self._head is not None

    def use_plain_attention(self) -> None:
        """Compute attention step by step from now on, not with a fused kernel."""
        self._model.set_attn_implementation("eager")

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
        read = self._logits if self._head is None else self._hidden
        try:
            states = self._within_memory(read, ids, places)
        except (RuntimeError, MemoryError, ValueError, IndexError) as error:
            raise SourceError(
                f"{self.name} fails on a batch of {ids.shape[0]} x {ids.shape[1]} tokens: "
                f"{gist(error)}; try a smaller --batch-tokens or --context"
            ) from error
        if head is None:
            return TensorRows(states)
        return HeadRows(states, head, block_rows(self.width, self._dtype.itemsize))

    def _within_memory(self, read: Any, ids: Tensor, places: Tensor) -> Tensor:
        """What ``read`` makes of the rows, with half the budget from now on if memory runs out."""
        while True:
            try:
                return self._in_passes(read, ids, places)
            except (RuntimeError, MemoryError) as error:
                sequences = min(len(ids), self.batch_tokens // ids.shape[1])
                if not _is_out_of_memory(error) or sequences < 2:
                    raise
                self.batch_tokens = sequences // 2 * ids.shape[1]
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _in_passes(self, read: Any, ids: Tensor, places: Tensor) -> Tensor:
        """What ``read`` makes of the rows, in as many forward passes as the budget asks for."""
        length = ids.shape[1]
        step = max(1, self.batch_tokens // length)
        if len(ids) <= step:
            states: Tensor = read(ids.to(self.device), places.to(self.device))
            return states
        order = places.argsort()
        ordered = places[order]
        parts = []
        for first in range(0, len(ids), step):
            begin, end = torch.searchsorted(
                ordered, torch.tensor([first * length, (first + step) * length])
            )
            part = ids[first : first + step].to(self.device)
            parts.append(read(part, (ordered[begin:end] - first * length).to(self.device)))
        joined = torch.cat(parts)
        return joined[order.argsort().to(joined.device)]

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

    def _longest(self) -> int | None:
        """The most ids the model can read at once, None without a limit."""
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return longest if isinstance(longest, int) and longest > 0 else None

    def _all_logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=ids).logits
        return logits

    @torch.inference_mode()
    def _prove(self) -> "Proof":
        """Find out by a probe whether the model does its task, and whether its head stands alone.

        Raises:
            SourceError: the model does not do its task.
        """
        ids = self._probe()
        places = torch.arange(ids.numel(), device=ids.device)
        whole = self._all_logits(ids)
        dtype = whole.dtype
        noise = largest_kl(whole, torch.cat([self._all_logits(one[None]) for one in ids]))
        bound = max(EXACT_ENOUGH, 2 * noise)
        self._check_task(ids, whole, bound)
        try:
            hidden = self._hidden(ids, places)
            head = _head_of(self._embeddings, self._model.config, hidden.shape[-1], dtype)
            self_kl = _divergence_of_head(head, hidden, whole)
        except (AttributeError, ValueError, TypeError, IndexError, RuntimeError) as error:
            head, self_kl, reason = None, math.inf, f"it cannot be run apart: {error}"
        else:
            reason = f"run apart it differs by {self_kl:.2g} nats from the model"
        proved = self_kl <= bound
        return Proof(
            head=head if proved else None,
            width=whole.shape[-1],
            dtype=dtype,
            noise=noise,
            self_kl=self_kl,
            reason=None if proved else reason,
        )

    @torch.inference_mode()
    def self_kl(self, head: Head) -> float:
        """The largest KL (nats) of the logits of ``head`` from the model's own, on a probe."""
        ids = self._probe()
        places = torch.arange(ids.numel(), device=ids.device)
        return _divergence_of_head(head, self._hidden(ids, places), self._all_logits(ids))

    @torch.inference_mode()
    def stored_matrix(self) -> dict[str, Tensor]:
        """The output head's matrix, as a recording keeps it."""
        if self._head is None:
            raise ValueError("the head does not stand alone")
        return self._head.matrix(self.state_dtype, self.device)

    def weights_fingerprint(self) -> str:
        """sha256 over the config and the weights: names, shapes and a sample of the numbers."""
        config = self._model.config.to_dict()
        settings = {k: v for k, v in config.items() if k not in ("_name_or_path", "_commit_hash")}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, weight in self._model.state_dict().items():
            if weight.is_meta:
                path, _, last = name.rpartition(".")
                weight = numbers_of(self._model.get_submodule(path), last)
            flat = weight.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
            digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(sample.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _probe(self) -> Tensor:
        """Two short windows of random tokens."""
        generator = torch.Generator().manual_seed(0)
        top = min(self._model.config.get_text_config().vocab_size, self.vocabulary.size)
        shape = (2, min(PROBE_LENGTH, self.longest or PROBE_LENGTH))
        return torch.randint(0, top, shape, generator=generator).to(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the probe of a model found.

    ``head`` is None where it cannot be separated, and ``reason`` says why. ``self_kl`` is the
    largest KL (nats) of the head's logits from the model's own, ``noise`` that of the model's own
    in another batch shape. Logits are ``width`` wide and of ``dtype``.
    """

    head: Head | None
    width: int
    dtype: torch.dtype
    noise: float
    self_kl: float
    reason: str | None

    @property
    def bound(self) -> float:
        """What ``self_kl`` may be."""
        return max(EXACT_ENOUGH, 2 * self.noise)


def _device_of(embeddings: Any, model: Any) -> torch.device:
    """Where logits appear: where the head runs, whose hook knows it if a model is split."""
    hook = getattr(embeddings, "_hf_hook", None)
    return torch.device(model.device if hook is None else hook.execution_device)


def _devices_of(model: Any) -> list[str]:
    """Every device that has weights, and "disk" where some are in files still."""
    places = getattr(model, "hf_device_map", {"": model.device}).values()
    names = [place if place == "disk" else str(torch.device(place)) for place in places]
    return list(dict.fromkeys(names))


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of a device or of the machine, of which torch has no own class."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "allocate memory" in str(error) or "out of memory" in str(error)
    )


def largest_kl(p: Tensor, q: Tensor) -> float:
    """The largest KL (nats) of rows of logits (rows, vocabulary), by the direct float64 sum."""
    log_p = torch.log_softmax(p.cpu().double(), dim=-1)
    log_q = torch.log_softmax(q.cpu().double(), dim=-1)
    return float((log_p.exp() * (log_p - log_q)).nan_to_num(0.0).sum(dim=-1).max())


def _divergence_of_head(head: Head, hidden: Tensor, whole: Tensor) -> float:
    size = block_rows(whole.shape[-1], whole.dtype.itemsize)
    rows = HeadRows(hidden, head.reusing(), size)
    blocks = [
        rows.block(start, min(start + size, len(rows))).clone()
        for start in range(0, len(rows), size)
    ]
    return largest_kl(whole.flatten(0, 1), torch.cat(blocks))


def _head_of(embeddings: Any, config: Any, size: int, dtype: torch.dtype) -> Head:
    """The output embeddings, and what some families do to the logits behind them."""
    text = config.get_text_config()
    return Head(
        project=embeddings,
        size=size,
        dtype=dtype,
        multiplier=getattr(text, "logit_scale", None),
        divisor=getattr(text, "logits_scaling", None),
        softcap=getattr(text, "final_logit_softcapping", None),
    )
