"""Kernels for llama.cpp's base files, by llama.cpp's own rule. No I/O, no state.

A row of such a file is not a distribution: the tail was raised to a floor, so the p of all ids sum
to more than 1, and what stands for an id at the floor is only the most that its p may be. llama.cpp
sums p (ln p - ln q) over the ids with ln p > -16 and divides by nothing. This sum is a Kullback-
Leibler divergence but for what lies below e^-16, rounding of ln p to 16 bits, and those ids at the
floor that lie above e^-16 for all that. It can therefore be negative, where p and q are close.
Columns that need all of p (entropy, the reverse divergence, Jensen-Shannon, total variation) are
not made up here.
"""

import torch
from torch import Tensor

from klcli.measure.kernels import exact

LEAST_LOG_P = -16.0
"""Nats: ids with ln p at or below this are left out of the sum."""


def predictions(log_p: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What a base file says at each row.

    Args:
        log_p: ln p as in the file, float64 (rows, vocabulary); it need not sum to 1.
        targets: the token that followed, int64 (rows,); negative where it is not known.

    Returns:
        Columns (rows,): ``nll`` = -ln p(target), in nats, at most what the floor says, and ``rank``
        = #{i: p_i > p(target)}, equal codes counting as equal (NaN and -1 where the target is not
        known); ``top1`` = argmax p (the lowest id on ties), ``confidence`` = max p.
    """
    found = exact.predictions(log_p, targets)
    return {name: values for name, values in found.items() if name != "entropy"}


def divergences(log_p: Tensor, log_q: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """How a model differs from a base file at each row, as ``llama-perplexity`` has it.

    Args:
        log_p: ln p as in the file, float64 (rows, vocabulary); it need not sum to 1.
        log_q: ln q of the candidate, float64 (rows, vocabulary); it sums to 1.
        targets: the token that followed, int64 (rows,); negative where it is not known.

    Returns:
        Columns (rows,): ``kl`` = Σ p (ln p - ln q) over ln p > -16, in nats, not renormalised and
        negative where rounding outweighs the difference; at the target ``nll_difference`` =
        ln p - ln q and ``delta_p`` = q - p (NaN where it is not known).
    """
    return {"kl": _kl(log_p, log_q), **exact.at_target(log_p, log_q, targets)}


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # Asked this way round a NaN is kept, and spoils its row instead of vanishing from it.
    left_out = log_p <= LEAST_LOG_P
    return torch.where(left_out, 0.0, log_p.exp() * (log_p - log_q)).sum(dim=-1)
