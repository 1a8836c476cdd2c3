"""The flow of ``klcli layers``: open → align → measure → conclude."""

from collections.abc import Sequence
from dataclasses import replace

from klcli.align import Alignment, align
from klcli.checks import Inputs
from klcli.judge.layers import Layers, conclude_layers
from klcli.measure.layers import measure_layers
from klcli.request import Measurement
from klcli.sources.conditions import conditions_of
from klcli.sources.given import GivenModel
from klcli.sources.hf.given import as_found
from klcli.sources.hf.loading import open_model
from klcli.sources.hf.model import ModelSource
from klcli.sources.opening import told_of_loading
from klcli.text.examples import Dataset
from klcli.text.scope import Scope
from klcli.text.windows import Window, WindowTable

DEFAULT_TOKENS = 2048
"""How many tokens are read where no limit is given: errors of layers need no long text."""
BATCH_TOKENS = 2048
"""The most ids that are read at once where nothing is given: states of all layers are kept."""
MASK_EVERY = 16
"""Which of the tokens are hidden from masked models at once where nothing is given."""


def compare_layers(request: Measurement, inputs: Inputs) -> Layers:
    """Compare what two models hold in each of their layers.

    Raises:
        KlcliError: an input cannot be read, is not a model, or does not fit the other.
    """
    with as_found(request.specs):
        return _compared(request, inputs.corpora)


def _compared(request: Measurement, corpora: Sequence[Dataset]) -> Layers:
    reference, candidate = _opened(request)
    request.hooks.begin("reading the text")
    whole, alignment = _aligned((reference, candidate), corpora, request.scope)
    measured = measure_layers(
        alignment.table,
        reference,
        candidate,
        batch_tokens=request.batch_tokens or BATCH_TOKENS,
        progress=request.hooks.progress,
    )
    return conclude_layers(
        measured,
        reference.block_names,
        alignment,
        conditions_of((reference, candidate)),
        _counts(alignment.table, whole),
    )


def _opened(request: Measurement) -> tuple[ModelSource, ModelSource]:
    opened: list[ModelSource] = []
    for spec, load in zip(request.specs, request.loads, strict=True):
        assert isinstance(spec, str | GivenModel)  # others do not show their layers
        with told_of_loading(spec, request.hooks):
            opened.append(open_model(spec, load, opened[0] if opened else None))
    reference, candidate = opened
    return reference, candidate


def _aligned(
    sources: Sequence[ModelSource], corpora: Sequence[Dataset], scope: Scope
) -> tuple[WindowTable, Alignment]:
    """The windows of the whole text, and those that are read."""
    if sources[0].task == "masked" and scope.mask_every is None and scope.pll is None:
        scope = replace(scope, mask_every=MASK_EVERY)
    found = align(sources, corpora, replace(scope, limit=None))
    whole, limit = found.table, scope.limit
    table = _first_tokens(whole) if limit is None else whole.limited(limit)
    table = replace(table, protocol=dict(table.protocol) | {"limit": limit})
    return whole, replace(found, table=table)


def _first_tokens(table: WindowTable) -> WindowTable:
    """The first windows of a table: as many as have the default number of tokens, at least one."""
    tokens, kept = 0, list[Window]()
    for window in table.windows:
        tokens += len(window.targets)
        if kept and tokens > DEFAULT_TOKENS:
            break
        kept.append(window)
    return replace(table, windows=tuple(kept))


def _counts(table: WindowTable, whole: WindowTable) -> dict[str, int]:
    return {
        "tokens": table.tokens,
        "tokens_in_all": whole.tokens,
        "windows": len(table.windows),
        "windows_in_all": len(whole.windows),
    }
