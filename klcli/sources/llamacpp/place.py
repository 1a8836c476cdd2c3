"""Where a GGUF file lies, and whether there is something to run it with."""

import importlib.util
import re
from pathlib import Path

from klcli.errors import SourceError

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def check_gguf(spec: str) -> None:
    """Find out whether llama.cpp can be given a path.

    Raises:
        SourceError: it is not a GGUF file, a part is missing, or the binding is.
    """
    path = Path(spec)
    if path.suffix != ".gguf":
        raise SourceError(f"{spec} is not a .gguf file, which is what --engine llama.cpp runs")
    for one in parts_of(path):
        if not one.is_file():
            raise SourceError(f"no model at {str(one)!r}: there is no such file")
    if importlib.util.find_spec("llama_cpp") is None:
        raise SourceError(
            f"{spec}: --engine llama.cpp needs its binding: pip install 'klcli[llama.cpp]', which "
            "builds it from source"
        )


def parts_of(path: Path) -> list[Path]:
    """A file, or all parts of one that was split.

    Raises:
        SourceError: it is not the first part.
    """
    if (named := _PART.fullmatch(path.name)) is None:
        return [path]
    if int(named[2]) != 1:
        raise SourceError(f"{path} is a part of a model: name the first, {named[1]}-00001-of-…")
    names = [f"{named[1]}-{n:05}-of-{named[3]}.gguf" for n in range(1, int(named[3]) + 1)]
    return [path.with_name(name) for name in names]
