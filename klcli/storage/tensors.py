"""Arrays in files, read plainly and exactly, so that memory does not grow with what is read."""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from klcli.errors import SourceError
from klcli.storage.files import OpenedFile

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}


class FileArray:
    """An array in a file, its last axis running fastest, of which rows are read.

    Args:
        file: where it is.
        offset: at which byte it begins.
        shape: its shape.
        itemsize: the bytes of a number.
        make: makes an array of bytes and a shape.
    """

    def __init__(
        self,
        file: OpenedFile,
        offset: int,
        shape: tuple[int, ...],
        itemsize: int,
        make: Callable[[bytearray, tuple[int, ...]], Any],
    ) -> None:
        self.shape = shape
        self._file = file
        self._offset = offset
        self._itemsize = itemsize
        self._make = make

    def __getitem__(self, key: Any) -> Any:
        """Some rows: a slice, behind the places on the axes before; ``()`` is all of a number."""
        *places, rows = (key if isinstance(key, tuple) else (key,)) or (slice(None),)
        shape, start = self.shape or (1,), 0
        for place in places:
            start, shape = start + place * math.prod(shape[1:]), shape[1:]
        first, last, _ = rows.indices(shape[0])
        row = math.prod(shape[1:])
        content = self._file.read(
            self._offset + (start + first * row) * self._itemsize,
            (last - first) * row * self._itemsize,
        )
        return self._make(content, (last - first, *shape[1:]) if self.shape else ())


class TensorFile:
    """A safetensors file.

    The format is 8 bytes with the length of a JSON header, the header, and the numbers of each
    tensor at the offsets that the header gives.

    Raises:
        SourceError: it is not a safetensors file.
    """

    def __init__(self, file: OpenedFile) -> None:
        self.file = file
        _check_format(file.path)
        (length,) = struct.unpack("<Q", file.read(0, 8))
        self._header: Mapping[str, Any] = json.loads(file.read(8, length))
        self._data = 8 + length

    def __iter__(self) -> Iterator[str]:
        """The names of its tensors."""
        return (name for name in self._header if name != "__metadata__")

    def array(self, name: str) -> FileArray:
        """A tensor, still on the disk.

        Raises:
            SourceError: there is none of that name, or its numbers are of an unknown kind.
        """
        entry = self._header.get(name)
        if entry is None:
            raise SourceError(f"{self.file.path} has no tensor {name}: make it again")
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise SourceError(
                f"{self.file.path} holds {name} as {entry['dtype']}, which is unknown"
            )

        def make(content: bytearray, shape: tuple[int, ...]) -> Tensor:
            if not content:
                return torch.empty(shape, dtype=dtype)
            return torch.frombuffer(content, dtype=dtype).view(shape)

        offset = self._data + entry["data_offsets"][0]
        return FileArray(self.file, offset, tuple(entry["shape"]), dtype.itemsize, make)

    def read(self, name: str, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of a tensor."""
        rows: Tensor = self.array(name)[first:last]
        return rows


def _check_format(path: Path) -> None:
    try:
        with safetensors.safe_open(str(path), framework="pt"):
            pass
    except (OSError, safetensors.SafetensorError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
