"""Under which conditions sources predicted: what they are, and the software that ran them."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import klcli
from klcli.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The provenance of each model by its role, and the environment, as the report states them."""

    models: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]


def conditions_of(sources: Sequence[Source], command_line: str | None = None) -> Conditions:
    """The conditions of one model, or of a reference and a candidate.

    ``command_line`` is what a user typed; None where klcli was called as a function.
    """
    typed = {} if command_line is None else {"command_line": command_line}
    roles = ("reference", "candidate") if len(sources) == 2 else ("model",)
    return Conditions(
        models={role: s.provenance for role, s in zip(roles, sources, strict=True)},
        environment=software() | {"device": str(sources[0].device)} | typed,
    )


def software() -> dict[str, Any]:
    """The versions of what computes, the machine, and how many threads there are."""
    import torch  # here, for a saved run is shown without it

    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    return {
        "klcli": klcli.__version__,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
