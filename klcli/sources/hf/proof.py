"""The proof of the head: whether it makes a model's own logits apart from its model."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from klcli.sources.head import Head
from klcli.sources.rows import HeadRows, block_rows

EXACT_ENOUGH = 1e-7
"""Nats. A head applied apart from its model may differ from it by this, or by twice what the model
differs from itself in another batch shape, whichever is more."""

FEW_ROWS = 4
"""Rows of the probe that choose among the heads that a config may mean."""


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
        return bound_for(self.noise)


def bound_for(noise: float) -> float:
    """What the head's logits may differ by (KL, nats) from a model that differs so from itself."""
    return max(EXACT_ENOUGH, 2 * noise)


def prove_head(
    read: Callable[[], Tensor],
    make: Callable[[int, torch.dtype], Iterable[Head]],
    whole: Tensor,
    noise: float,
) -> Proof:
    """Find out by a probe whether a model's head stands alone.

    Args:
        read: gives the hidden states of the probe (rows, d).
        make: makes the heads that it may be, for hidden states of that size and logits of that
            dtype.
        whole: the model's own logits on the probe (n, length, vocabulary).
        noise: what these differ by in another batch shape, KL in nats.
    """
    try:
        hidden = read()
        head = _nearest(make(hidden.shape[-1], whole.dtype), hidden, whole.flatten(0, 1))
        self_kl = divergence_of_head(head, hidden, whole.flatten(0, 1))
    except (AttributeError, ValueError, TypeError, IndexError, RuntimeError) as error:
        head, self_kl, reason = None, math.inf, f"it cannot be run apart: {error}"
    else:
        reason = f"run apart it differs by {self_kl:.2g} nats from the model"
    proved = self_kl <= bound_for(noise)
    return Proof(
        head=head if proved else None,
        width=whole.shape[-1],
        dtype=whole.dtype,
        noise=noise,
        self_kl=self_kl,
        reason=None if proved else reason,
    )


def largest_kl(p: Tensor, q: Tensor) -> float:
    """The largest KL (nats) of rows of logits (rows, vocabulary), by the direct float64 sum."""
    log_p = torch.log_softmax(p.cpu().double(), dim=-1)
    log_q = torch.log_softmax(q.cpu().double(), dim=-1)
    return float((log_p.exp() * (log_p - log_q)).nan_to_num(0.0).sum(dim=-1).max())


def _nearest(heads: Iterable[Head], hidden: Tensor, whole: Tensor) -> Head:
    """The head whose logits on a few rows are nearest to the model's own, the first of equals."""
    few = slice(0, None, 1 + len(hidden) // FEW_ROWS)
    return min(heads, key=lambda head: divergence_of_head(head, hidden[few], whole[few]))


def divergence_of_head(head: Head, hidden: Tensor, whole: Tensor) -> float:
    """The largest KL (nats) of the logits of a head from ``whole``, the model's own.

    ``hidden`` is (rows, d) and ``whole`` (rows, vocabulary).
    """
    size = block_rows(whole.shape[-1], whole.dtype.itemsize)
    rows = HeadRows(hidden, head.reusing(), size)
    blocks = [
        rows.block(start, min(start + size, len(rows))).clone()
        for start in range(0, len(rows), size)
    ]
    return largest_kl(whole, torch.cat(blocks))
