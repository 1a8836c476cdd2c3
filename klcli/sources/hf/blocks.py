"""The blocks of a model: the modules that it is a stack of, and what it holds between them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from klcli.errors import SourceError

Read = Callable[[Tensor, Tensor], Tensor]
"""Takes ids (n, length) and places (rows,) among them; gives what a model has there (rows, d)."""


def stacks(module: torch.nn.Module) -> Iterator[torch.nn.ModuleList]:
    """The lists of modules in a model, without those inside of others, such as experts."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield child
        else:
            yield from stacks(child)


def running_blocks(model: Any, read: Callable[[], object]) -> list[torch.nn.Module]:
    """The blocks that run while ``read`` does, as often and in the order as they run.

    They are the stack of which most runs: an image-text model may have a longer one that text does
    not reach, and some models run one block many times. Of two stacks the later one is taken, which
    ends what the other begins.

    Raises:
        SourceError: there is no such stack.
    """
    ran: list[tuple[int, torch.nn.Module]] = []
    with contextlib.ExitStack() as hooks:
        for number, stack in enumerate(stacks(model)):
            for block in stack:
                note = partial(_note, ran, number)
                hooks.enter_context(block.register_forward_hook(note))
        read()
    numbers = [number for number, _ in ran]
    if not ran:
        raise SourceError(
            f"{type(model).__name__} has no stack of blocks, such as decoder layers, that runs on "
            "text: its layers cannot be told apart"
        )
    last = {number: place for place, number in enumerate(numbers)}
    longest = max(last, key=lambda number: (numbers.count(number), last[number]))
    return [block for number, block in ran if number == longest]


def names_of(model: Any, blocks: Sequence[torch.nn.Module]) -> tuple[str, ...]:
    """What a model calls its blocks, such as ``model.layers.0``."""
    names = {id(module): name for name, module in model.named_modules()}
    return tuple(names[id(block)] for block in blocks)


class Taps:
    """Reads what a model holds between its blocks, together with what is read of its end.

    All comes back side by side in one tensor, for a batch may be read in several passes whose rows
    are put together; ``apart`` takes it to pieces.
    """

    def __init__(self, name: str, blocks: Sequence[torch.nn.Module], read: Read) -> None:
        self._name, self._blocks, self._read = name, blocks, read
        self._parts: list[tuple[int, torch.dtype]] = []

    def __call__(self, ids: Tensor, places: Tensor) -> Tensor:
        """What the first block is given, what each block gives, and the end: (rows, sizes).

        Raises:
            SourceError: a block does not give one state for every position.
        """
        seen: list[Tensor] = []
        take = partial(self._at, shape=ids.shape, places=places)
        with contextlib.ExitStack() as hooks:
            for block in dict.fromkeys(self._blocks):
                before, after = partial(_given, seen, take), partial(_gives, seen, take)
                hooks.enter_context(block.register_forward_pre_hook(before, with_kwargs=True))
                hooks.enter_context(block.register_forward_hook(after))
            end = self._read(ids, places)
        if len(seen) != len(self._blocks) + 1:
            raise SourceError(
                f"{self._name} ran {len(seen) - 1} blocks on a text and {len(self._blocks)} on "
                "another: its layers cannot be compared"
            )
        states = [*(state.to(end.device) for state in seen), end]
        self._parts = [(state.shape[1], state.dtype) for state in states]
        return torch.cat(states, dim=1)

    def apart(self, joined: Tensor) -> list[Tensor]:
        """What stands side by side in a tensor, each in the number format that it had."""
        parts = torch.split(joined, [size for size, _ in self._parts], dim=1)
        return [part.to(dtype) for part, (_, dtype) in zip(parts, self._parts, strict=True)]

    def _at(self, state: object, *, shape: torch.Size, places: Tensor) -> Tensor:
        """The rows of a state that are asked for: it is (n, length, d), or has several streams."""
        if not isinstance(state, Tensor) or state.ndim < 3 or state.shape[:2] != shape:
            raise SourceError(
                f"a block of {self._name} ({type(self._blocks[0]).__name__}) does not have one "
                "state for every token: its layers cannot be compared"
            )
        return state.flatten(0, 1)[places.to(state.device)].flatten(1)


Take = Callable[[object], Tensor]


def _note(
    ran: list[tuple[int, torch.nn.Module]],
    number: int,
    block: torch.nn.Module,
    _args: object,
    _output: object,
) -> None:
    ran.append((number, block))


def _given(
    seen: list[Tensor],
    take: Take,
    _block: torch.nn.Module,
    args: Sequence[object],
    named: Mapping[str, object],
) -> None:
    """Keep what the first block is given; of the others it is what the one before gave."""
    if not seen:
        seen.append(take(args[0] if args else named.get("hidden_states")))


def _gives(
    seen: list[Tensor], take: Take, _block: torch.nn.Module, _args: object, output: Any
) -> None:
    seen.append(take(output if isinstance(output, Tensor) else output[0]))
