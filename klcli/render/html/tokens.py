"""The tokens of a report as a page holds them: packed, and read again by ``page.js``.

One block of bytes, compressed with gzip and written in base64: the length of a header in JSON (4
bytes), the header, and the columns, each from a multiple of 4 bytes on; whole numbers are little
endian. What takes room are the ten most probable tokens of both models, 20 ids and 20 probabilities
a token. A text stands once, in the list ``texts``, and everything else names it by its place there,
in 16 bits where they suffice; the place behind the last text stands for a token that is not known.
Probabilities are 16-bit codes of their logarithms (see ``_codes``), the scores are float32.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.judge.report import Tokens
from klcli.measure.scores import SIDES
from klcli.render.text import visible

Array = npt.NDArray[Any]

STEPS = 2000
"""Codes of a probability to each nat: it is good to 1/4000 of itself, and 6e-15 is the least."""
CONTEXT = 64
"""Tokens before the first scored one of a document, at most, that are shown with it."""

_COMPARED = (
    "kl", "nll_reference", "nll_candidate", "delta_p", "rank_reference", "rank_candidate",
)  # fmt: skip
_SINGLE = ("nll", "entropy", "rank")


def pack(tokens: Tokens) -> str:
    """Every token, with what was measured of it and what the models expected, as base64."""
    scores = tokens.scores
    entries, documents = _entries(tokens)
    ids = {"token": entries.pop("token")} | {
        f"ids_{side}": some for side, some in _expected(tokens, "ids").items()
    }
    texts, places = _texts(tokens, ids)
    columns = entries | places
    for side, some in _expected(tokens, "p").items():
        columns[f"p_{side}"] = _codes(some)
    for name in _COMPARED if scores.paired else _SINGLE:
        column = scores[name]
        columns[name] = column.astype("<f4" if column.dtype.kind == "f" else "<i4")
    columns["flagged"] = tokens.flagged.astype(np.uint8)
    header = {
        "paired": scores.paired,
        "rows": len(scores),
        "texts": texts,
        "documents": documents,
        "steps": STEPS,
    }
    return base64.b64encode(gzip.compress(_joined(header, columns), 6, mtime=0)).decode("ascii")


def has_every_top(tokens: Tokens) -> bool:
    """Whether what the models expected is known of each scored token."""
    return len(tokens.alternatives.index) == len(tokens.scores)


def _entries(tokens: Tokens) -> tuple[dict[str, Array], list[dict[str, Any]]]:
    """The tokens of the text, scored or not, one after the other, and the documents among them.

    Of a document in which only a part was scored, that part and some context are shown.
    """
    position = tokens.scores["position"]
    ends = np.searchsorted(tokens.scores["document"], np.arange(len(tokens.documents) + 1))
    token, scored, documents = [], [], []
    first = 0
    for number, name in enumerate(tokens.documents):
        positions = position[ends[number] : ends[number + 1]]
        if not len(positions):
            continue
        start, stop = max(int(positions[0]) - CONTEXT, 0), int(positions[-1]) + 1
        token.append(tokens.ids[number][start:stop])
        scored.append(np.zeros(stop - start, dtype=np.uint8))
        scored[-1][positions - start] = 1
        shown = visible(name, keep_spaces=True)
        documents.append({"name": shown, "first": first, "start": start, "stop": stop})
        first += stop - start
    return {"token": np.concatenate(token), "scored": np.concatenate(scored)}, documents


def _expected(tokens: Tokens, what: str) -> dict[str, Array]:
    """Ids (``ids``) or probabilities (``p``) of the most probable tokens, (scored, k) a model.

    Where they were not kept the first choice is there with its probability; -1 fills the rest.
    """
    scores, kept = tokens.scores, tokens.alternatives
    if not scores.paired:
        return {"model": scores["top1" if what == "ids" else "confidence"][:, None]}
    found = {}
    for side in SIDES:
        some = (kept.ids if what == "ids" else kept.probabilities).get(side)
        first = scores[f"top1_{side}" if what == "ids" else f"confidence_{side}"]
        width = 1 if some is None else max(some.shape[1], 1)
        whole = np.full((len(scores), width), -1, dtype=first.dtype)
        whole[:, 0] = first
        if some is not None:
            whole[kept.index] = some
        found[side] = whole
    return found


def _texts(tokens: Tokens, ids: Mapping[str, Array]) -> tuple[list[str], dict[str, Array]]:
    """The texts of all tokens that are named, and the columns with their places among them."""
    used = np.unique(np.concatenate([np.unique(some) for some in ids.values()]))
    used = used[[int(one) in tokens.texts and one >= 0 for one in used]]
    kind = "<u2" if len(used) < 2**16 else "<u4"
    places = {}
    for name, some in ids.items():
        place = np.minimum(np.searchsorted(used, some), max(len(used) - 1, 0))
        known = used[place] == some if len(used) else np.zeros(some.shape, dtype=np.bool_)
        places[name] = np.where(known, place, len(used)).astype(kind)
    return [_shown(tokens.texts[one], one) for one in used.tolist()], places


def _shown(text: str, token_id: int) -> str:
    """A text that can be seen and does no harm, its lines broken where they end."""
    if not text:
        return f"⟨{token_id}⟩"
    return "↵\n".join(visible(line, keep_spaces=True) for line in text.split("\n"))


def _codes(probabilities: Array) -> Array:
    """A probability p as 1 - 2000 ln p, rounded; 0 is none, or one that is not known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log(probabilities.astype(np.float64))
    codes = np.rint(1 - STEPS * np.minimum(logarithms, 0.0))
    return np.where(codes < 2**16, codes, 0).astype("<u2")


def _joined(header: Mapping[str, Any], columns: Mapping[str, Array]) -> bytes:
    places, parts, length = {}, [], 0
    for name, column in columns.items():
        content = _bytes(column)
        places[name] = {
            "type": column.dtype.str.lstrip("<|"),
            "start": length,
            "count": column.size,
            "width": column.shape[1] if column.ndim > 1 else 1,
        }
        parts.append(content)
        length += len(content)
    described = json.dumps({**header, "columns": places}).encode()
    described += b" " * (-len(described) % 4)
    return b"".join([len(described).to_bytes(4, "little"), described, *parts])


def _bytes(column: Array) -> bytes:
    """The bytes of a column, filled up to a multiple of 4."""
    content = np.ascontiguousarray(column).tobytes()
    return content + b"\0" * (-len(content) % 4)
