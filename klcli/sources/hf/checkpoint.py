"""A checkpoint: where it lies, and how transformers is called on it."""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from klcli.errors import MEMORY_RAN_OUT, Notice, SourceError, gist, is_out_of_memory
from klcli.sources.hf.adapters import ADAPTER_CONFIG, base_of, is_adapter
from klcli.sources.options import LoadOptions
from klcli.storage.files import FileState, state_of


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where transformers looks for it, and the keyword arguments that all of its loaders take.

    ``adapter`` is the folder of the adapter that is put on it.
    """

    place: str
    arguments: dict[str, Any]
    adapter: str | None = None

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is: an adapter may have one, with tokens that were added."""
        own = self.adapter is not None and (Path(self.adapter) / "tokenizer.json").is_file()
        return str(self.adapter) if own else self.place

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file, which is dequantised as it is read."""
        return "gguf_file" in self.arguments

    def config(self) -> Any:
        """Its config, as transformers reads it."""
        return transformers.AutoConfig.from_pretrained(self.place, **self.arguments)

    def not_read(self) -> list[Notice]:
        """Weights that lie in the folder beside those that are read, so that nobody takes one set
        for the other.
        """
        if self.is_gguf:
            return []
        others, read = _sets_of_weights(Path(self.place))
        return [
            Notice(
                code="weights_not_read",
                message=f"{self.place} holds {read}, which runs, and {name}, which is not read",
            )
            for name in others
            if not (self.adapter and name.startswith(ADAPTER_CONFIG))
        ]

    def weight_files(self) -> dict[Path, FileState]:
        """The files of a folder that may hold its weights, and what they are now.

        Weights that stay in the memory of the machine are mapped, not read: what is written to
        these files would be in the model. A GGUF file is unpacked to memory, and the files of the
        Hub's cache are never written to.
        """
        patterns = () if self.is_gguf else ("*.safetensors", "pytorch_model*.bin")
        found = [path for pattern in patterns for path in Path(self.place).glob(pattern)]
        return {path: state_of(path) for path in found}


WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The files of weights that transformers looks for, the first of them that is there."""
OTHER_WEIGHTS = ("adapter_config.json", "consolidated*.safetensors", "consolidated*.pth", "*.gguf")
"""What may hold weights too, and is never read from a folder."""


def _sets_of_weights(folder: Path) -> tuple[list[str], str]:
    """The names of the sets of weights that are not read, and of the one that is.

    A newer one that is not read is called so.
    """
    there = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not there:
        return [], ""
    read, *others = there
    others += sorted(path for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    since = read.stat().st_mtime
    return [
        f"{path.name} (newer)" if path.stat().st_mtime > since else path.name for path in others
    ], read.name


def locate(spec: str, options: LoadOptions) -> Checkpoint:
    """The checkpoint that a user named: a folder, of an adapter too, a ``.gguf`` file, or a Hub id.

    Raises:
        SourceError: there is no such file or folder, or it does not hold a model.
    """
    adapter = options.adapter
    if is_adapter(spec):
        adapter, spec = spec, base_of(spec)
    place, gguf = _locate(spec)
    shared = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    return Checkpoint(place, shared | gguf, adapter)


def _locate(spec: str) -> tuple[str, dict[str, Any]]:
    path = Path(spec or "no name")
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceError(f"the folder {spec} does not hold a model: it has no config.json")
        return spec, {}
    if path.exists():
        raise SourceError(
            f"{spec} is not a model, a recording or a logit file: klcli compare takes REFERENCE "
            "CANDIDATE [CORPUS], and klcli perplexity MODEL [CORPUS]"
        )
    if path.suffix == ".gguf" or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", spec):
        raise SourceError(f"no model at {spec!r}: there is no such file or folder")
    return spec, {}


@contextlib.contextmanager
def loading(spec: str) -> Iterator[None]:
    """Loaders raise whatever they like: say which model it was, and keep the cause."""
    try:
        yield
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(
            f"cannot load {spec!r}: it is not a file or folder here, and no model of that name "
            f"could be had from the Hub or its cache ({gist(error)})"
            if not Path(spec).exists()
            else f"cannot load {spec}: {gist(error)}"
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {gist(error)}"
        if is_out_of_memory(error):
            reason = MEMORY_RAN_OUT
        raise SourceError(f"cannot load {spec}: {reason}") from error


_LOGGERS = ("accelerate", "bitsandbytes", "compressed_tensors", "torchao", "torch.utils._pytree")
"""Loggers that give advice to developers while a model is loaded."""


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or advice of transformers and its helpers on our stderr while it loads."""
    own = transformers.utils.logging
    verbosity, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity_error()
    own.disable_progress_bar()
    try:
        with contextlib.ExitStack() as stack:
            for name in _LOGGERS:
                stack.enter_context(_only_errors(name))
            yield
    finally:
        own.set_verbosity(verbosity)
        if bars:
            own.enable_progress_bar()


@contextlib.contextmanager
def _only_errors(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
