"""A checkpoint: where it lies, and how transformers is called on it."""

import contextlib
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klcli.errors import MEMORY_RAN_OUT, Notice, SourceError, gist, is_out_of_memory
from klcli.sources.hf.adapter_files import ADAPTER_CONFIG, base_of, check_adapter, is_adapter
from klcli.sources.hf.hub import not_on_hub, nowhere
from klcli.sources.hf.intact import WEIGHTS, check_folder, check_model_type, weight_files
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
        """Its config, as transformers reads it.

        Raises:
            SourceError: it is of a kind that transformers does not know.
        """
        import transformers

        if Path(self.place).is_dir() and not self.is_gguf:
            check_model_type(Path(self.place))
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
        """The files of a folder that hold its weights, and what they are now.

        Weights that stay in the memory of the machine are mapped, not read: what is written to
        these files would be in the model. A GGUF file is unpacked to memory, and the files of the
        Hub's cache are never written to.

        Raises:
            SourceError: one is missing or damaged.
        """
        if self.is_gguf:
            return {}
        return {path: state_of(path) for path in weight_files(Path(self.place))}


HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
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
        adapter, spec = spec, _base_here(spec)
    place, gguf = _locate(spec)
    if adapter is not None:
        check_adapter(adapter)
    shared = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    return Checkpoint(place, shared | gguf, adapter)


def _base_here(adapter: str) -> str:
    """The base model of an adapter, if it is a name on the Hub or a path that is there."""
    base = base_of(adapter)
    if Path(base).exists() or HUB_NAME.fullmatch(base):
        return base
    raise SourceError(
        f"the adapter {adapter} is for {base!r}, and there is no such file or folder: give MODEL "
        f"and --adapter {adapter}"
    )


def _locate(spec: str) -> tuple[str, dict[str, Any]]:
    path = Path(spec or "no name")
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceError(f"the folder {spec} does not hold a model: it has no config.json")
        check_folder(path)
        return spec, {}
    if path.exists():
        raise SourceError(
            f"{spec} is not a model, a recording or a logit file: klcli compare takes REFERENCE "
            "CANDIDATE [CORPUS], and klcli perplexity MODEL [CORPUS]"
        )
    if path.suffix == ".gguf" or not HUB_NAME.fullmatch(spec):
        raise SourceError(f"no model at {spec!r}: there is no such file or folder")
    return spec, {}


@contextlib.contextmanager
def loading(spec: str) -> Iterator[None]:
    """Loaders raise whatever they like: say which model it was, and keep the cause."""
    try:
        yield
    except SourceError:
        raise
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"cannot load {spec}: its .bin file is damaged or holds more than weights, and klcli "
            "does not run code of a file: save the model as safetensors where you trust it"
        ) from error
    except ImportError as error:
        raise SourceError(
            f"cannot load {spec}: a package that it needs is missing or does not work here "
            f"({gist(error)}): install it with pip"
        ) from error
    except OSError as error:
        raise SourceError(_not_there(spec, error)) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {gist(error)}"
        if is_out_of_memory(error):
            reason = MEMORY_RAN_OUT
        raise SourceError(f"cannot load {spec}: {reason}") from error


def _not_there(spec: str, error: OSError) -> str:
    """What to say where a file, or a model of the Hub, could not be read."""
    if not Path(spec).exists():
        return nowhere(spec, error)
    if is_adapter(spec) and not Path(base := base_of(spec)).exists():
        return (
            f"the adapter {spec} is for {base!r}, which is not here, and no model of that name "
            f"{not_on_hub(error)}: give MODEL and --adapter {spec}"
        )
    return f"cannot load {spec}: {gist(error)}"
