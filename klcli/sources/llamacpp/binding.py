"""llama.cpp, as far as klcli calls it, by the low-level API of llama-cpp-python.

That binding has the structures of the llama.cpp that it was built with; to have the build that one
serves with, for a GPU say, build it from the same source.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.errors import SourceError, gist
from klcli.sources.options import LoadOptions
from klcli.text.vocabulary import IntArray

FLASH = {"auto": -1, "off": 0, "on": 1}
"""``llama_flash_attn_type`` of each choice."""


@cache
def library() -> Any:
    """The C functions. What llama.cpp prints while it works goes nowhere.

    Raises:
        SourceError: the library of the binding cannot be loaded.
    """
    try:
        from llama_cpp import llama_cpp as low
    except (ImportError, OSError, RuntimeError) as error:
        raise SourceError(f"llama.cpp cannot be loaded: {gist(error)}") from error
    low.llama_log_set(_silence(low), None)
    low.llama_backend_init()
    return low


_kept: list[Any] = []
"""What C code may call must not be collected."""


def _silence(low: Any) -> Any:
    def ignore(_level: int, text: bytes, _data: Any) -> None:
        _last.append(text)
        del _last[:-20]

    callback = low.llama_log_callback(ignore)
    _kept.append(callback)
    return callback


_last: list[bytes] = []
"""The last lines that llama.cpp printed: they say why it refuses a file."""


def _why() -> str:
    """The last complaint of llama.cpp, in one line."""
    lines = b"".join(_last).decode(errors="replace").split("\n")
    told = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    return gist(Exception((told or lines or [""])[0]))


def version() -> dict[str, str]:
    """The version of the binding, and the kernels that it was built with."""
    from importlib.metadata import version as installed

    kernels = library().llama_print_system_info().decode(errors="replace")
    return {
        "binding": f"llama-cpp-python {installed('llama-cpp-python')}",
        "kernels": " ".join(kernels.split()),
    }


class LoadedModel:
    """A GGUF file in llama.cpp.

    Args:
        path: the file, of several parts the first.
        options: how it runs.

    Raises:
        SourceError: llama.cpp refuses it.
    """

    def __init__(self, path: Path, options: LoadOptions) -> None:
        self._low, self._options, self._path = library(), options, path
        settings = self._low.llama_model_default_params()
        # Weights in the order of the file, as with --no-repack: the kernels for other orders need
        # AMX on some machines, and end the process where a sandbox forbids it.
        settings.use_extra_bufts = False
        if options.gpu_layers is not None:
            settings.n_gpu_layers = options.gpu_layers
        _last.clear()
        self._model = self._low.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise SourceError(
                f"llama.cpp cannot load {path}: {_why()}; a newer llama-cpp-python may know it"
            )
        self._vocabulary = self._low.llama_model_get_vocab(self._model)
        self.width = int(self._low.llama_vocab_n_tokens(self._vocabulary))
        self.longest = int(self._low.llama_model_n_ctx_train(self._model))
        self.description = self._described()
        self.has_gpu = bool(self._low.llama_supports_gpu_offload())
        self.parameters = int(self._low.llama_model_n_params(self._model))
        self.bytes = int(self._low.llama_model_size(self._model))

    def _described(self) -> str:
        room = ctypes.create_string_buffer(256)
        self._low.llama_model_desc(self._model, room, len(room))
        return room.value.decode(errors="replace")

    def close(self) -> None:
        """Free the memory of the model."""
        if self._model:
            self._low.llama_model_free(self._model)
            self._model = None

    def token(self, token_id: int) -> bytes:
        """A token as the file writes it; nothing for an id that it does not have."""
        if token_id >= self.width:  # llama.cpp would end the process
            return b""
        found: bytes | None = self._low.llama_vocab_get_text(self._vocabulary, token_id)
        return b"" if found is None else found

    def context(self, length: int, block: int, threads: int) -> "Context":
        """Room to read up to ``length`` ids, at most ``block`` at once.

        Raises:
            SourceError: llama.cpp refuses the options.
        """
        settings = self._low.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = length, block, block
        settings.n_threads = settings.n_threads_batch = threads
        settings.no_perf = True
        settings.flash_attn_type = FLASH[self._options.flash_attention]
        kind = getattr(self._low, f"GGML_TYPE_{self._options.kv_cache_type.upper()}")
        settings.type_k = settings.type_v = kind
        _last.clear()
        made = self._low.llama_init_from_model(self._model, settings)
        if not made:
            raise SourceError(
                f"llama.cpp cannot run {self._path} with --kv-cache-type "
                f"{self._options.kv_cache_type} and --flash-attention "
                f"{self._options.flash_attention}: {_why()}"
            )
        return Context(self._low, made, self.width, block)


class Context:
    """What llama.cpp has read of one text, and what it predicts next."""

    def __init__(self, low: Any, context: Any, width: int, block: int) -> None:
        self._low, self._context, self._width, self.block = low, context, width, block
        self.reader: object = None  # whose text it holds
        self._batch = low.llama_batch_init(block, 0, 1)

    def close(self) -> None:
        """Free it."""
        if self._context:
            self._low.llama_batch_free(self._batch)
            self._low.llama_free(self._context)
            self._context = None

    def forget(self, reader: object) -> None:
        """Begin another text, for whoever reads it."""
        self.reader = reader
        self._low.llama_memory_clear(self._low.llama_get_memory(self._context), True)

    def read(
        self, ids: IntArray, start: int, wanted: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        """Read ids that stand at ``start``, at most a block of them.

        Returns:
            The logits behind those that are ``wanted``: (wanted, vocabulary), a copy.

        Raises:
            SourceError: llama.cpp fails.
        """
        batch = self._batch
        batch.n_tokens = len(ids)
        for place, (token_id, is_wanted) in enumerate(
            zip(ids.tolist(), wanted.tolist(), strict=True)
        ):
            batch.token[place] = token_id
            batch.pos[place] = start + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = is_wanted
        _last.clear()
        if (code := self._low.llama_decode(self._context, batch)) != 0:
            raise SourceError(f"llama.cpp cannot read the text (code {code}): {_why()}")
        count = int(wanted.sum())
        if not count:
            return np.empty((0, self._width), dtype=np.float32)
        logits = self._low.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape=(count, self._width)).copy()
