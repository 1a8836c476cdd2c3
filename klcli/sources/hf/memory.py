"""What a forward pass leaves in a model, undone: what it predicts depends on its input alone."""

from collections.abc import Mapping
from typing import Any

import torch

_PLAIN = (bool, int, float, str, tuple, type(None))


class Memory:
    """What the modules of a model hold besides their weights, as they were when it was loaded.

    Some models keep what they once saw: BigBird leaves sparse attention for good after one short
    input, and rotary embeddings of dynamic scaling are worked out anew after a long one. So every
    pass begins with the model as it was.

    Quantised and split models are left alone: they pack and move weights on their first pass.
    """

    def __init__(self, model: Any) -> None:
        is_plain = not getattr(model, "is_quantized", False) and not hasattr(model, "hf_device_map")
        self._before = [(m, *_contents(m)) for m in model.modules()] if is_plain else []

    def restore(self) -> None:
        """Put back whatever differs."""
        for module, values, modules, buffers in self._before:
            now = module.__dict__
            for name, value in values.items():
                if now.get(name, _GONE) is not value:
                    now[name] = value
            for kept, found in ((modules, module._modules), (buffers, module._buffers)):
                if any(found.get(name) is not one for name, one in kept.items()):
                    found.update(kept)


_GONE = object()

Contents = tuple[
    Mapping[str, Any], dict[str, torch.nn.Module | None], dict[str, torch.Tensor | None]
]


def _contents(module: torch.nn.Module) -> Contents:
    """The plain values of a module, its submodules and its buffers."""
    values = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}
    return values, dict(module._modules), dict(module._buffers)
