"""What a token reads like: the bytes that its tokenizer says it stands for."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from klcli.text.backend import Backend

Step = Mapping[str, Any]
"""One decoder of a ``tokenizer.json``."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling:
    """How the tokens of one tokenizer write bytes, by the decoders that it declares.

    Tokens stand next to each other without more: where a tokenizer marks the beginning or the end
    of words, the mark is a space. So the tokens of a text, joined, are the text as far as its
    normaliser leaves it, and perhaps a space before or behind it.
    """

    def __init__(self, backend: Backend) -> None:
        state = json.loads(backend.to_str())
        self._steps = list(_flat(state["decoder"] or {"type": "None"}))
        suffix = state["model"].get("end_of_word_suffix")
        if suffix:  # CLIP takes it off in code of its own
            self._steps.insert(0, {"type": "BPEDecoder", "suffix": suffix})
        self.is_of_bytes = any(step["type"] == "ByteLevel" for step in self._steps)

    def bytes_of(self, token: str) -> bytes:
        """The bytes of a token; part of a character where the token is one."""
        text = token
        for step in self._steps:
            if step["type"] == "ByteFallback" and (found := _BYTE_TOKEN.fullmatch(text)):
                return bytes([int(found[1], 16)])
            if step["type"] == "ByteLevel":
                return b"".join(_BYTE_OF_CHARACTER.get(c, c.encode()) for c in text)
            if (read := _READERS.get(step["type"])) is not None:
                text = read(text, step)
        return text.encode()


def _flat(step: Step) -> Iterator[Step]:
    """The decoders in their order, those of a sequence one by one."""
    for inner in step.get("decoders", [step]):
        yield from _flat(inner) if "decoders" in inner else [inner]


def _word_piece(text: str, step: Step) -> str:
    prefix = str(step["prefix"])
    return text.removeprefix(prefix) if text.startswith(prefix) else f" {text}"


def _word_end(text: str, step: Step) -> str:
    suffix = str(step["suffix"])
    return f"{text.removesuffix(suffix)} " if text.endswith(suffix) else text


def _replaced(text: str, step: Step) -> str:
    pattern, content = step["pattern"], str(step["content"])
    if "String" in pattern:
        return text.replace(pattern["String"], content)
    try:
        return re.sub(pattern["Regex"], lambda _: content, text)
    except re.error:  # what Rust reads and Python does not
        return text


_READERS: Mapping[str, Callable[[str, Step], str]] = {
    "BPEDecoder": _word_end,
    "CTC": lambda text, step: text.replace(str(step["word_delimiter_token"]), " "),
    "Metaspace": lambda text, step: text.replace(str(step["replacement"]), " "),
    "None": lambda text, _: text.replace("\u2581", " "),
    "Replace": _replaced,
    "WordPiece": _word_piece,
}
"""Decoders of characters. ``Fuse`` and ``Strip`` are about whole texts, and change no token."""


def _byte_of_character() -> dict[str, bytes]:
    """The alphabet of byte-level tokenizers: one printable character for each of 256 bytes.

    Bytes that print in Latin-1 stand for themselves; the others follow from U+0100 on in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    characters |= {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return {character: bytes([byte]) for character, byte in characters.items()}


_BYTE_OF_CHARACTER = _byte_of_character()
