"""What ``help()`` shows of the public functions: every keyword argument, with its default."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

from klcli.answer_request import Answering
from klcli.hooks import Hooks
from klcli.request import Keeping, Limits, Measurement, Stopping
from klcli.sources.options import LoadOptions
from klcli.text.scope import Fields, Scope

Function = TypeVar("Function", bound=Callable[..., Any])

_REQUESTS = (Answering, Measurement, Fields, Scope, LoadOptions, Limits, Stopping, Keeping, Hooks)
_DEFAULTS = {
    one.name: one.default
    for request in _REQUESTS
    for one in fields(request)
    if one.default is not MISSING
}
"""The default of each keyword argument. What is for one side has none: that for both stands."""


def with_keywords(options: type) -> Callable[[Function], Function]:
    """Give a function that takes ``**options`` the signature that a ``TypedDict`` says.

    Its docstring lists them too.
    """
    keywords = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name), annotation=kind
        )
        for name, kind in get_type_hints(options).items()
    ]

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        named = [one for one in own.parameters.values() if one.kind != one.VAR_KEYWORD]
        signature = own.replace(parameters=[*named, *keywords])
        setattr(function, "__signature__", signature)  # noqa: B010
        function.__doc__ = f"{inspect.getdoc(function)}\n\n{_listed(keywords)}"
        return function

    return decorate


def _listed(keywords: list[inspect.Parameter]) -> str:
    lines = "\n".join(f"    {one.name} = {one.default!r}" for one in keywords)
    return f"Options, as `klcli --help-all` describes them:\n{lines}\n"
