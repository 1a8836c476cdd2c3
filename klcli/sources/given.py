"""Objects that Python callers give in the place of paths: loaded models, and logits in memory."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from klcli.errors import UsageError


class SupportsShape(Protocol):
    """A NumPy array, or a torch tensor."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class GivenModel:
    """A loaded transformers model, and its tokenizer. It is read as it is, and left so."""

    model: Any
    tokenizer: Any

    def __str__(self) -> str:
        return str(getattr(self.model, "name_or_path", "") or type(self.model).__name__)


@dataclass(frozen=True, slots=True, eq=False)
class GivenFunction:
    """A function of the ids of a text, (n,), that returns logits, (n, vocabulary).

    The tokenizer is one of transformers, or names a model that has it.
    """

    predict: Callable[..., Any]
    tokenizer: Any

    def __str__(self) -> str:
        return str(getattr(self.predict, "__name__", "") or type(self.predict).__name__)


@dataclass(frozen=True, slots=True, eq=False)
class GivenLogits:
    """Logits in memory, (tokens, vocabulary) or (windows, tokens, vocabulary), and the token ids.

    A NumPy array or a torch tensor; ``token_ids`` may be None, as in a logit file.
    """

    values: Any
    token_ids: Any

    def __str__(self) -> str:
        return f"logits {'×'.join(map(str, self.values.shape))}"


Spec = str | GivenModel | GivenFunction | GivenLogits
"""What is compared: a path or a name of the Hub, or an object."""


def spec_of(given: object) -> Spec:
    """What a caller gave: a path, a model, a function or logits, each with what belongs to it.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    first, second = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if hasattr(first, "get_output_embeddings") and second is not None:
        return GivenModel(first, second)
    if hasattr(first, "shape") and hasattr(first, "dtype"):
        return GivenLogits(first, second)
    if callable(first) and second is not None:
        named = os.fspath(second) if isinstance(second, os.PathLike) else second
        return GivenFunction(first, named)
    kind = type(first).__name__
    raise UsageError(
        f"a {kind} is neither a path nor a model: give a path, (model, tokenizer), (function, "
        "tokenizer), an array of logits, or (logits, token_ids)"
    )


def paths_of(specs: tuple[Spec, ...]) -> list[str]:
    """Those that are paths."""
    return [spec for spec in specs if isinstance(spec, str)]
