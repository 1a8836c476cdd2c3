"""Whether the rows of a logit file are off by one: every number of such a file is meaningless.

Row i should predict token i + 1. A file whose rows predict token i, or token i + 2, far better was
most likely saved with its rows or its tokens shifted.
"""

import numpy as np
import torch
from torch import Tensor

from klcli.errors import Notice
from klcli.sources import Source
from klcli.sources.files.arrays import ArraySource
from klcli.text.vocabulary import IntArray
from klcli.text.windows import NO_TARGET, Window, WindowTable

WINDOWS, ROWS = 8, 64
"""How many windows are looked at, and rows of each."""
ENOUGH_ROWS = 16
BETTER = 1.0
"""Nats a token by which shifted rows must be better. Honest ones are worse by several."""
ERRORS = 4.0
"""Standard errors by which they must be better."""
LARGEST = 50.0
"""NLL, in nats, that stands for every larger one."""

SHIFTS = {"token i": "row", "token i + 2": "token"}
"""What row i may predict instead, and the first of what must go from each window then."""


def off_by_one(source: Source, table: WindowTable) -> Notice | None:
    """Say that the rows of a logit file are off by one, where they are."""
    if not isinstance(source, ArraySource) or not table.has_tokens:
        return None
    places = np.linspace(0, len(table.windows) - 1, min(WINDOWS, len(table.windows))).astype(int)
    nll = torch.cat([_nll(source, table.windows[place]) for place in places])
    found = [
        (known.mean(dim=0).exp().tolist(), what, surplus)
        for column, (what, surplus) in enumerate(SHIFTS.items(), start=1)
        if _is_far_better(known := _known(nll[:, [0, column]]))
    ]
    if not found:
        return None
    (right, shifted), what, surplus = min(found, key=lambda one: one[0][1])
    return Notice(
        code="rows_off_by_one",
        message=f"{source.name}: row i predicts {what} far better than token i + 1 (perplexity "
        f"{shifted:.4g} and {right:.4g}): its rows seem to be off by one, and then its numbers "
        "mean nothing. Row i must be what the model returned after tokens 0 to i: leave out the "
        f"first {surplus} of each window",
    )


def _known(nll: Tensor) -> Tensor:
    return nll[nll.isfinite().all(dim=-1)]


def _is_far_better(known: Tensor) -> bool:
    """Whether the second column of NLL is smaller than the first beyond chance and honest data."""
    if len(known) < ENOUGH_ROWS:
        return False
    gain = known[:, 0] - known[:, 1]
    error = float(gain.std()) / len(gain) ** 0.5
    return bool(gain.mean() > max(BETTER, ERRORS * error))


def _nll(source: Source, window: Window) -> Tensor:
    """The NLL of the next token, the one before it and the one behind it: (rows, 3).

    NaN where that token is not known, or the row is not a distribution.
    """
    [rows] = source.rows([[window]])
    count = min(len(rows), rows.size, ROWS)
    logits = rows.block(0, count)
    assert isinstance(logits, Tensor)
    targets = np.append(window.targets, NO_TARGET)
    read = window.inputs[window.score_from :]
    total = logits.double().logsumexp(dim=-1)
    return torch.stack(
        [_at(logits, total, ids[:count]) for ids in (targets, read, targets[1:])], dim=-1
    )


def _at(logits: Tensor, total: Tensor, ids: IntArray) -> Tensor:
    tokens = torch.as_tensor(np.asarray(ids, dtype=np.int64))
    nll = total - logits.double().gather(-1, tokens.clamp(min=0)[:, None])[:, 0]
    return torch.where((tokens >= 0) & total.isfinite(), nll.clamp(max=LARGEST), torch.nan)
