"""The files of an adapter, as far as a look at them tells. Needs neither torch nor peft."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from klcli.errors import SourceError
from klcli.sources.hf.intact import read_object

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""The files that peft looks for, the first of them that is there."""


def is_adapter(spec: str) -> bool:
    """Whether a path is a folder with an adapter, and without a model of its own."""
    folder = Path(spec)
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: str) -> str:
    """The model that an adapter was trained on: a folder or a Hub id.

    Raises:
        SourceError: its config does not say.
    """
    path = Path(folder) / ADAPTER_CONFIG
    base = read_object(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise SourceError(f"{path} does not name a base model: give MODEL and --adapter {folder}")
    return base


def check_adapter(folder: str) -> None:
    """Find out whether a folder holds an adapter, and whether this machine can run one.

    Raises:
        SourceError: a file is missing or damaged, or peft is not installed.
    """
    adapter_settings(folder)
    weights_of(folder)
    if find_spec("peft") is None:
        raise SourceError(f"{folder} is an adapter: pip install 'klcli[peft]' to run it")


def adapter_settings(folder: str) -> dict[str, Any]:
    """The config of an adapter.

    Raises:
        SourceError: there is none, or it is not a JSON object.
    """
    path = Path(folder) / ADAPTER_CONFIG
    if not path.is_file():
        raise SourceError(f"{folder} is not an adapter: it has no {ADAPTER_CONFIG}")
    return read_object(path)


def weights_of(folder: str) -> Path:
    """The file with the weights of an adapter.

    Raises:
        SourceError: there is none.
    """
    found = next((path for name in WEIGHTS if (path := Path(folder) / name).is_file()), None)
    if found is None:
        raise SourceError(f"the adapter {folder} has no weights ({' or '.join(WEIGHTS)})")
    return found
