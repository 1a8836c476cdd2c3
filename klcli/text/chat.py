"""Conversations, rendered by chat templates."""

from collections.abc import Sequence
from dataclasses import dataclass

from klcli.errors import Notice
from klcli.text.corpus import Document
from klcli.text.examples import Conversation
from klcli.text.scope import Scope
from klcli.text.vocabulary import Vocabulary


@dataclass
class ChatTemplate:
    """A template."""

    sha256: str


def choose_template(
    sides: Sequence[tuple[str, Vocabulary]], path: str | None
) -> tuple[ChatTemplate, list[Notice]]:
    """Choose."""
    raise NotImplementedError


def render_all(
    conversations: Sequence[Conversation], template: ChatTemplate, scope: Scope
) -> tuple[list[Document], list[Notice]]:
    """Render."""
    raise NotImplementedError
