"""Which devices a model is put on: one, or all where it does not fit."""

import importlib.util
from typing import Any

import torch

from klcli import torchrun
from klcli.errors import SourceError
from klcli.sources.hf.checkpoint import Checkpoint

SHARE_FOR_WEIGHTS = 0.9
"""Of the free memory of a device; the rest is for what a forward pass needs."""


def spread_over_devices(
    spec: str, kind: Any, checkpoint: Checkpoint, dtype: Any, device: str
) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` that spread a model which does not fit its device.

    Raises:
        SourceError: it does not fit and cannot be spread.
    """
    room = free_memory(device)
    if room is None:
        return {}
    return _spread(spec, _size_of_weights(kind, checkpoint, dtype), room, device)


def free_memory(device: str) -> int | None:
    """How many bytes are free for weights on a device, None where models are not spread.

    What is free on a GPU counts without what torch keeps for itself to use again.
    """
    if torch.device(device).type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def _size_of_weights(kind: Any, checkpoint: Checkpoint, dtype: Any) -> int:
    """How many bytes the weights of a model take, by its config; 0 for what is quantised.

    How large that is its config does not tell, and it is made for a single device.
    """
    config = checkpoint.config()
    if getattr(config, "quantization_config", None) is not None:
        return 0
    given = {} if dtype == "auto" else {"dtype": dtype}
    trust = checkpoint.arguments["trust_remote_code"]
    with torch.device("meta"):
        if hasattr(kind, "from_config"):
            model = kind.from_config(config, trust_remote_code=trust, **given)
        else:  # a class by its own name
            model = kind._from_config(config, **given)
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _spread(spec: str, size: int, room: int, device: str) -> dict[str, Any]:
    """The arguments that spread a model over devices where its weights do not fit one.

    Raises:
        SourceError: that cannot be.
    """
    if size <= SHARE_FOR_WEIGHTS * room:
        return {}
    too_large = (
        f"{spec} has {size / 1e9:,.1f} GB of weights, and {device} has {room / 1e9:,.1f} GB free"
    )
    if torchrun.local_rank() is not None:
        raise SourceError(
            f"{too_large}: under torchrun each rank has one device, and a model that does not fit "
            "is not split; run without torchrun, or try --dtype bfloat16"
        )
    if importlib.util.find_spec("accelerate") is None:
        raise SourceError(
            f"{too_large}: to split it over all devices and the machine's memory, "
            "pip install accelerate"
        )
    return {"device_map": "auto"}
