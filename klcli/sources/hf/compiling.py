"""Compiling the blocks of a model with torch.compile."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from klcli.errors import SourceError
from klcli.sources.hf.blocks import stacks


def compile_blocks(model: Any) -> None:
    """Let torch compile the blocks of a model, where it spends its time, when they first run.

    The model around them stays as it is, and so do the hooks on its body and its head. Sizes are
    left open, or each length of a batch would be compiled anew.

    Raises:
        SourceError: there are no blocks.
    """
    blocks = max(stacks(model), key=len, default=None)
    if blocks is None:
        raise SourceError(f"{type(model).__name__} has no stack of blocks: leave out --compile")
    for block in blocks:
        block.compile(dynamic=True)


@contextlib.contextmanager
def compiling(spec: str) -> Iterator[None]:
    """The probe of a model is the first to run what is compiled, and to fail if that cannot be."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).split("\n\n")[0]  # behind it stands how to debug torch
        raise SourceError(
            f"cannot compile {spec}: {' '.join(reason.split())}; torch.compile needs a C++ "
            "compiler on a CPU and Triton on a GPU: install that, or leave out --compile"
        ) from error
