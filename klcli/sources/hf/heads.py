"""Where the output head of a model begins, and what a family may do behind its matrix."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from klcli.sources.head import Head, numbers_of

_SETTING = re.compile(r"logit|lm_head|output_mult|soft_?cap")
"""Names of the numbers in a config that a family may apply to its logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where hidden states pass into the output head.

    They are what ``module`` is given or, with ``behind``, what it gives. ``project`` multiplies
    them (rows, d) by the output embeddings.
    """

    module: torch.nn.Module
    project: Callable[[Tensor], Tensor]
    behind: bool = False

    def watch(self, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Hand on what ``change`` makes of the hidden states, until the handle is removed."""
        if self.behind:
            return self.module.register_forward_hook(lambda _module, _args, out: change(out))
        return self.module.register_forward_pre_hook(
            lambda _module, args: (change(args[0]), *args[1:])
        )


def place_of(model: Any) -> Place:
    """Where the output head of a model begins.

    Raises:
        AttributeError: the model has no output embeddings.
    """
    embeddings = model.get_output_embeddings()
    if embeddings is None:
        raise AttributeError("the model has no output embeddings")
    owner = _owner_of(embeddings, model)
    if hasattr(owner, "transform") and hasattr(owner, "dense"):
        return _factorised(owner)
    bias = getattr(owner, "bias", None)
    if isinstance(bias, Tensor) and getattr(embeddings, "bias", None) is None:
        weight = numbers_of(embeddings, "weight")
        if bias.shape == weight.shape[:1]:
            linear = partial(functional.linear, weight=weight, bias=numbers_of(owner, "bias"))
            return Place(module=embeddings, project=linear)
    return Place(module=embeddings, project=embeddings)


def _owner_of(module: torch.nn.Module, model: torch.nn.Module) -> Any:
    """The module that has ``module`` among its children."""
    owners = (one for one in model.modules() if any(m is module for m in one.children()))
    return next(owners, model)


def _factorised(owner: Any) -> Place:
    """MobileBERT's: the embeddings, which are narrow, and a second matrix beside them."""
    decoder = owner.decoder
    parts = numbers_of(decoder, "weight"), numbers_of(owner.dense, "weight").T
    bias = numbers_of(decoder, "bias")
    linear = partial(functional.linear, weight=torch.cat(parts, dim=1), bias=bias)
    return Place(module=owner.transform, project=linear, behind=True)


def heads_of(
    project: Callable[[Tensor], Tensor], config: Any, size: int, dtype: torch.dtype
) -> Iterator[Head]:
    """Every head that a config may mean, the plainest first: a probe finds the one that it does.

    Families call the numbers for their logits what they like, and multiply by one where another
    divides: one of them scales what the head is given, so that nothing is left to do behind it.
    """
    scales, caps = _settings_of(config)
    factors = [(None, None), *((n, None) for n in scales), *((None, n) for n in scales)]
    for softcap, (multiplier, divisor) in itertools.product((None, *caps), factors):
        yield Head(
            project=project,
            size=size,
            dtype=dtype,
            multiplier=multiplier,
            divisor=divisor,
            softcap=softcap,
        )


def _settings_of(config: Any) -> tuple[list[float], list[float]]:
    """The factors and the softcaps in a config, and in that of its text part."""
    scales: dict[float, None] = {}
    caps: dict[float, None] = {}
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            if _SETTING.search(name) and type(value) in (int, float) and value > 0 and value != 1:
                (caps if "cap" in name else scales)[value] = None
    return list(scales), list(caps)
