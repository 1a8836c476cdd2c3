"""Logits, log-probabilities or probabilities saved by anything: .npy .npz .pt .safetensors.

Row i of a window is the distribution after reading its tokens 0…i, as a Hugging Face model returns
it, so its target is token i+1. ``tokens`` has as many entries as there are rows (then nothing is
known of the last row's target) or one more. Values stay on disk: only the rows of a batch are read.
"""

import contextlib
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klcli.choices import RowKind, ValueKind
from klcli.errors import SourceError
from klcli.sources.files.array_windows import check_tokens, windows_of
from klcli.sources.files.sums import find_wrong_sum
from klcli.sources.kinds import check_there
from klcli.sources.options import LoadOptions
from klcli.sources.rows import FILE_BYTES, block_rows, spans
from klcli.sources.stored import FileSource, Origin
from klcli.sources.vocabularies import load_vocabulary
from klcli.storage.files import OpenedFile
from klcli.storage.tensors import FileArray, TensorFile
from klcli.text.vocabulary import IntArray, Vocabulary
from klcli.text.windows import Window, WindowTable

VALUE_KINDS: tuple[ValueKind, ...] = get_args(ValueKind)
FLOATS = ("float16", "bfloat16", "float32", "float64")

READ = (*VALUE_KINDS, "tokens", "score_from")
"""Names of the arrays that are read; others may stand beside them."""

NPY_MAGIC = b"\x93NUMPY"
PICKLE_MAGIC = b"\x80"


class StoredArray(Protocol):
    """An array on disk, of which slices can be read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any) -> Any: ...


class ArraySource(FileSource):
    """A logit file, opened. Its windows are as long as its second axis."""

    def __init__(
        self,
        name: str,
        values: StoredArray,
        kind: ValueKind,
        *,
        file: Origin,
        windows: WindowTable,
        vocabulary: Vocabulary | None,
    ) -> None:
        super().__init__(file)
        self.name = name
        self.windows = windows
        self.vocabulary = vocabulary
        self.width = values.shape[-1]
        self._values = values
        self._kind = kind
        self.provenance = {
            "source": name,
            "kind": "logit file",
            "values": kind,
            "shape": list(values.shape),
            "vocabulary_width": self.width,
            "tokenizer": vocabulary.fingerprint if vocabulary else None,
        }

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator["ArrayRows"]:
        """The scored rows of each batch, read from the file a block at a time."""
        for batch in batches:
            yield ArrayRows(self.name, self._values, self._kind, batch)


class ArrayRows:
    """The scored rows of some windows of a logit file."""

    def __init__(
        self, name: str, values: StoredArray, kind: ValueKind, windows: Sequence[Window]
    ) -> None:
        self.kind: RowKind = "logits" if kind == "logits" else "log_probs"
        self.size = block_rows(values.shape[-1], 4, FILE_BYTES)
        self._name = name
        self._values = values
        self._values_are = kind
        self._windows = windows
        self._counts = [len(window.targets) for window in windows]

    def __len__(self) -> int:
        return sum(self._counts)

    def block(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``: a tensor (stop - start, vocabulary).

        Raises:
            SourceError: probabilities, or those behind log-probabilities, do not sum to 1.
        """
        found = spans(self._counts, start, stop)
        parts = [self._read(self._windows[n], first, last) for n, first, last in found]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _read(self, window: Window, first: int, last: int) -> Tensor:
        rows = slice(window.score_from + first, window.score_from + last)
        part = self._values[(window.number, rows) if len(self._values.shape) == 3 else rows]
        tensor = part if isinstance(part, Tensor) else torch.from_numpy(part)
        if self._values_are == "logits":
            return tensor
        wrong = find_wrong_sum(tensor.detach(), self._values_are)
        if wrong is not None:
            where = f"{self._name}: row {rows.start + wrong.row} of window {window.number}"
            raise SourceError(f"{where} {wrong.reason}")
        return tensor.double().log() if self._values_are == "probs" else tensor


def open_arrays(spec: str, options: LoadOptions) -> ArraySource:
    """Open a logit file.

    Raises:
        SourceError: it is missing, broken, holds a pickle, or its arrays do not fit together.
    """
    check_there(spec)
    file = OpenedFile(Path(spec))
    arrays = _open_arrays(file)
    values, kind = _find_values(spec, arrays, options)
    check_values(spec, values)
    if options.values == "auto":
        refuse_misnamed(spec, values, kind)
    return source_of(
        spec,
        values,
        kind,
        file=file,
        tokens=_find_tokens(spec, arrays, options),
        score_from=_check_score_from(spec, arrays.get("score_from"), values),
        options=options,
    )


def source_of(
    name: str,
    values: StoredArray,
    kind: ValueKind,
    *,
    file: Origin,
    tokens: IntArray | None,
    score_from: IntArray,
    options: LoadOptions,
) -> ArraySource:
    """A source of ``values``, checked already.

    Raises:
        SourceError: the tokens do not fit them.
    """
    if tokens is not None:
        tokens = check_tokens(name, tokens, tuple(values.shape))
    return ArraySource(
        name,
        values,
        kind,
        file=file,
        windows=windows_of(name, tokens, tuple(values.shape), score_from),
        vocabulary=load_vocabulary(options),
    )


def _open_arrays(file: OpenedFile) -> Mapping[str, StoredArray]:
    """The arrays of a file by name; the array of a ``.npy`` has the name ''."""
    openers: dict[str, Callable[[OpenedFile], Mapping[str, StoredArray]]] = {
        ".npy": _open_npy,
        ".npz": _open_npz,
        ".safetensors": _open_safetensors,
        ".pt": _open_torch,
    }
    with _reading(str(file.path)):
        return openers[file.path.suffix](file)


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """A broken file may break its reader in any way: name the file, and keep the cause."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError) or "Python objects" in reason:
            reason = (
                "it holds a pickle, which could run code; a pickle never runs here, save arrays"
            )
        raise SourceError(f"cannot read {what}: {reason}") from error


class _MappedArray:
    """An array of a mapped file, for what cannot be read plainly.

    To read beyond the end of a file that was cut ends the process, so it is looked at before every
    read. A file that is cut within the microseconds between the two still does.
    """

    def __init__(self, file: OpenedFile, array: Any) -> None:
        self.shape: tuple[int, ...] = tuple(array.shape)
        self._file = file
        self._array = array

    def __getitem__(self, key: Any) -> Any:
        self._file.check_unchanged()
        part = self._array[key]
        return part.clone() if isinstance(part, Tensor) else np.array(part)


def _open_npy(file: OpenedFile) -> dict[str, StoredArray]:
    return {"": _array_of_npy(file, file)}


def _array_of_npy(file: OpenedFile, given: OpenedFile) -> StoredArray:
    """A ``.npy`` file, perhaps out of the ``given`` one. Nothing else is taken for one."""
    magic = file.read(0, min(len(NPY_MAGIC), file.size))
    if magic[:1] == PICKLE_MAGIC:
        raise pickle.UnpicklingError
    if magic != NPY_MAGIC:
        raise ValueError("it is not a .npy file")
    mapped: Any = np.lib.format.open_memmap(file.path, mode="r")  # which reads the header only
    dtype: np.dtype[Any] = mapped.dtype
    if not mapped.flags.c_contiguous:
        return _MappedArray(given, mapped)

    def make(content: bytearray, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return np.frombuffer(content, dtype=dtype).reshape(shape)

    return FileArray(file, mapped.offset, mapped.shape, dtype.itemsize, make)


def _open_npz(file: OpenedFile) -> dict[str, StoredArray]:
    """What is read of it, each unpacked to a temporary file, which is gone when it is closed."""
    arrays = dict[str, StoredArray]()
    with zipfile.ZipFile(file.path) as archive:
        members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
        read = [one for name, one in members.items() if name in READ]
        _check_room(file.path, sum(one.file_size for one in read))
        for member in [one.filename for one in read]:
            with archive.open(member) as packed, tempfile.NamedTemporaryFile() as unpacked:
                shutil.copyfileobj(packed, unpacked, 2**20)
                unpacked.flush()
                name = member.removesuffix(".npy")
                arrays[name] = _array_of_npy(OpenedFile(Path(unpacked.name)), file)
        _check_names(str(file.path), members)
    return arrays


def _check_room(path: Path, needed: int) -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SourceError(
            f"{path} unpacks to {needed / 1e9:,.1f} GB, and {folder} has {free / 1e9:,.1f} GB free:"
            " set TMPDIR to a folder with more room, or save with numpy.save"
        )


def _open_safetensors(file: OpenedFile) -> dict[str, StoredArray]:
    tensors = TensorFile(file)
    return {name: tensors.array(name) for name in tensors}


def _open_torch(file: OpenedFile) -> dict[str, StoredArray]:
    path = file.path
    in_zip = zipfile.is_zipfile(path)  # the format since PyTorch 1.6; only that can be mapped
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip)
    if isinstance(content, Tensor):
        content = {"": content}
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise SourceError(f"{path} holds something other than a dictionary of tensors")
    plain = {n: _plain(f"{path}: {n or 'the tensor'}", value) for n, value in content.items()}
    return {n: _MappedArray(file, value) if in_zip else value for n, value in plain.items()}


def _plain(what: str, tensor: Tensor) -> Tensor:
    """A tensor whose numbers are all in the file.

    Raises:
        SourceError: it has none, or says that it has more than there are.
    """
    if tensor.is_meta:
        raise SourceError(f"{what} has a shape and no numbers (device meta): save it with them")
    if tensor.layout != torch.strided:
        raise SourceError(f"{what} is sparse: save it with .to_dense()")
    if tensor.is_quantized:
        raise SourceError(f"{what} is quantised: save it with .dequantize()")
    size, held = tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()
    if size > held:
        raise SourceError(
            f"{what} repeats {held:,} bytes until they are {size:,}: save it with .contiguous()"
        )
    return tensor.detach()


def _find_values(
    spec: str, arrays: Mapping[str, StoredArray], options: LoadOptions
) -> tuple[StoredArray, ValueKind]:
    _check_names(spec, arrays)
    named = [kind for kind in VALUE_KINDS if kind in arrays]
    if len(named) > 1:
        raise SourceError(f"{spec} holds {' and '.join(named)}: keep one of them in the file")
    if named:
        return arrays[named[0]], named[0] if options.values == "auto" else options.values
    return arrays[""], "logits" if options.values == "auto" else options.values


def _check_names(spec: str, names: Collection[str]) -> None:
    if not {*VALUE_KINDS, ""} & set(names):
        raise SourceError(
            f"{spec} holds no array named {', '.join(VALUE_KINDS[:-1])} or {VALUE_KINDS[-1]}, but "
            f"{', '.join(sorted(names)) or 'nothing'}"
        )


def check_values(spec: str, values: StoredArray) -> None:
    """Raise a SourceError where values have a shape or a type that logits do not have."""
    if len(values.shape) not in (2, 3) or 0 in values.shape:
        raise SourceError(
            f"{spec} holds an array of shape {tuple(values.shape)}; it must be (tokens, "
            "vocabulary) or (windows, positions, vocabulary)"
        )
    dtype = _first_rows(values).dtype
    if str(dtype).startswith(">f"):
        raise SourceError(f"{spec} holds big-endian numbers ({dtype}): save them little-endian")
    if str(dtype).removeprefix("torch.") not in FLOATS:
        raise SourceError(f"{spec} holds {dtype}, not floating-point numbers ({', '.join(FLOATS)})")


def _first_rows(values: StoredArray) -> Any:
    return values[(0, slice(0, 4)) if len(values.shape) == 3 else slice(0, 4)]


def refuse_misnamed(spec: str, values: StoredArray, kind: ValueKind) -> None:
    """Probabilities, or -ln p, taken for logits give plausible nonsense."""
    rows = _first_rows(values)
    first = rows.detach() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
    looks: dict[str, bool] = {
        "probabilities": kind != "probs" and find_wrong_sum(first, "probs") is None,
        "negative log-probabilities (-ln p)": bool((-first).amax(dim=-1).isfinite().all())
        and find_wrong_sum(-first, "log_probs") is None,
    }
    for what, it_does in looks.items():
        if it_does:
            raise SourceError(
                f"{spec}: the numbers look like {what}, not {kind}; say which with --values, or "
                "save ln p"
            )


def _find_tokens(
    spec: str, arrays: Mapping[str, StoredArray], options: LoadOptions
) -> IntArray | None:
    """Token ids: from ``--token-ids``, the file itself, or ``x.tokens.npy`` beside ``x.npy``."""
    beside = Path(spec).with_suffix(".tokens.npy")
    chosen = options.token_ids or (str(beside) if "" in arrays and beside.is_file() else None)
    if chosen is not None:
        with _reading(f"token ids from {chosen}"):
            ids = OpenedFile(Path(chosen))
            return _whole(_array_of_npy(ids, ids))
    return _whole(arrays["tokens"]) if "tokens" in arrays else None


def _whole(values: StoredArray) -> IntArray:
    whole = values[:] if values.shape else values[()]
    if isinstance(whole, Tensor) and whole.dtype == torch.bfloat16:  # which NumPy does not know
        raise ValueError("it has bfloat16 where whole numbers belong")
    array: IntArray = whole.numpy() if isinstance(whole, Tensor) else np.array(whole)
    return array


def _check_score_from(spec: str, score_from: StoredArray | None, values: StoredArray) -> IntArray:
    windows = values.shape[0] if len(values.shape) == 3 else 1
    if score_from is None:
        return np.zeros(windows, dtype=np.int64)
    first = _whole(score_from)
    fits = first.dtype.kind in "iu" and first.size in (1, windows)
    if not fits or first.min() < 0 or first.max() >= values.shape[-2]:
        raise SourceError(
            f"{spec}: score_from must be a row (0 to {values.shape[-2] - 1}), one for each of "
            f"{windows} windows"
        )
    return np.broadcast_to(first.reshape(-1).astype(np.int64), (windows,))
