"""What ``rank`` is asked for: a comparison of each candidate with the same reference."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from klcli.errors import UsageError
from klcli.hooks import Hooks
from klcli.keywords import AnyPath, CompareOptions, Corpora, Model, RankOptions
from klcli.request import Measurement, check_known, comparison
from klcli.sources.given import spec_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """A comparison for each candidate. ``run`` is the folder that keeps them all.

    ``in_order`` leaves the candidates in natural order.

    Raises:
        UsageError: there is no candidate, or one is named twice.
    """

    pairs: tuple[Measurement, ...]
    run: str | None
    in_order: bool

    def __post_init__(self) -> None:
        if not self.pairs:
            raise UsageError("name at least one CANDIDATE beside the REFERENCE")
        names = [str(pair.specs[1]) for pair in self.pairs if isinstance(pair.specs[1], str)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"{twice} is named twice: name each candidate once")

    @property
    def hooks(self) -> Hooks:
        """What the caller wants to hear."""
        return self.pairs[0].hooks


def ranking(
    reference: Model,
    candidates: Sequence[Model],
    corpora: Corpora,
    options: RankOptions,
    *,
    run: AnyPath | None,
    in_order: bool,
) -> RankRequest:
    """The request of ``rank``.

    Raises:
        UsageError: an option is wrong whatever the input holds, or there is no candidate.
    """
    check_known(options, RankOptions)
    folder = None if run is None else os.fspath(run)
    pairs = []
    for candidate in candidates:
        kept = {} if folder is None else {"run": _run_of(candidate, folder)}
        own = cast("CompareOptions", {**options, **kept})
        pairs.append(comparison(reference, candidate, corpora, own))
    return RankRequest(pairs=tuple(pairs), run=folder, in_order=in_order)


def _run_of(candidate: Model, folder: str) -> str:
    """Where the run of a candidate is kept: under its base name, and what tells it apart."""
    spec = str(spec_of(candidate))
    base = re.sub(r"[^\w.-]+", "-", os.path.basename(spec.rstrip("/\\")))[:80]
    return os.path.join(folder, f"{base}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}.run")
