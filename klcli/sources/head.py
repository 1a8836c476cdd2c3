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
        return {name: weight for name, weight in project.keywords.items() if weight is not None}
    if type(project) is not torch.nn.Linear or "forward" in vars(project):  # a split model's own
        return None
    if project._forward_hooks or project._forward_pre_hooks:
        return None
    return {name: weight.detach() for name, weight in project.named_parameters()}


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
        return self._finished(self.project(hidden))

    def reusing(self) -> Callable[[Tensor], Tensor]:
        """The same head, whose logits stand where the ones before them did, with the same bits.

        Fresh memory for a block of 100 MB costs a tenth of the product itself at bfloat16.
        """
        if (weights := _weights_of(self.project)) is None:
            return self
        weight, bias = weights["weight"].T, weights.get("bias")
        place = weight.new_empty(0)

        @torch.inference_mode()
        def logits(hidden: Tensor) -> Tensor:
            nonlocal place
            if len(place) != len(hidden):
                place = weight.new_empty(len(hidden), weight.shape[1])
            if bias is None:
                torch.mm(hidden, weight, out=place)
            else:
                torch.addmm(bias, hidden, weight, out=place)
            return self._finished(place)

        return logits

    def _finished(self, logits: Tensor) -> Tensor:
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
