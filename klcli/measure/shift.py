"""Whether the ids of one model are those of the other, moved by one.

A converter that adds or loses a token at the start of the vocabulary moves all others, and two
models that predict the same agree on nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from klcli.sources import Source
from klcli.text.windows import WindowTable

WINDOWS = 4
"""How many windows are looked at."""
NEAR = 0.05
"""Share of the KL that may be left where the shift is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """The candidate's ids are those of the reference plus ``by``.

    ``kl`` (nats) is what is left once they are moved back, ``unmoved`` what it is otherwise.
    """

    by: int
    kl: float
    unmoved: float


@torch.inference_mode()
def find_shift(sources: Sequence[Source], table: WindowTable) -> Shift | None:
    """The shift by one that explains nearly all of the KL on the first windows, if there is one."""
    if any(source.lists_only for source in sources):
        return None
    batches = [[window] for window in table.windows[:WINDOWS]]
    found = torch.zeros(3, dtype=torch.float64)
    rows = 0
    for reference, candidate in zip(*(s.rows(batches) for s in sources), strict=True):
        count = min(len(reference), reference.size, candidate.size)
        p, q = (side.block(0, count) for side in (reference, candidate))
        assert isinstance(p, Tensor)
        assert isinstance(q, Tensor)
        width = min(p.shape[-1], q.shape[-1])
        p, q = (one[:, :width].cpu().double() for one in (p, q))
        pairs = ((p, q), (p[:, :-1], q[:, 1:]), (p[:, 1:], q[:, :-1]))
        found += torch.stack([_kl(*pair).sum() for pair in pairs])
        rows += count
    unmoved, up, down = (found / rows).tolist()
    by, kl = (1, up) if up < down else (-1, down)
    return Shift(by=by, kl=kl, unmoved=unmoved) if kl < NEAR * unmoved else None


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL in nats of rows of logits (rows, vocabulary), each renormalised."""
    log_p, log_q = p.log_softmax(dim=-1), q.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).nan_to_num(0.0).sum(dim=-1)
