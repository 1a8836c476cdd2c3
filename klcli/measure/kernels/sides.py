"""One side of a comparison at some rows, whatever is known of its distributions.

Three classes with the same three methods: a side is ``Whole`` (every probability is known), a
``TopK`` (the most probable ones) or ``Truncated`` (llama.cpp's 16-bit files).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from klcli.choices import RowKind
from klcli.errors import MismatchError
from klcli.measure.kernels import exact, topk, truncated
from klcli.measure.kernels.constants import OVERLAP, TOP
from klcli.sources.rows import TopBlock


@dataclass(frozen=True, slots=True)
class Whole:
    """Logits (rows, vocabulary) and what they say, ln p in float64."""

    logits: Tensor
    log_p: Tensor

    def predictions(self, targets: Tensor) -> dict[str, Tensor]:
        """The columns of this side."""
        return exact.predictions(self.log_p, targets)

    def top(self) -> tuple[Tensor, Tensor]:
        """Ids and probabilities of the most probable tokens, best first: (rows, 10) each."""
        ids = exact.top_tokens(self.logits, TOP).to(self.log_p.device)
        return ids, self.log_p.gather(-1, ids).exp()

    def usable(self) -> Tensor:
        """Which rows are distributions: bool (rows,)."""
        return exact.usable_rows(self.logits).to(self.log_p.device)


@dataclass(frozen=True, slots=True)
class TopK:
    """The most probable ids of each row, in float64."""

    block: TopBlock

    def predictions(self, targets: Tensor) -> dict[str, Tensor]:
        """The columns of this side."""
        return topk.predictions(self.block, targets)

    def top(self) -> tuple[Tensor, Tensor]:
        """Ids and probabilities of the most probable tokens, best first: (rows, up to 10) each."""
        ids, log_probs = self.block.ids[:, :TOP], self.block.log_probs[:, :TOP]
        ranked = torch.arange(ids.shape[-1], device=ids.device) < self.block.ranked[:, None]
        return torch.where(ranked, ids, -1), torch.where(ranked, log_probs.exp(), 0.0)

    def usable(self) -> Tensor:
        """Which rows are distributions: bool (rows,)."""
        numbers = torch.cat([self.block.log_probs, self.block.log_rest[:, None]], dim=-1)
        return ~numbers.isnan().any(dim=-1) & ~numbers.isposinf().any(dim=-1)


@dataclass(frozen=True, slots=True)
class Truncated:
    """Log-probabilities of a llama.cpp base file (rows, vocabulary), in float64."""

    log_p: Tensor

    def predictions(self, targets: Tensor) -> dict[str, Tensor]:
        """The columns of this side."""
        found = truncated.predictions(self.log_p, targets)
        return found | {"entropy": torch.full_like(found["nll"], torch.nan)}

    def top(self) -> tuple[Tensor, Tensor]:
        """Ids and probabilities of the most probable tokens, best first: (rows, 10) each."""
        ids = exact.top_tokens(self.log_p, TOP)
        return ids, self.log_p.gather(-1, ids).exp()

    def usable(self) -> Tensor:
        """Which rows are distributions: bool (rows,)."""
        return exact.usable_rows(self.log_p)


Side = Whole | TopK | Truncated


def read_side(block: Tensor | TopBlock, kind: RowKind) -> Side:
    """One side out of a block of rows of a kind."""
    if isinstance(block, TopBlock):
        return TopK(TopBlock(*(t.double() if t.is_floating_point() else t.long() for t in block)))
    if kind == "truncated":
        return Truncated(block.double())
    return Whole(block, exact.log_probabilities(block))


def divergences(p: Side, q: Side, targets: Tensor) -> dict[str, Tensor]:
    """How two sides differ at each row; NaN where that cannot be known from what they are."""
    if isinstance(p, Whole) and isinstance(q, Whole):
        found = exact.divergences(p.log_p, q.log_p, targets)
    elif isinstance(p, Truncated) and isinstance(q, Whole):
        found = truncated.divergences(p.log_p, q.log_p, targets)
    else:
        found = topk.divergences(*_shared(p, q)) | _at_targets(p, q, targets)
    found["overlap_5"] = _overlap(p, q)
    nothing = torch.full_like(found["kl"], torch.nan)
    return {name: nothing for name in ("kl_reverse", "jsd", "tv") if name not in found} | found


def _overlap(p: Side, q: Side) -> Tensor:
    """The overlap of the top five, NaN where a list has fewer."""
    ids, other_ids = p.top()[0][:, :OVERLAP], q.top()[0][:, :OVERLAP]
    if ids.shape != other_ids.shape or any(
        isinstance(side, TopK) and side.block.ids.shape[-1] < OVERLAP for side in (p, q)
    ):
        return torch.full((len(ids),), torch.nan, device=ids.device, dtype=torch.float64)
    complete = ((ids >= 0) & (other_ids >= 0)).all(dim=-1)
    return torch.where(complete, exact.overlap(ids, other_ids), torch.nan)


def _shared(p: Side, q: Side) -> tuple[topk.Known, topk.Known]:
    if isinstance(p, TopK) and isinstance(q, TopK):
        return topk.share_of_lists(p.block, q.block)
    if isinstance(p, Whole) and isinstance(q, TopK):
        return topk.share_with_whole(p.log_p, q.block)
    if isinstance(p, TopK) and isinstance(q, Whole):
        whole, listed = topk.share_with_whole(q.log_p, p.block)
        return listed, whole
    raise MismatchError(
        "a base file of llama.cpp knows nothing of the tail of its distributions: it can be the "
        "REFERENCE, and the CANDIDATE must be a model or have every logit"
    )


def _at_targets(p: Side, q: Side, targets: Tensor) -> dict[str, Tensor]:
    nll_p, nll_q = p.predictions(targets)["nll"], q.predictions(targets)["nll"]
    return {"nll_difference": nll_q - nll_p, "delta_p": (-nll_q).exp() - (-nll_p).exp()}
