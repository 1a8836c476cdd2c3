"""What models have in common that give logits, and no head that could be kept apart."""

import torch

from klcli.choices import Task
from klcli.errors import Notice
from klcli.sources.hf.proof import Proof
from klcli.text.vocabulary import Vocabulary


class LogitsOnly:
    """A live causal model that gives logits. See ``Live``; whoever runs it adds the rest."""

    task: Task = "causal"
    windows = None
    is_live = True
    lists_only = False
    notices: tuple[Notice, ...] = ()
    device = torch.device("cpu")
    state_dtype = torch.float32

    vocabulary: Vocabulary

    @property
    def names(self) -> Vocabulary:
        """What tokens read like."""
        return self.vocabulary

    def windows_for(self, _vocabulary: Vocabulary | None) -> None:
        """It brings no windows: it takes any."""
        return None  # noqa: RET501


def unproved(width: int, dtype: torch.dtype, reason: str) -> Proof:
    """What stands for the probe of a head, with the ``reason`` why there is none."""
    return Proof(head=None, width=width, dtype=dtype, noise=0.0, self_kl=0.0, reason=reason)
