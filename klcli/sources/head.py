"""The output head: what makes logits of the last hidden states."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional


def numbers_of(module: torch.nn.Module, name: str) -> Tensor:
    """A weight of a layer, fetched if the layer has it only while it runs, as in a split model."""
    weight: Tensor = getattr(module, name)
    if weight.is_meta:
        from accelerate.utils import align_module_device

        with align_module_device(module, torch.device("cpu")):
            weight = getattr(module, name)
    return weight.detach()


def _weights_of(project: Callable[[Tensor], Tensor]) -> dict[str, Tensor] | None:
    """The matrix of a plain linear layer, and its bias; None of anything else."""
    if isinstance(project, partial) and project.func is functional.linear:
        given = project.keywords
    elif type(project) is torch.nn.Linear and not (
        "forward" in vars(project)  # a split model's own
        or project._forward_hooks
        or project._forward_pre_hooks
    ):
        given = dict(project.named_parameters())
    else:
        return None
    weights = {name: weight for name, weight in given.items() if weight is not None}
    if any(type(weight) not in (Tensor, torch.nn.Parameter) for weight in weights.values()):
        return None  # a quantised one, which knows by itself how it is multiplied
    return {name: weight.detach() for name, weight in weights.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """An output head apart from its model.

    ``project`` multiplies hidden states (rows, ``size``) by the output embeddings. What some
    families do behind that comes in this order: times ``multiplier``, divided by ``divisor``,
    soft-capped to ±``softcap``. The logits have ``dtype``.
    """

    project: Callable[[Tensor], Tensor]
    size: int
    dtype: torch.dtype
    multiplier: float | None = None
    divisor: float | None = None
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (rows, vocabulary) of hidden states (rows, size)."""
        return self.finished(self.project(hidden))

    def reusing(self) -> "Head | ReusingHead":
        """The same head, whose logits stand where the ones before them did, with the same bits.

        The head itself where it is not a plain matrix.
        """
        weights = _weights_of(self.project)
        return self if weights is None else ReusingHead(self, weights)

    def finished(self, logits: Tensor) -> Tensor:
        """What some families make of the product of hidden states and matrix."""
        if self.multiplier is not None:
            logits = logits * self.multiplier
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.to(self.dtype)

    def matrix(self, hidden_dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """The projection as ``weight`` (vocabulary, size) and, where there is one, ``bias``.

        A quantised or adapted layer is taken as it acts: by what it makes of unit vectors.
        """
        layer = self.project
        if type(layer) is torch.nn.Linear:
            names = ("weight",) if layer.bias is None else ("weight", "bias")
            return {name: numbers_of(layer, name).to(device) for name in names}
        if isinstance(layer, partial) and layer.func is functional.linear:
            return {
                name: weight.detach().to(device)
                for name, weight in layer.keywords.items()
                if weight is not None
            }
        zero = torch.zeros(1, self.size, dtype=hidden_dtype, device=device)
        unit = torch.eye(self.size, dtype=hidden_dtype, device=device)
        shift = layer(zero)
        return {"weight": (layer(unit) - shift).T.contiguous(), "bias": shift[0]}

    def with_matrix(self, matrix: dict[str, Tensor]) -> "Head":
        """The same head with a matrix as ``matrix`` gives it in the place of a layer."""
        return Head(
            project=partial(functional.linear, weight=matrix["weight"], bias=matrix.get("bias")),
            size=self.size,
            dtype=self.dtype,
            multiplier=self.multiplier,
            divisor=self.divisor,
            softcap=self.softcap,
        )


class ReusingHead:
    """A head that writes a block of logits over the one before.

    Fresh memory for a block of 100 MB costs a tenth of the product itself at bfloat16. ``made`` is
    how many blocks it has made: only the last one still stands.
    """

    def __init__(self, head: Head, weights: dict[str, Tensor]) -> None:
        self.made = 0
        self._head = head
        self._weight, self._bias = weights["weight"].T, weights.get("bias")
        self._place = self._weight.new_empty(0)

    @torch.inference_mode()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (rows, vocabulary) of hidden states (rows, size)."""
        self.made += 1
        if len(self._place) != len(hidden):
            self._place = self._weight.new_empty(len(hidden), self._weight.shape[1])
        if self._bias is None:
            torch.mm(hidden, self._weight, out=self._place)
        else:
            torch.addmm(self._bias, hidden, self._weight, out=self._place)
        return self._head.finished(self._place)
