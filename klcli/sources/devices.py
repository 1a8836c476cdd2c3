"""Where a source computes."""

from collections.abc import Iterable

import torch

from klcli import torchrun
from klcli.sources.options import unknown_device


def choose_device(name: str) -> str:
    """The device that a name means: ``auto`` is a GPU where there is one, its own for each rank.

    Raises:
        UsageError: torch knows no such device.
    """
    if name != "auto":
        try:
            return _numbered(torch.device(name))
        except RuntimeError:
            raise unknown_device(name) from None
    if torch.cuda.is_available():
        rank = torchrun.local_rank()
        return _numbered(torch.device("cuda" if rank is None else f"cuda:{rank}"))
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _numbered(device: torch.device) -> str:
    """A GPU with its number, as the tensors on it have it; so a report is the same from a file."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return str(device)


_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}


def batch_tokens_for(devices: Iterable[torch.device]) -> int:
    """How many ids models on these devices read at once, where nothing is given."""
    return min(_BATCH_TOKENS.get(device.type, 2048) for device in devices)
