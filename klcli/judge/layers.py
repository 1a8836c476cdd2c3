"""Layers: where in the network two models part. Every renderer takes it and computes nothing.

Version 1 of the JSON shape: first release.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from klcli.align.alignment import Alignment
from klcli.errors import Notice
from klcli.judge.plain import to_plain
from klcli.judge.shown_outliers import read
from klcli.sources.conditions import Conditions

if TYPE_CHECKING:
    from klcli.measure.layers import LayerSums, MeasuredLayers

FORMAT = "klcli.layers"
FORMAT_VERSION = 1

NOISE_FACTOR = 10
"""How many times its noise the error of a layer may be."""

LEAST = {"float64": 1e-12, "float32": 1e-5, "float16": 2**-10, "bfloat16": 2**-7}
"""What rounding may make in one layer, by number format, whatever the noise.

One step of the 16-bit formats; float32 rounds at every step of long sums, which adds up to more
than one of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The scored token at which a layer differs most, and its relative error there.

    ``index`` is its number among the scored tokens, ``position`` its place in the document.
    """

    error: float
    index: int
    document: str
    position: int
    token: str
    token_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one layer of the candidate differs from that of the reference.

    Attributes:
        layer: ``embedding``, ``block 0`` and so on, ``final`` or ``logits``.
        module: what the reference calls the block; None of the others.
        error: the norm of candidate - reference over the norm of the reference, each the root of a
            sum of squares over all scored tokens.
        token_error: the mean over the scored tokens of the same ratio at one token. A few tokens of
            very large states do not outweigh the others in it.
        cosine: the mean over the scored tokens of the cosine of both states.
        noise: the token error of the reference from itself, read in another batch shape.
        allowed: the token error that noise and rounding may make.
        is_apart: whether the token error is above that, or the candidate alone is not finite.
        largest: the token with the largest relative error; None where no token is known.
        not_finite: tokens that are left out, because a model gave NaN or infinity.
    """

    layer: str
    module: str | None
    error: float
    token_error: float
    cosine: float
    noise: float
    allowed: float
    is_apart: bool
    largest: Place | None
    not_finite: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """Where the error of tokens rises most from one layer to the next."""

    layer: str
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The result of a comparison layer by layer.

    ``first_apart`` is the first layer that is apart, None where there is none, and ``rise`` where
    the error of tokens rises most, None where nothing is apart. ``counts`` says how much of the
    text was read, and ``corpora`` are the names of the texts.
    """

    models: Mapping[str, Mapping[str, Any]]
    protocol: Mapping[str, Any]
    environment: Mapping[str, Any]
    counts: Mapping[str, int]
    corpora: Sequence[str]
    layers: Sequence[Layer]
    first_apart: str | None
    rise: Rise | None
    warnings: Sequence[Notice] = ()

    def __repr__(self) -> str:
        apart = f"apart from {self.first_apart} on" if self.first_apart else "none apart"
        return f"<Layers: {len(self.layers)} layers over {self.counts['tokens']:,} tokens, {apart}>"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data for JSON: infinities as "inf" and "-inf", NaN as None."""
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **self.models,
            "protocol": self.protocol,
            "environment": self.environment,
            "counts": self.counts,
            "corpora": self.corpora,
            "layers": [asdict(layer) for layer in self.layers],
            "first_apart": self.first_apart,
            "rise": None if self.rise is None else asdict(self.rise),
            "warnings": [asdict(warning) for warning in self.warnings],
        }
        return cast("dict[str, Any]", to_plain(document))


def conclude_layers(
    measured: "MeasuredLayers",
    names: Sequence[str],
    alignment: Alignment,
    conditions: Conditions,
    counts: Mapping[str, int],
) -> Layers:
    """Judge what was measured.

    Args:
        measured: the sums of every layer.
        names: what the reference calls its blocks.
        alignment: the tokens that were read.
        conditions: the models and the machine.
        counts: how much of the text was read.
    """
    least = max(LEAST.get(m["dtype"], LEAST["float32"]) for m in conditions.models.values())
    modules = {f"block {number}": name for number, name in enumerate(names)}
    layers = [
        _layer(name, sums, measured.noise[name], modules.get(name), alignment, least * depth**0.5)
        for depth, (name, sums) in enumerate(measured.candidate.items(), start=1)
    ]
    first = next((layer.layer for layer in layers if layer.is_apart), None)
    return Layers(
        models=conditions.models,
        protocol=alignment.table.protocol,
        environment=conditions.environment,
        counts=counts,
        corpora=[corpus.name for corpus in alignment.table.corpora],
        layers=layers,
        first_apart=first,
        rise=None if first is None else _steepest(layers),
        warnings=[
            *alignment.notices,
            *_other_depth(measured.blocks, conditions),
            *_left_out(layers, counts["tokens"]),
        ],
    )


def _layer(
    name: str,
    sums: "LayerSums",
    noise: "LayerSums",
    module: str | None,
    alignment: Alignment,
    least: float,
) -> Layer:
    """A layer; what rounding makes in each adds up like the steps of a random walk: ``least``."""
    allowed = max(NOISE_FACTOR * noise.token_error, least)
    return Layer(
        layer=name,
        module=module,
        error=sums.error,
        token_error=sums.token_error,
        cosine=sums.cosine,
        noise=noise.token_error,
        allowed=allowed,
        is_apart=sums.token_error > allowed or sums.not_finite > noise.not_finite,
        largest=_place(sums, alignment),
        not_finite=sums.not_finite,
    )


def _place(sums: "LayerSums", alignment: Alignment) -> Place | None:
    if sums.largest_at is None:
        return None
    table = alignment.table
    ends = np.cumsum(table.window_tokens)
    number = int(np.searchsorted(ends, sums.largest_at, side="right"))
    window = table.windows[number]
    row = sums.largest_at - int(ends[number]) + len(window.targets)
    token_id = int(window.targets[row])
    return Place(
        error=sums.largest,
        index=sums.largest_at,
        document=table.documents[window.document].name,
        position=int(window.positions[row]),
        token=read(alignment, [token_id]),
        token_id=token_id,
    )


def _steepest(layers: Sequence[Layer]) -> Rise | None:
    """Where the error of states rises most; that of logits is of another kind."""
    errors = [(one.layer, one.token_error) for one in layers if one.layer != "logits"]
    before = [0.0, *(error for _, error in errors)]
    rises = [
        Rise(layer=layer, before=first, after=error)
        for first, (layer, error) in zip(before, errors, strict=False)
        if math.isfinite(error) and math.isfinite(first) and error > first
    ]
    return max(rises, key=lambda rise: rise.after - rise.before, default=None)


def _left_out(layers: Sequence[Layer], tokens: int) -> Iterator[Notice]:
    most = max(layers, key=lambda layer: layer.not_finite)
    if most.not_finite:
        yield Notice(
            code="excluded",
            message=f"{most.not_finite:,} of {tokens:,} tokens are left out in {most.layer}: a "
            "model gives NaN or infinity there; float16 overflows where bfloat16 does not",
        )


def _other_depth(blocks: tuple[int, int], conditions: Conditions) -> Iterator[Notice]:
    reference, candidate = (model["source"] for model in conditions.models.values())
    if blocks[0] != blocks[1]:
        yield Notice(
            code="depths_differ",
            message=f"{reference} has {blocks[0]} blocks and {candidate} {blocks[1]}: the first "
            f"{min(blocks)} of each are compared, and the ends of both models",
        )
