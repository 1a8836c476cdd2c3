"""A model that the caller has loaded, in the place of one that klcli loads."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from klcli.choices import Task
from klcli.errors import SourceError
from klcli.sources.given import GivenModel, Spec
from klcli.sources.hf.checkpoint import loading
from klcli.sources.hf.classes import task_of
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.provenance import describe
from klcli.sources.hf.tasks import SOURCES
from klcli.sources.hf.tokenizer import vocabulary_of
from klcli.sources.options import LoadOptions


def open_given(given: GivenModel, options: LoadOptions) -> ModelSource:
    """A source that reads with the caller's model, in evaluation mode from now on.

    Raises:
        SourceError: it is not a language model, or its tokenizer does not serve.
    """
    name, model = str(given), given.model
    vocabulary = vocabulary_of(given.tokenizer, name)
    with loading(name):
        model.eval()
        task = options.task if options.task != "auto" else _task_of(name, model)
        source = SOURCES[task](name, model, vocabulary, batch_tokens=options.batch_tokens)
    source.provenance |= describe(model, None, None)
    return source


def _task_of(name: str, model: Any) -> Task:
    if model.get_output_embeddings() is None:
        raise SourceError(f"{name} has no output head: it does not predict tokens")
    if "MaskedLM" in type(model).__name__:
        return "masked"
    return "causal" if "CausalLM" in type(model).__name__ else task_of(name, model.config)


@contextlib.contextmanager
def as_found(specs: Sequence[Spec]) -> Iterator[None]:
    """Leave the modules of given models in the mode they are in: training, or evaluation."""
    modules = [
        module for spec in specs if isinstance(spec, GivenModel) for module in spec.model.modules()
    ]
    modes = [module.training for module in modules]
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
