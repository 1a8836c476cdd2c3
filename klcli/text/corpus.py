"""What is scored: documents, their parts, and the corpora that they are of."""

import os
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run of a document that is somebody's: of its bytes, or of its tokens once it has them.

    Attributes:
        start, stop: the first byte or token, and the one behind the last.
        role: whose it is: system, user, assistant, tool; prompt, completion; reasoning, template.
        turn: which turn of a conversation it belongs to, from 1 on.
        is_scored: whether its tokens are scored.
        is_answer: whether a model generated it just so, token by token.
    """

    start: int
    stop: int
    role: str
    turn: int
    is_scored: bool
    is_answer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One piece of text that is scored on its own: no token sees another document.

    Attributes:
        content: UTF-8, for a single 🙂 would make each character of a string take four bytes.
        parts: whose which bytes are, in order; none where all of the text is scored.
        group: what it has in the field that documents are grouped by.
        is_rendered: whether a chat template made it: strings of special tokens in it are these
            tokens, and it begins with a BOS of its own if it shall have one.
        ids: the tokens, where they are given and not to be made of the text.
    """

    name: str
    content: bytes
    parts: tuple[Part, ...] = ()
    group: str | None = None
    is_rendered: bool = False
    ids: npt.NDArray[np.int32] | None = None

    @property
    def text(self) -> str:
        """The text itself; an answer may end in the middle of a character."""
        return self.content.decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The documents of one file, under the name it was given, with the sha256 of its text."""

    name: str
    sha256: str
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts in the place of a file, each a document."""

    texts: tuple[str, ...]


def is_text(given: str) -> bool:
    """Whether a string is a text, not a path: it has white space, and looks like no file's name."""
    if len(given.split()) < 2 or _URL.match(given) or os.path.exists(given[:_LONGEST_PATH]):
        return False
    return "\n" in given or not re.search(r"\.\w{1,8}$", given)


_LONGEST_PATH = 4096
_URL = re.compile(r"[a-z][a-z0-9+.-]+://\S*$", re.IGNORECASE)
