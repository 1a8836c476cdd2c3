"""Safetensors files, read plainly, so that memory does not grow with what is read."""

import json
import struct
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from klcli.errors import SourceError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I32": torch.int32,
}


class TensorFile:
    """A safetensors file, read plainly: the pages of a mapped file would count as memory.

    The format is 8 bytes with the length of a JSON header, the header, and the numbers of each
    tensor at the offsets that the header gives.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        (length,) = struct.unpack("<Q", self._file.read(8))
        self._header: Mapping[str, Any] = json.loads(self._file.read(length))
        self._data = 8 + length

    def read(self, name: str, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of a tensor."""
        entry = self._header.get(name)
        if entry is None:
            raise SourceError(f"{self._file.name} has no tensor {name}: make it again")
        rows, *rest = entry["shape"]
        begin, end = entry["data_offsets"]
        size = (end - begin) // rows
        content = bytearray((last - first) * size)
        self._file.seek(self._data + begin + first * size)
        self._file.readinto(content)
        return torch.frombuffer(content, dtype=_DTYPES[entry["dtype"]]).view(last - first, *rest)


def open_tensors(path: Path) -> Any:
    """Open a safetensors file, tensors still on disk.

    Raises:
        SourceError: it is not a safetensors file.
    """
    try:
        opener: Any = safetensors.safe_open(str(path), framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    return opener
