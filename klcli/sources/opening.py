"""Opening what a user named."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from klcli.errors import SourceError, reading
from klcli.hooks import Hooks
from klcli.sources import Live, Source
from klcli.sources.given import GivenFunction, GivenLogits, GivenModel, Spec
from klcli.sources.kinds import SourceKind, kind_of
from klcli.sources.options import LoadOptions


@contextlib.contextmanager
def told_of_loading(spec: Spec, hooks: Hooks) -> Iterator[None]:
    """Say that a source is being loaded, and how far its download is if it has to be had first."""
    from klcli.sources.hf.hub import telling_of_downloads

    hooks.begin(f"loading {spec}")
    with telling_of_downloads(hooks.begin):
        yield


def open_source(spec: Spec, options: LoadOptions, beside: Source | None = None) -> Source:
    """Open a recording, a logit file, or a model; or take what a caller has in memory.

    A model that is an adapter on the model of the source ``beside`` it shares its weights.

    Raises:
        SourceError: it cannot be opened.
    """
    if isinstance(spec, GivenLogits):
        return _take_logits(spec, options)
    if not isinstance(spec, str):
        return open_live(spec, options)
    kind = kind_of(spec)
    if kind == "model":
        return _open_model(spec, options, beside)
    with reading(f"the {kind} {spec}", SourceError):
        return _OPENERS[kind](spec, options)


def open_live(
    spec: str | GivenModel | GivenFunction, options: LoadOptions, beside: Source | None = None
) -> Live:
    """Load a model, or take what a caller has; llama.cpp runs a file where that is asked for.

    Raises:
        SourceError: it cannot be loaded.
    """
    from klcli.sources.hf.loading import open_model

    if isinstance(spec, GivenFunction):
        from klcli.sources.functions import open_function

        return open_function(spec, options)
    if options.engine == "transformers":
        return open_model(spec, options, beside)
    if isinstance(spec, GivenModel):
        raise SourceError("--engine llama.cpp runs .gguf files, not models in memory: give a path")
    from klcli.sources.llamacpp.model import open_gguf

    return open_gguf(spec, options)


def _open_recording(spec: str, options: LoadOptions) -> Source:
    from klcli.sources.recording.reader import open_recording

    return open_recording(spec, options)


def _open_base_file(spec: str, options: LoadOptions) -> Source:
    from klcli.sources.files.llamacpp import open_base_file

    return open_base_file(spec, options)


def _open_top_logprobs(spec: str, options: LoadOptions) -> Source:
    from klcli.sources.files.toplogprobs import open_top_logprobs

    return open_top_logprobs(spec, options)


def _open_arrays(spec: str, options: LoadOptions) -> Source:
    from klcli.sources.files.arrays import open_arrays

    return open_arrays(spec, options)


def _open_model(spec: str, options: LoadOptions, beside: Source | None) -> Source:
    return open_live(spec, options, beside)


def _take_logits(given: GivenLogits, options: LoadOptions) -> Source:
    from klcli.sources.files.memory import open_given

    return open_given(given, options)


_OPENERS: Mapping[SourceKind, Callable[[str, LoadOptions], Source]] = {
    "recording": _open_recording,
    "llama.cpp base file": _open_base_file,
    "top log-probabilities": _open_top_logprobs,
    "logit file": _open_arrays,
}
"""Who opens what; each is imported when it is needed, for models bring transformers with them."""
