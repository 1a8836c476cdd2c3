"""What a page holds of its tokens, read again as its script reads it."""

import base64
import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def unpack(packed: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header, and the columns as they are in it."""
    content = gzip.decompress(base64.b64decode(packed))
    start = 4 + int.from_bytes(content[:4], "little")
    header = json.loads(content[4:start])
    return header, dict(_columns(header.pop("columns"), content[start:]))


def _columns(places: Mapping[str, Any], content: bytes) -> Iterator[tuple[str, Array]]:
    for name, place in places.items():
        kind = np.dtype(place["type"])
        column = np.frombuffer(content, kind, place["count"], place["start"])
        yield name, column.reshape(-1, place["width"]) if place["width"] > 1 else column
