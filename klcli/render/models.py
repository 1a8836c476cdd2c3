"""A model in a line: its name, and how it ran."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from klcli.render.text import keep_end, visible

_LABEL = 40
"""Cells of the longest label."""

_TELLING = ("revision", "dtype", "adapter", "attention", "device")
"""What may tell two models from the same path apart."""

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def name_of(model: Mapping[str, Any]) -> str:
    """The name that a user gave, and the revision."""
    revision = model.get("revision")
    return visible(
        f"{model['source']}@{revision}" if revision else str(model["source"]), keep_spaces=True
    )


class Names(NamedTuple):
    """What tells models apart, by role, and what they have in common: nothing if their names do."""

    common: str
    each: Mapping[str, str]


def short_names(models: Mapping[str, Mapping[str, Any]]) -> Names:
    """The base name of each model, or as much more of its path as tells them apart.

    Of one path twice the revision, number format and so on tell them apart, or else the role.
    """
    paths = {role: _parts(str(model["source"])) for role, model in models.items()}
    for depth in range(1, max(map(len, paths.values())) + 1):
        names = {role: "/".join(parts[-depth:]) for role, parts in paths.items()}
        if len(set(names.values())) == len(names):
            return Names("", _shown(names))
    common = visible(next(iter(paths.values()))[-1], keep_spaces=True)
    for key in _TELLING:
        values = {role: _parts(str(model.get(key) or "none"))[-1] for role, model in models.items()}
        if len(set(values.values())) == len(values):
            return Names(common, _shown(values))
    return Names(common, {role: role for role in models})


def base_names(sources: Sequence[str]) -> list[str]:
    """The base name of each source, or as much more of the paths as tells all of them apart."""
    paths = [_parts(source) for source in sources]
    names: list[str] = []
    for depth in range(1, max(map(len, paths), default=0) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return [visible(name, keep_spaces=True) for name in names]


def _parts(path: str) -> list[str]:
    """The parts of a path; an address is one part."""
    return [path] if "://" in path else re.split(r"[/\\]", path.rstrip("/\\") or path)


def _shown(names: Mapping[str, str]) -> dict[str, str]:
    return {role: visible(name, keep_spaces=True) for role, name in names.items()}


def labels_of(models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A name for each model that tells it from the other, cut where it is long."""
    common, each = short_names(models)
    names = {role: f"{common} ({name})" if common else name for role, name in each.items()}
    return {role: keep_end(name, _LABEL) for role, name in names.items()}


def details_of(model: Mapping[str, Any]) -> str:
    """Number format, device, size and quantisation of a model; of a file what it holds."""
    keys = ("dtype", "device") if model.get("dtype") else ("kind", "values")
    known = [str(model[key]) for key in keys if model.get(key) is not None]
    return visible(", ".join([*known, *_size(model), *_quantisation(model)]), keep_spaces=True)


def _size(model: Mapping[str, Any]) -> Iterator[str]:
    parameters, bits = model.get("parameters"), model.get("bits_per_weight")
    if parameters is None:
        return
    is_packed = bits is not None and model.get("quantization")
    at = f" at {bits:.3g} bits" if is_packed else ""
    yield f"{_short(parameters)} parameters{at}"


def _short(n: int) -> str:
    """A large number in three digits and a letter."""
    for unit, letter in _UNITS:
        if n >= unit:
            return f"{n / unit:.3g} {letter}"
    return str(n)


def _quantisation(model: Mapping[str, Any]) -> Iterator[str]:
    """How it is quantised, and what of that runs here; nothing of a model that is not."""
    given = model.get("quantization")
    if not given:
        return
    if given["method"] == "gguf":
        yield _of_gguf(given, model)
        return
    kind = given.get("type")
    yield f"{given['method']} {kind}" if kind else str(given["method"])
    if given.get("bits") is not None:
        groups = given.get("group_size")
        yield f"{given['bits']}-bit weights" + (f" in groups of {groups}" if groups else "")
    if given.get("dequantised"):
        yield "dequantised on loading"
    yield from _activations(given)
    if given.get("head"):
        yield "quantised head"


def _of_gguf(given: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    types = given.get("types") or {}
    most = max(types, key=lambda name: (not name.startswith("F"), types[name]), default="GGUF")
    return (
        f"{most} dequantised to {model['dtype']} (llama.cpp also rounds activations), "
        f"head {given.get('head_type')}"
    )


def _activations(given: Mapping[str, Any]) -> Iterator[str]:
    stated, runs = given.get("activations"), given.get("activations_run")
    if stated is not None:
        yield f"{stated}-bit activations" + (", not rounded here" if runs is False else "")
    elif runs:
        yield "rounded activations"
