"""The exact kernels: what each column is, in float64.

P is the reference, Q the candidate; everything is in nats. All arithmetic is in float64, so that
what comes in (float32, bfloat16 or float16 logits) is the only place where digits are lost.
"""

import torch
from torch import Tensor

DIRECT_ABOVE = 1e-6
"""KL (nats) above which the direct float64 sum is taken: it is off by about 1e-14 absolutely."""

BELOW_ONE = 1 - 2**-53


def log_probabilities(logits: Tensor) -> Tensor:
    """The logarithm of the probabilities: float64 (rows, vocabulary).

    -inf stays -inf; NaN or +inf spoils its row.
    """
    if logits.device.type == "mps":  # which has no float64
        logits = logits.cpu()
    return torch.log_softmax(logits.double(), dim=-1)


def usable_rows(logits: Tensor) -> Tensor:
    """Which rows are distributions: no NaN, no +inf, and not -inf throughout: bool (rows,)."""
    return logits.amax(dim=-1).isfinite()


def predictions(log_p: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What one model says at each row.

    Args:
        log_p: ln p, float64 (rows, vocabulary).
        targets: the token that followed, int64 (rows,); negative where it is not known.

    Returns:
        Columns (rows,): ``nll`` = -ln p(target) and ``rank`` = #{i: p_i > p(target)} (NaN and -1
        where the target is not known), ``entropy`` = -Σ p ln p, ``top1`` = argmax p (the lowest id
        on ties), ``confidence`` = max p.
    """
    known = targets >= 0
    target = _at(log_p, targets)
    top, top1 = log_p.max(dim=-1)
    return {
        "nll": torch.where(known, 0.0 - target, torch.nan),
        "rank": torch.where(known, (log_p > target[:, None]).sum(dim=-1), -1),
        "entropy": 0.0 - _expectation(log_p.exp(), log_p),
        "top1": top1,
        "confidence": top.exp(),
    }


def divergences(log_p: Tensor, log_q: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """How two models differ at each row.

    Args:
        log_p, log_q: ln p and ln q, float64 (rows, vocabulary).
        targets: the token that followed, int64 (rows,); negative where it is not known.

    Returns:
        Columns (rows,), nats: ``kl`` = KL(P‖Q), ``kl_reverse`` = KL(Q‖P), ``jsd`` =
        ½KL(P‖M) + ½KL(Q‖M) with M = (P+Q)/2, ``tv`` = ½Σ|p-q|; and at the target
        ``nll_difference`` = ln p - ln q, ``delta_p`` = q - p (NaN where it is not known).
    """
    p, q = log_p.exp(), log_q.exp()
    ratio = log_p - log_q
    return {
        "kl": _kl(p, q, ratio),
        "kl_reverse": _kl(q, p, -ratio),
        "jsd": jsd(p, q),
        "tv": (p - q).abs().sum(dim=-1) / 2,
        **at_target(log_p, log_q, targets),
    }


def at_target(log_p: Tensor, log_q: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """``nll_difference`` and ``delta_p`` of ``divergences``, which need no other id: (rows,)."""
    known = targets >= 0
    log_p_target, log_q_target = _at(log_p, targets), _at(log_q, targets)
    return {
        "nll_difference": torch.where(known, log_p_target - log_q_target, torch.nan),
        "delta_p": torch.where(known, log_q_target.exp() - log_p_target.exp(), torch.nan),
    }


def overlap(top_p: Tensor, top_q: Tensor) -> Tensor:
    """|A ∩ B| / k of two lists of k ids a row, int64 (rows, k) each."""
    shared = (top_p[:, :, None] == top_q[:, None, :]).any(dim=-1)
    return shared.double().mean(dim=-1)


def top_tokens(logits: Tensor, k: int) -> Tensor:
    """The k most probable ids of each row, best first, the lowest id first on ties: (rows, k)."""
    k = min(k, logits.shape[-1])
    values, ids = logits.topk(k, dim=-1)
    ids = _lowest_ids_at_the_end(logits, values, ids)
    ids = ids.sort(dim=-1).values
    order = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def mass_above(log_p: Tensor, size: int) -> Tensor:
    """The probability of all ids from ``size`` on: (rows,)."""
    return log_p[:, size:].exp().sum(dim=-1)


def _at(log_p: Tensor, targets: Tensor) -> Tensor:
    return log_p.gather(-1, targets.clamp(min=0)[:, None])[:, 0]


def _expectation(p: Tensor, x: Tensor) -> Tensor:
    """E_P[x], where a term with p = 0 is 0 whatever x is."""
    return torch.where(p > 0, p * x, 0.0).sum(dim=-1)


def _kl(p: Tensor, q: Tensor, ratio: Tensor) -> Tensor:
    """KL(P‖Q) with ``ratio`` = ln p - ln q: never negative, and exactly 0 for equal rows.

    The direct sum E_P[ratio] loses its digits where P ≈ Q, since positive and negative terms
    cancel. There every term is made positive: with u = ratio - E_P[ratio] and S = {p > 0},
    KL = ln(1 + E_P[e^-u - 1 + u]) - ln Q(S).
    """
    direct = _expectation(p, ratio)
    small = ~(direct > DIRECT_ABOVE)
    if not bool(small.any()):
        return direct
    u = ratio[small] - direct[small, None]
    # Beyond e^700 float64 ends; a row with such a u has a direct sum above DIRECT_ABOVE.
    excess = _expectation(p[small], torch.expm1((-u).clamp(max=700.0)) + u)
    uncovered = torch.where(p[small] > 0, 0.0, q[small]).sum(dim=-1)
    direct[small] = torch.log1p(excess) - torch.log1p(-uncovered)
    return direct


def jsd(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence, (rows,): with t = (p-q)/(p+q), ½ Σ [p ln(1+t) + q ln(1-t)]."""
    t = ((p - q) / (p + q)).nan_to_num(0.0)
    # Where q is beyond the digits of p, t rounds to 1 and the negligible q ln(1-t) to -inf.
    t = t.clamp(-BELOW_ONE, BELOW_ONE)
    terms: Tensor = torch.special.xlog1py(p, t) + torch.special.xlog1py(q, -t)
    return (terms.sum(dim=-1) / 2).clamp(min=0.0)  # rounding may leave -1e-17


def _lowest_ids_at_the_end(logits: Tensor, values: Tensor, ids: Tensor) -> Tensor:
    """``topk`` may take any of several equal values at its end: take those of the lowest ids.

    Logits of 16 bits tie often.
    """
    last = values[:, -1:]
    tied = (logits >= last).sum(dim=-1) > values.shape[-1]
    for row in tied.nonzero()[:, 0].tolist():
        above = int((values[row] > last[row]).sum())
        equal = (logits[row] == last[row]).nonzero()[:, 0]
        ids[row, above:] = equal[: values.shape[-1] - above]
    return ids
