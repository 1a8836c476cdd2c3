"""How far apart two models are in each layer: sums over the scored positions, batch by batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klcli.errors import MismatchError
from klcli.hooks import Progress
from klcli.sources.layers import Layered, LayerStates
from klcli.text.windows import WindowTable, plan_batches

Places = npt.NDArray[np.int64]


@dataclass(slots=True)
class LayerSums:
    """What is known of one layer so far, in float64.

    ``apart`` and ``size`` are the sums of the squares of candidate - reference and of the
    reference, ``errors`` and ``cosines`` the sums of the relative errors and of the cosines of
    single positions. ``largest`` is the largest of these errors, that of scored token number
    ``largest_at``. ``not_finite`` positions, where a model has NaN or infinity and the other
    has something else, are left out.
    """

    tokens: int = 0
    apart: float = 0.0
    size: float = 0.0
    errors: float = 0.0
    cosines: float = 0.0
    largest: float = -1.0
    largest_at: int | None = None
    not_finite: int = 0

    def add(self, reference: Tensor, candidate: Tensor, places: Places) -> None:
        """Take the states (rows, d) of both models at some scored tokens (rows,)."""
        p, q = _in_float64(reference, candidate)
        apart, size, cosine = _differences(p, q)
        known = apart.isfinite() & size.isfinite()
        error = (apart / size).sqrt().where(apart > 0, 0.0).where(known, -1.0)
        self.tokens += int(known.sum())
        self.not_finite += int((~known).sum())
        self.apart += float(apart[known].sum())
        self.size += float(size[known].sum())
        self.errors += float(error[known].sum())
        self.cosines += float(cosine[known].sum())
        row = int(error.argmax())
        if float(error[row]) > self.largest:
            self.largest, self.largest_at = float(error[row]), int(places[row])

    @property
    def error(self) -> float:
        """The relative error: the norm of all differences over the norm of the reference."""
        if self.tokens == 0:
            return math.nan
        if self.size == 0:
            return 0.0 if self.apart == 0 else math.inf
        return math.sqrt(self.apart / self.size)

    @property
    def token_error(self) -> float:
        """The mean of the relative errors of single positions."""
        return self.errors / self.tokens if self.tokens else math.nan

    @property
    def cosine(self) -> float:
        """The mean cosine of what both models hold at one position."""
        return self.cosines / self.tokens if self.tokens else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLayers:
    """The sums by layer: of the candidate, and of the reference read in another batch shape.

    ``blocks`` is how many the reference and the candidate have.
    """

    candidate: dict[str, LayerSums]
    noise: dict[str, LayerSums]
    blocks: tuple[int, int]


def measure_layers(
    table: WindowTable,
    reference: Layered,
    candidate: Layered,
    *,
    batch_tokens: int,
    progress: Progress | None = None,
) -> MeasuredLayers:
    """Compare what two models hold in each layer that both have, at every scored token.

    At any time there are the states of one batch, those of two models at once.

    Raises:
        MismatchError: their states are not of one size.
    """
    apart: dict[str, LayerSums] = {}
    noise: dict[str, LayerSums] = {}
    starts, done = np.cumsum([0, *table.window_tokens]), 0
    if progress is not None:
        progress(done, table.tokens)
    for batch in plan_batches(table.windows, batch_tokens):
        windows = [table.windows[number] for number in batch]
        places = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in batch])
        states = reference.states(windows)
        _add(noise, states, reference.states_read_otherwise(windows), places)
        other = candidate.states(windows)
        _check_sizes(reference, candidate, states, other)
        _add(apart, states, other, places)
        for source in (reference, candidate):
            source.check_unchanged()
        done += len(places)
        if progress is not None:
            progress(done, table.tokens)
    blocks = len(reference.block_names), len(candidate.block_names)
    return MeasuredLayers(candidate=apart, noise=noise, blocks=blocks)


def _add(sums: dict[str, LayerSums], one: LayerStates, other: LayerStates, places: Places) -> None:
    for name, states in one.hidden.items():
        if name in other.hidden:
            sums.setdefault(name, LayerSums()).add(states, other.hidden[name], places)
    for first, p, q in _logits(one, other):
        sums.setdefault("logits", LayerSums()).add(p, q, places[first : first + len(p)])


def _logits(one: LayerStates, other: LayerStates) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The logits of both, some rows at a time; of the wider ones the last ids are cut."""
    size, total = min(one.logits.size, other.logits.size), len(one.logits)
    for first in range(0, total, size):
        stop = min(first + size, total)
        p, q = (torch.as_tensor(side.logits.block(first, stop)) for side in (one, other))
        width = min(p.shape[1], q.shape[1])
        yield first, p[:, :width], q[:, :width]


def _check_sizes(
    reference: Layered, candidate: Layered, one: LayerStates, other: LayerStates
) -> None:
    common = [name for name in one.hidden if name in other.hidden]
    if all(one.hidden[name].shape == other.hidden[name].shape for name in common):
        return
    about = (
        f"{source.name} has {len(source.block_names)} blocks of {_size(states)} numbers a token"
        for source, states in ((reference, one), (candidate, other))
    )
    raise MismatchError(
        f"{' and '.join(about)}: states of different sizes cannot be compared; klcli compare "
        "compares what such models predict"
    )


def _size(states: LayerStates) -> str:
    sizes: Sequence[int] = sorted({state.shape[1] for state in states.hidden.values()})
    return " and ".join(map(str, sizes))


def _in_float64(reference: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
    """Both on one device that has float64. Where both hold the same infinity neither differs."""
    device = reference.device if reference.device.type != "mps" else torch.device("cpu")
    p, q = (states.to(device).double() for states in (reference, candidate))
    same = p.isinf() & (p == q)  # as of a token that neither allows
    return p.masked_fill(same, 0.0), q.masked_fill(same, 0.0)


def _differences(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: squares of q - p and of p, and the cosine, which is 1 where both are 0."""
    size, other = p.square().sum(dim=1), q.square().sum(dim=1)
    cosine = (p * q).sum(dim=1) / (size * other).sqrt()
    none = torch.where(size == other, 1.0, 0.0).to(cosine.dtype)
    return (q - p).square().sum(dim=1), size, torch.where(size * other == 0, none, cosine)
