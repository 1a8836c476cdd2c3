"""The signature: one line that names what was measured. Equal signatures, comparable numbers."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from klcli.align.alignment import Alignment
from klcli.measure.shard import WHOLE, Shard
from klcli.sources.conditions import Conditions

_WHERE_GIVEN = (
    "pll", "mask_every", "score", "score_reasoning", "chat_template", "answers", "max_tokens",
    "seed",
)  # fmt: skip
"""What a protocol has only where it applies."""


def signature(
    alignment: Alignment, conditions: Conditions, tokens: int, shard: Shard = WHOLE
) -> str:
    """The signature of a run, or of a shard of one, that scored so many tokens."""
    short = {"reference": "ref", "candidate": "cand", "model": "model"}
    sides = [f"{short[role]}:{_model(model)}" for role, model in conditions.models.items()]
    corpora = "+".join(corpus.sha256[:16] for corpus in alignment.table.corpora) or _hash_of(
        alignment
    )
    protocol = alignment.table.protocol
    named = {
        "protocol": protocol["name"],
        "context": protocol["context"],
        "stride": protocol["stride"],
        "score_from": protocol["score_from"],
        "bos": protocol["bos"],
        "special": protocol["special_tokens"],
        "documents": protocol["documents"],
        **{name: protocol[name] for name in _WHERE_GIVEN if name in protocol},
    }
    parts = [f"{name}:{'-' if value is None else value}" for name, value in named.items()]
    begin = [f"klcli:{conditions.environment['klcli']}", *sides, f"corpus:{corpora}"]
    end = [f"tokens:{tokens}"] + ([] if shard == WHOLE else [f"shard:{shard}"])
    return "|".join([*begin, *parts, *end])


def _model(provenance: Mapping[str, Any]) -> str:
    revision, dtype = provenance.get("revision"), provenance.get("dtype")
    at = f"@{revision}" if revision else ""
    return f"{provenance['source']}{at}{f':{dtype}' if dtype else ''}"


def _hash_of(alignment: Alignment) -> str:
    """Where a file brought the tokens: a hash of them in the place of the text's."""
    digest = hashlib.sha256()
    for window in alignment.table.windows:
        digest.update(window.inputs.astype(np.int64).tobytes())
        digest.update(window.targets.astype(np.int64).tobytes())
    return digest.hexdigest()[:16]
