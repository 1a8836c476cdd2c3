"""Divergences a second time, in another form and in wider numbers: what the kernels are held to."""

from typing import Any

import numpy as np
import numpy.typing as npt

Wide = npt.NDArray[np.longdouble]


def log_softmax(logits: npt.ArrayLike) -> Wide:
    """The logarithm of p of one row, in extended precision where the machine has it."""
    x = np.asarray(logits, dtype=np.longdouble)
    shifted = x - x.max()
    result: Wide = shifted - np.log(np.exp(shifted).sum())
    return result


def kl(p_logits: npt.ArrayLike, q_logits: npt.ArrayLike) -> float:
    """KL of one row: the stable form below 1e-3, the direct sum above."""
    direct = kl_direct(p_logits, q_logits)
    return kl_stable(p_logits, q_logits) if direct < 1e-3 else direct


def kl_direct(p_logits: npt.ArrayLike, q_logits: npt.ArrayLike) -> float:
    """Σ p (ln p - ln q), 0 where p = 0."""
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    support = np.exp(log_p.astype(float)) > 0
    with np.errstate(invalid="ignore"):
        terms = np.exp(log_p[support]) * (log_p[support] - log_q[support])
    return float(terms.sum())


def kl_stable(p_logits: npt.ArrayLike, q_logits: npt.ArrayLike) -> float:
    """ln(1 + E_P[e^-u - 1 + u]) - ln Q(S), every term of it computed by its power series."""
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    support = np.exp(log_p.astype(float)) > 0
    p = np.exp(log_p[support])
    d = (np.asarray(p_logits, np.longdouble) - np.asarray(q_logits, np.longdouble))[support]
    u = d - (p * d).sum()
    term, total = np.ones_like(u), np.zeros_like(u)
    for power in range(1, 60):
        term = term * -u / power
        total += term if power > 1 else 0
    outside = np.exp(log_q[~support]).sum()
    return float(np.log1p((p * total).sum()) - np.log1p(-outside))


def tv(p_logits: npt.ArrayLike, q_logits: npt.ArrayLike) -> float:
    """½ Σ |p - q|."""
    return float(np.abs(np.exp(log_softmax(p_logits)) - np.exp(log_softmax(q_logits))).sum() / 2)


def jsd(p_logits: npt.ArrayLike, q_logits: npt.ArrayLike) -> float:
    """½ KL(P‖M) + ½ KL(Q‖M) by direct sums."""
    p, q = np.exp(log_softmax(p_logits)), np.exp(log_softmax(q_logits))
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(x > 0, x * (np.log(x) - np.log(m)), 0).sum() for x in (p, q)]
    return float(sum(terms) / 2)


def entropy(logits: npt.ArrayLike) -> float:
    """-Σ p ln p."""
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    return float(-(p[p > 0] * log_p[p > 0]).sum())


def by_hand(p: list[float], q: list[float]) -> dict[str, Any]:
    """The textbook sums over plain probabilities, for examples that fit on paper."""
    pairs = list(zip(p, q, strict=True))
    return {
        "kl": sum(a * np.log(a / b) for a, b in pairs if a > 0),
        "tv": sum(abs(a - b) for a, b in pairs) / 2,
    }
