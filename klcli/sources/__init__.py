"""Who predicts: models and logit files, all of one shape to everything downstream."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

from klcli.sources.options import LoadOptions

if TYPE_CHECKING:
    from klcli.sources.arrays import ArraySource
    from klcli.sources.causal import CausalSource

OpenSource = Union["CausalSource", "ArraySource"]

ARRAY_SUFFIXES = (".npy", ".npz", ".pt", ".safetensors")


def open_source(spec: str, options: LoadOptions) -> OpenSource:
    """Open what a user named: a logit file, or a model.

    Raises:
        SourceError: it cannot be opened.
    """
    if Path(spec).suffix in ARRAY_SUFFIXES:
        from klcli.sources.arrays import open_arrays

        return open_arrays(spec, options)
    from klcli.sources.causal import load_causal

    return load_causal(spec, options)
