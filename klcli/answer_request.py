"""What ``answer`` is asked for: which model answers which prompts, and how."""

import math
import os
from dataclasses import dataclass

from klcli.choices import DEFAULT_NEW_TOKENS, at_least, check_fields
from klcli.errors import UsageError
from klcli.hooks import Hooks
from klcli.keywords import AnswerOptions, AnyPath, Corpora, Model
from klcli.request import as_corpora, check_known, files_among, own_options, pick
from klcli.sources.given import GivenModel, paths_of, spec_of
from klcli.sources.options import LoadOptions
from klcli.storage.places import check_apart
from klcli.text.corpus import Texts
from klcli.text.scope import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """A model, prompts, and where its answers go.

    Raises:
        UsageError: a number is out of range, or the output is an input.
    """

    model: str | GivenModel
    load: LoadOptions
    corpora: tuple[str | Texts, ...]
    fields: Fields
    output: str
    hooks: Hooks
    max_new_tokens: int = at_least(1, DEFAULT_NEW_TOKENS)
    temperature: float = 0.0
    seed: int = at_least(0, 0)
    limit: int | None = at_least(1)
    batch_tokens: int | None = at_least(1)
    chat_template: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"--temperature {self.temperature:g}: give 0 or more")
        model = paths_of((self.model,))
        check_apart("--output", self.output, [*model, *files_among(self.corpora), *self.load.paths])


def answering(model: Model, prompts: Corpora, output: AnyPath, options: AnswerOptions) -> Answering:
    """The request of ``answer``.

    Raises:
        UsageError: an option is wrong whatever the input holds.
    """
    check_known(options, AnswerOptions)
    spec = spec_of(model)
    if not isinstance(spec, str | GivenModel):
        raise UsageError(f"{spec} cannot answer: give a model")
    return Answering(
        model=spec,
        load=pick(LoadOptions, options),
        corpora=as_corpora(prompts),
        fields=pick(Fields, options),
        output=os.fspath(output),
        hooks=pick(Hooks, options),
        **own_options(Answering, options),
    )
