"""Distributions at masked tokens a second time: slow, in float64, one window and forward by one."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Float64s = npt.NDArray[np.float64]


def doubled(model: Any) -> Any:
    """A copy of a model that computes in float64."""
    return copy.deepcopy(model).double().eval()


def masked_log_probabilities(
    model: Any,
    ids: Sequence[int],
    scored: Sequence[int],
    *,
    mask_id: int,
    ends: Sequence[int] | None = None,
    every: int | None = None,
) -> Float64s:
    """Log-probabilities of the whole vocabulary at each scored position, (positions, vocabulary).

    ``ids`` is one window as the model reads it, specials included. Masked are

    - the scored token alone, unless
    - ``ends`` gives where the word of each scored token ends (the position after its last token):
      then that token and all behind it in the word;
    - ``every`` is K: then the scored tokens j, j + K, j - K, … all at once, counted in ``scored``.

    The model is one of ``doubled``.
    """
    if ends is not None and every is not None:
        raise ValueError("words and every Kth token are two variants")
    rows = []
    for number, position in enumerate(scored):
        if every is not None:
            masked = list(scored[number % every :: every])
        elif ends is not None:
            masked = list(range(position, ends[number]))
        else:
            masked = [position]
        rows.append(row_at(model, ids, position, masked, mask_id))
    return np.stack(rows)


def row_at(
    model: Any, ids: Sequence[int], position: int, masked: Sequence[int], mask_id: int
) -> Float64s:
    """The row at one position of a window in which some tokens are masked."""
    if position not in masked:
        raise ValueError(f"position {position} is scored and not masked")
    row = torch.tensor([list(ids)])
    row[0, list(masked)] = mask_id
    with torch.inference_mode():
        logits = model(input_ids=row).logits[0, position]
    if logits.dtype != torch.float64:
        raise ValueError(f"the model computes in {logits.dtype}")
    log_p: Float64s = torch.log_softmax(logits, dim=-1).numpy()
    return log_p


def target_log_probabilities(rows: Float64s, ids: Sequence[int], scored: Sequence[int]) -> Float64s:
    """Log-probabilities of the tokens that stand at the scored positions."""
    targets = np.asarray(ids)[list(scored)]
    picked: Float64s = rows[np.arange(len(rows)), targets]
    return picked


def pseudo_perplexity(log_p: Float64s) -> float:
    """The exponential of the mean of -ln p."""
    return float(np.exp(-log_p.mean()))
