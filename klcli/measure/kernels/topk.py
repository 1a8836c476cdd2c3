"""Kernels for distributions of which only the most probable ids are known (top-k).

All other ids stand together as one more outcome, *rest*. Divergences of such coarser distributions
are lower bounds of the true ones: putting outcomes together never makes two distributions easier to
tell apart (the data-processing inequality). The list is never renormalised without the rest, and
the rest is never spread over the ids that are missing.

A list was rounded, so of each outcome only an interval is known. With p and q as near to each other
as their intervals let them be, every divergence is a lower bound still: each is a sum over outcomes
of terms that are never negative (for KL, p ln(p/q) - p + q), and a term shrinks as p and q
approach each other.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from klcli.measure.kernels import exact
from klcli.sources.rows import TopBlock

SUM_ERROR = 1e-15
"""How far a sum of probabilities in float64 may be off."""
SERIES_BELOW = 0.5
"""|ln p - ln q| below which a term of KL would lose digits as a plain difference."""


class Known(NamedTuple):
    """What is known of one side over the ids that both know, with the rest last.

    Logarithms of the least and the largest probability of each outcome, (rows, k + 1).
    """

    low: Tensor
    high: Tensor


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


def divergences(p: Known, q: Known) -> dict[str, Tensor]:
    """Lower bounds of ``kl``, ``kl_reverse``, ``jsd`` and ``tv``, nats, each (rows,)."""
    nearest = torch.maximum(p.low, q.low)
    log_p, log_q = torch.minimum(nearest, p.high), torch.minimum(nearest, q.high)
    p_near, q_near = log_p.exp(), log_q.exp()
    gap = p_near - q_near
    return {
        "kl": _kl(log_p, log_q),
        "kl_reverse": _kl(log_q, log_p),
        "jsd": exact.jsd(p_near, q_near),
        "tv": torch.maximum(gap.clamp(min=0).sum(dim=-1), (-gap).clamp(min=0).sum(dim=-1)),
    }


def share_with_whole(log_p: Tensor, top: TopBlock) -> tuple[Known, Known]:
    """A whole distribution ln p (rows, vocabulary) and a list, over the ids of the list."""
    listed = (top.ids >= 0) & (top.ids < log_p.shape[-1])
    ids = torch.where(listed, top.ids, 0)
    at_ids = torch.where(listed, log_p.gather(-1, ids), -torch.inf)
    inside = torch.zeros_like(log_p, dtype=torch.bool)
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    inside[rows[listed], ids[listed]] = True
    rest = torch.where(inside, -torch.inf, log_p).logsumexp(dim=-1, keepdim=True)
    whole = torch.cat([at_ids, rest], dim=-1)
    return Known(whole, whole), _known(top, listed)


def share_of_lists(p: TopBlock, q: TopBlock) -> tuple[Known, Known]:
    """Two lists, over the ids that both have, in the order of the first."""
    p_in_q, place = _find(p.ids, q.ids)
    q_in_p, _ = _find(q.ids, p.ids)
    return _known(p, p_in_q), _known(q, q_in_p, p_in_q, place)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The sum of p ln(p/q) - p + q, which is KL where both sum to 1, and never negative."""
    p, q = log_p.exp(), log_q.exp()
    ratio = torch.where(p > 0, log_p - log_q, 0.0)
    near = ratio.clamp(-SERIES_BELOW, SERIES_BELOW)
    plain = p * ratio - p + q
    terms = torch.where(ratio == near, p * (torch.expm1(-near) + near), plain)
    return torch.where(p > 0, terms, q).clamp(min=0).sum(dim=-1)


def _find(ids: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Which ids (rows, k) stand among others (rows, l), and where: masks and places (rows, k)."""
    ordered, order = among.sort(dim=-1)
    slot = torch.searchsorted(ordered, ids).clamp(max=among.shape[-1] - 1)
    return (ordered.gather(-1, slot) == ids) & (ids >= 0), order.gather(-1, slot)


def _known(
    top: TopBlock, shared: Tensor, order: Tensor | None = None, place: Tensor | None = None
) -> Known:
    """What a list says of the ids that are shared, and of all others together.

    The others have what is not listed and what is listed but not shared, and what the shared ones
    leave of 1. ``order`` and ``place`` say where the shared ids stand in the other list.
    """
    low, high = top.log_probs - top.error, top.log_probs + top.error
    least = torch.maximum(
        _total(torch.where(shared, -torch.inf, low), top.log_least_rest) - SUM_ERROR,
        _complement(torch.where(shared, high, -torch.inf), -SUM_ERROR),
    )
    most = torch.minimum(
        _total(torch.where(shared, -torch.inf, high), top.log_rest) + SUM_ERROR,
        _complement(torch.where(shared, low, -torch.inf), SUM_ERROR),
    )
    if order is not None and place is not None:
        shared, low, high = order, low.gather(-1, place), high.gather(-1, place)
    low, high = (torch.where(shared, side, -torch.inf) for side in (low, high))
    return Known(
        torch.cat([low, torch.minimum(least, most)[:, None]], dim=-1),
        torch.cat([high, most[:, None]], dim=-1),
    )


def _total(log_probs: Tensor, log_rest: Tensor) -> Tensor:
    return torch.cat([log_probs, log_rest[:, None]], dim=-1).logsumexp(dim=-1)


def _complement(log_probs: Tensor, error: float) -> Tensor:
    """The logarithm of what is left of 1."""
    return (1 - log_probs.exp().sum(dim=-1) + error).clamp(min=0).log()
