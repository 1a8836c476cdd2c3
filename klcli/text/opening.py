"""The bytes of what a user named: a file, stdin, or a URL; ``.gz`` unpacked, text decoded."""

import gzip
import io
import re
import sys
import zlib
from pathlib import Path

from klcli.errors import CorpusError, gist, reason_of
from klcli.text.corpus import STDIN

MOST_UNPACKED = 100
"""How many times its size text may unpack to; prose does to 3 times, repetitive logs to 30."""
ENOUGH_UNPACKED = 16 * 2**20
"""Bytes up to which nobody minds."""
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_url(path: str) -> bool:
    """Whether a path has a scheme, such as ``hf://datasets/…``."""
    return _URL.match(path) is not None


def ending_of(path: str) -> str:
    """The ending of a name in small letters, without the ``.gz`` of what is packed."""
    return Path(path.lower().removesuffix(".gz")).suffix


def read_bytes(path: str) -> bytes:
    """What a file holds, or stdin for ``-``.

    Raises:
        CorpusError: it is missing, cannot be read, or unpacks to far more than text would.
    """
    if path == STDIN:
        return _read_stdin()
    try:
        raw = _read_url(path) if is_url(path) else Path(path).read_bytes()
        return _unpacked(raw, path) if path.lower().endswith(".gz") else raw
    except FileNotFoundError:
        raise CorpusError(f"no corpus at {path!r}: check the path (- reads stdin)") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"cannot read {path}: {reason_of(error)}") from error


def read_text(path: str) -> str:
    """The same as text, which is UTF-8.

    Raises:
        CorpusError: as ``read_bytes``, and where it is not text.
    """
    return decode(read_bytes(path), "<stdin>" if path == STDIN else path)


def decode(raw: bytes, name: str) -> str:
    """Bytes as text.

    Raises:
        CorpusError: they are not UTF-8, or hold a zero byte.
    """
    if (nul := raw.find(b"\0")) >= 0:
        raise CorpusError(f"{name} is not text: byte {nul} is zero; give UTF-8 text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{name} is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}; "
            "convert it to UTF-8"
        ) from None


def _read_url(url: str) -> bytes:
    """What stands at a URL, by fsspec; that of the Hub comes with huggingface_hub."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        content: bytes = filesystem.cat_file(path)
    except FileNotFoundError:
        raise
    except (ValueError, ImportError) as error:  # a scheme that nobody knows, or whose package lacks
        raise CorpusError(f"cannot read {url}: {gist(error)}") from error
    except Exception as error:  # of whichever library is behind the scheme
        raise CorpusError(f"cannot read {url}: {gist(error)}") from error
    return content


def _unpacked(raw: bytes, path: str) -> bytes:
    """What a ``.gz`` holds, no more than text would, so that one made to fill the memory does not.

    Raises:
        CorpusError: it is far larger.
    """
    most = max(ENOUGH_UNPACKED, MOST_UNPACKED * len(raw))
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise CorpusError(
            f"{path} unpacks to more than {MOST_UNPACKED} times its size, as text does not: if it "
            "is to be read all the same, unpack it first"
        )
    return content


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        raise CorpusError("stdin is closed: pipe a text into klcli, or name a file instead of -")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise CorpusError(f"cannot read stdin: {error}") from error
