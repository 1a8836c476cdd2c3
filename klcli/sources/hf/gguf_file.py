"""A GGUF file, or all parts of one: read once, and handed to transformers whenever it reads it."""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import modeling_gguf_pytorch_utils as unpacking

from klcli.errors import SourceError, gist
from klcli.sources.hf.checkpoint import Checkpoint
from klcli.sources.hf.intact import check_pointer

PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """What a file says of its model.

    ``stated`` has the values of the keys that begin with the architecture, without it.
    """

    spec: str
    architecture: str
    stated: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def values(self, name: str) -> list[float] | None:
        """The numbers of a tensor that is not quantised, None if there is no such tensor."""
        return None if (found := self.tensors.get(name)) is None else found.data.tolist()


@contextlib.contextmanager
def gguf_file(spec: str, checkpoint: Checkpoint) -> Iterator[GGUFFile | None]:
    """The GGUF file of a checkpoint, None where it is none.

    transformers reads such a file anew for the config, the weights and the tokenizer, and that
    takes seconds each time. Within this context it is given what was read once, of all parts.

    Raises:
        SourceError: it is damaged, or a part is missing.
    """
    if not checkpoint.is_gguf:
        yield None
        return
    reader = _joined(Path(checkpoint.place) / checkpoint.arguments["gguf_file"])
    with _reading_no_more(reader):
        yield _described(spec, reader)


def _described(spec: str, reader: Any) -> GGUFFile:
    if (named := reader.fields.get("general.architecture")) is None:
        raise SourceError(f"{spec} does not say which architecture its model has")
    architecture = str(named.contents())
    start = f"{architecture}."
    stated = {
        key.removeprefix(start): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(start)
    }
    return GGUFFile(spec, architecture, stated, {one.name: one for one in reader.tensors})


def _joined(path: Path) -> Any:
    """A reader of a file and of the other parts it was split into.

    Raises:
        SourceError: it is not the first part, or another part is missing.
    """
    reader = _read(path)
    count = _number(reader, "split.count", 1)
    if count < 2:
        return reader
    if not (named := PART.fullmatch(path.name)) or int(named[3]) != count:
        raise SourceError(
            f"{path} is one of {count} parts of a model, and its name does not tell where the "
            f"others are: rename them to NAME-00001-of-{count:05}.gguf and so on"
        )
    paths = [path.with_name(f"{named[1]}-{i + 1:05}-of-{named[3]}.gguf") for i in range(count)]
    if path != paths[0]:
        raise SourceError(f"{path} is part {int(named[2])} of {count}: name the first, {paths[0]}")
    if missing := [one for one in paths if not one.is_file()]:
        raise SourceError(
            f"{path} is part 1 of {count}, and {len(missing)} are missing, first {missing[0]}: "
            "put all parts into one folder"
        )
    for part in paths[1:]:
        reader.tensors.extend(_read(part).tensors)
    _check_parts(path, reader, count)
    return reader


def _check_parts(path: Path, reader: Any, count: int) -> None:
    """Raise a SourceError where parts are not those of one model, or cannot be read as one."""
    expected = _number(reader, "split.tensors.count", len(reader.tensors))
    found = len({one.name for one in reader.tensors})
    if not expected == found == len(reader.tensors):
        raise SourceError(
            f"the {count} parts of {path} hold {found} tensors, and its model has {expected}: "
            "they are parts of different files; copy or download them again"
        )
    if _reads_by_itself(str(reader.fields["general.architecture"].contents())):
        merged = PART.sub(r"\1.gguf", path.name)
        raise SourceError(
            f"{path} is part 1 of {count}, and transformers reads this architecture from a "
            f"single file: llama-gguf-split --merge {path} {path.with_name(merged)}"
        )


def _reads_by_itself(architecture: str) -> bool:
    """Whether transformers has a reader of its own for it, which knows nothing of parts."""
    try:
        from transformers.integrations.gguf import is_gguf_arch_supported
    except ImportError:
        return False
    return bool(is_gguf_arch_supported(architecture))


def _number(reader: Any, key: str, otherwise: int) -> int:
    return int(reader.fields[key].contents()) if key in reader.fields else otherwise


def _read(path: Path) -> Any:
    """What the package ``gguf`` reads of one file.

    Raises:
        SourceError: the file is damaged, or there is no such package.
    """
    try:
        import gguf
    except ImportError as error:
        raise SourceError(
            f"reading {path} needs two packages: pip install 'klcli[gguf]'"
        ) from error

    class WholeReader(gguf.GGUFReader):  # type: ignore[misc]
        """Knows where the file ends, and looks at its bytes without numpy's slow memmap."""

        data: Any

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            self.data = np.asarray(self.data)
            if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise EOFError(f"it ends after {len(self.data):,} bytes, which is too early")
            return super()._get(offset, dtype, count, override_order)

    check_pointer(path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SourceError(f"cannot load {path}: it is not a GGUF file")
    try:
        return WholeReader(path)
    except (ArithmeticError, EOFError, LookupError, ValueError) as error:
        raise SourceError(
            f"cannot load {path}: it is cut short or damaged ({gist(error)}); copy or download it "
            "again"
        ) from error


@contextlib.contextmanager
def _reading_no_more(reader: Any) -> Iterator[None]:
    """Give transformers a reader whenever it makes one, and the names of tensors only once."""
    import gguf

    names = functools.cache(gguf.get_tensor_name_map)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(gguf, "GGUFReader", lambda *_, **__: reader))
        stack.enter_context(_replaced(gguf, "get_tensor_name_map", names))
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, by: Any) -> Iterator[None]:
    own = getattr(module, name)
    setattr(module, name, by)
    try:
        yield
    finally:
        setattr(module, name, own)


def left_over(file: GGUFFile, model: Any) -> list[str]:
    """The tensors of a file that its model was not given, less those that transformers reports."""
    if _reads_by_itself(file.architecture):
        return []
    processor = unpacking.TENSOR_PROCESSORS.get(file.architecture, unpacking.TensorProcessor)
    read = unpacking.get_gguf_hf_weights_map(model, processor(config={}))
    return [
        name for name in file.tensors if name not in read and not _is_read_otherwise(name, read)
    ]


def _is_read_otherwise(name: str, read: Mapping[str, str]) -> bool:
    """Whether a tensor is part of a larger one, or makes the rotary embedding by the config."""
    return name.removesuffix(".weight") in read or "rope_f" in name or "rot_embd" in name
