"""The Hugging Face Hub: whether it has a model, and how far a download is.

Loads neither torch nor transformers.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tqdm

from klcli.errors import gist


def check_on_hub(name: str, revision: str | None) -> None:
    """Find out whether the Hub, or its cache, has a model: get its config, which is small.

    Raises:
        OSError: neither has it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with no_bars():
            hf_hub_download(name, "config.json", revision=revision)
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise OSError(gist(error)) from error


def nowhere(name: str, error: BaseException) -> str:
    """What to say where a model is neither here nor on the Hub."""
    return (
        f"cannot load {name!r}: it is not a file or folder here, and no model of that name "
        f"{not_on_hub(error)}"
    )


def not_on_hub(error: BaseException) -> str:
    """How such a sentence ends."""
    return f"could be had from the Hub or its cache ({gist(error)})"


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Some libraries show their bars whatever the environment says."""
    own = tqdm.tqdm.__init__

    def disabled(bar: Any, *arguments: Any, **options: Any) -> None:
        own(bar, *arguments, **options | {"disable": True})

    tqdm.tqdm.__init__ = disabled
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = own


@contextlib.contextmanager
def telling_of_downloads(tell: Callable[[str], None]) -> Iterator[None]:
    """Say how many bytes of a file have come, whenever a library would move a bar of its own.

    The Hub's bars count bytes, and are moved whether they are shown or not.
    """
    begin, move = tqdm.tqdm.__init__, tqdm.tqdm.update

    def begun(bar: Any, *arguments: Any, **settings: Any) -> None:
        begin(bar, *arguments, **settings)
        if settings.get("unit") == "B":
            bar.download = _Download(settings)

    def moved(bar: Any, n: float | None = 1) -> Any:
        if (download := getattr(bar, "download", None)) is not None:
            download.done += n or 0
            tell(str(download))
        return move(bar, n)

    tqdm.tqdm.__init__, tqdm.tqdm.update = begun, moved
    try:
        yield
    finally:
        tqdm.tqdm.__init__, tqdm.tqdm.update = begin, move


class _Download:
    """A file on its way: how many bytes have come, of how many."""

    def __init__(self, bar: Mapping[str, Any]) -> None:
        self.name: str = bar.get("desc") or "a file"
        self.total: float | None = bar.get("total")
        self.done: float = bar.get("initial") or 0.0

    def __str__(self) -> str:
        of = f" of {self.total / 1e6:,.1f}" if self.total else ""
        return f"downloading {self.name}: {self.done / 1e6:,.1f}{of} MB"
