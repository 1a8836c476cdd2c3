"""The same model, read in another way: what it differs from itself."""

from dataclasses import replace

from klcli.choices import DtypeName, NoiseFloor
from klcli.errors import UsageError
from klcli.sources import Source
from klcli.sources.given import GivenModel
from klcli.sources.hf.given import open_given
from klcli.sources.hf.loading import load_model
from klcli.sources.options import LoadOptions


def read_differently(
    source: Source, spec: str | GivenModel, by: NoiseFloor, options: LoadOptions
) -> Source:
    """The same model loaded again, to be read in another way.

    ``batch`` reads one sequence at a time, ``dtype`` has other number formats (bfloat16 for
    float32, float32 for others), ``attention`` the plain kernel in the place of the fused one.

    Raises:
        SourceError: it cannot be loaded so.
        UsageError: it is the caller's, which is left as it is.
    """
    if not isinstance(spec, str):
        if by != "batch":
            raise UsageError(f"the noise floor by {by} needs a model that klcli loads: give a path")
        return open_given(spec, replace(options, task=source.task, batch_tokens=1))
    options = replace(options, task=source.task)
    if by == "batch":
        return load_model(source.name, replace(options, batch_tokens=1))
    if by == "dtype":
        other: DtypeName = "bfloat16" if source.provenance["dtype"] == "float32" else "float32"
        return load_model(source.name, replace(options, dtype=other))
    again = load_model(source.name, options)
    again.use_plain_attention()
    return again
