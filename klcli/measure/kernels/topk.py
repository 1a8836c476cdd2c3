"""Kernels for distributions of which only the most probable ids are known (top-k).

All other ids stand together as one more outcome, *rest*. Divergences of such coarser distributions
are lower bounds of the true ones: putting outcomes together never makes two distributions easier to
tell apart (the data-processing inequality). The list is never renormalised without the rest, and
the rest is never spread over the ids that are missing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from klcli.measure.kernels import exact
from klcli.sources.rows import TopBlock


class Shared(NamedTuple):
    """Both sides over the ids that both know, with the rest last: ln p and ln q (rows, k + 1)."""

    log_p: Tensor
    log_q: Tensor


def predictions(top: TopBlock, targets: Tensor) -> dict[str, Tensor]:
    """What a list says at each row: the columns of ``exact.predictions``.

    Args:
        top: the list.
        targets: the token that followed, int64 (rows,); negative where it is not known.

    Returns:
        ``nll`` is NaN and ``rank`` -1 where the target is not in the list: all that is known then
        is nll >= -log_rest. ``entropy`` is NaN.
    """
    listed = (top.ids == targets[:, None]) & (targets >= 0)[:, None]
    found = listed.any(dim=-1)
    log_target = torch.where(listed, top.log_probs, -torch.inf).amax(dim=-1)
    best = top.log_probs[:, 0]
    rank = (top.log_probs > log_target[:, None]).sum(dim=-1)
    return {
        "nll": torch.where(found, 0.0 - log_target, torch.nan),
        "rank": torch.where(found & (rank < top.ranked), rank, -1),
        "entropy": torch.full_like(best, torch.nan),
        "top1": top.ids[:, 0],
        "confidence": best.exp(),
    }


def divergences(shared: Shared) -> dict[str, Tensor]:
    """Lower bounds of ``kl``, ``kl_reverse``, ``jsd`` and ``tv``, nats, each (rows,)."""
    log_p, log_q = (torch.log_softmax(side, dim=-1) for side in shared)  # rounding alone is undone
    nowhere = torch.full(log_p.shape[:1], -1, device=log_p.device)
    found = exact.divergences(log_p, log_q, nowhere)
    return {name: found[name] for name in ("kl", "kl_reverse", "jsd", "tv")}


def share_with_whole(log_p: Tensor, top: TopBlock) -> Shared:
    """A whole distribution ln p (rows, vocabulary) and a list, over the ids of the list."""
    listed = (top.ids >= 0) & (top.ids < log_p.shape[-1])
    ids = torch.where(listed, top.ids, 0)
    at_ids = torch.where(listed, log_p.gather(-1, ids), -torch.inf)
    inside = torch.zeros_like(log_p, dtype=torch.bool)
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    inside[rows[listed], ids[listed]] = True
    rest = torch.where(inside, -torch.inf, log_p).logsumexp(dim=-1, keepdim=True)
    return Shared(
        log_p=torch.cat([at_ids, rest], dim=-1),
        log_q=_with_rest(torch.where(listed, top.log_probs, -torch.inf), top, listed),
    )


def share_of_lists(p: TopBlock, q: TopBlock) -> Shared:
    """Two lists, over the ids that both have."""
    p_in_q, place = _find(p.ids, q.ids)
    q_in_p, _ = _find(q.ids, p.ids)
    return Shared(
        log_p=_with_rest(torch.where(p_in_q, p.log_probs, -torch.inf), p, p_in_q),
        log_q=_with_rest(torch.where(p_in_q, q.log_probs.gather(-1, place), -torch.inf), q, q_in_p),
    )


def _find(ids: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Which ids (rows, k) stand among others (rows, l), and where: masks and places (rows, k)."""
    ordered, order = among.sort(dim=-1)
    slot = torch.searchsorted(ordered, ids).clamp(max=among.shape[-1] - 1)
    return (ordered.gather(-1, slot) == ids) & (ids >= 0), order.gather(-1, slot)


def _with_rest(shared: Tensor, top: TopBlock, is_shared: Tensor) -> Tensor:
    """Shared log-probabilities, and behind them the rest: all that is not shared."""
    unshared = torch.where(is_shared, -torch.inf, top.log_probs)
    rest = torch.cat([top.log_rest[:, None], unshared], dim=-1).logsumexp(dim=-1, keepdim=True)
    return torch.cat([shared, rest], dim=-1)
