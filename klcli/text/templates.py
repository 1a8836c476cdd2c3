"""Chat templates: the Jinja source that turns messages into the text that a model was trained on.

They run where sources are, in the sandbox of transformers: see ``sources/hf/jinja.py``.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from klcli.errors import CorpusError, reason_of

Message = Mapping[str, Any]
"""``role`` and ``content``, and whatever else a template knows: tool calls, reasoning."""
Spans = Sequence[tuple[int, int]]
"""First character, and the one behind the last."""

DEFAULT, WITH_TOOLS = "default", "tool_use"
"""The names of templates, where a model has several."""
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class TemplateFailed(CorpusError):
    """A template refuses some messages, or is not one."""


class Jinja(Protocol):
    """Runs the source of a template on messages and tools.

    It returns the text, if it ``asks`` up to where the model begins to answer, and if it is to be
    ``marked`` also what the template says that the model generates.
    """

    def __call__(
        self,
        source: str,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        special_tokens: Mapping[str, str],
        *,
        asks: bool,
        marked: bool,
    ) -> tuple[str, Spans]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """The templates of one model.

    Attributes:
        name: whose it is: a model, or a file.
        sources: Jinja sources by their names.
        special_tokens: what templates read by name, such as ``bos_token``.
        jinja: runs them.
    """

    name: str
    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]
    jinja: Jinja

    @property
    def sha256(self) -> str:
        """Of its sources."""
        content = json.dumps(sorted(self.sources.items()))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def marks_answers(self) -> bool:
        """Whether it says itself what a model generates, with ``{% generation %}``."""
        return any(_MARK.search(source) for source in self.sources.values())

    @property
    def reads_tools(self) -> bool:
        """Whether it shows tools to the model."""
        return any("tools" in source for source in self.sources.values())

    @property
    def reads_date(self) -> bool:
        """Whether what it writes depends on the day."""
        return any("strftime_now" in source for source in self.sources.values())

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        asks: bool = False,
    ) -> str:
        """The text of messages; if it ``asks``, up to where the model begins to answer.

        Raises:
            TemplateFailed: it refuses them.
        """
        text, _ = self._rendered(messages, tools, asks=asks)
        return text

    def render_marked(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[str, Spans]:
        """The text of messages, and what of it the template says that a model generates.

        Raises:
            TemplateFailed: it refuses them.
        """
        return self._rendered(messages, tools, marked=True)

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        *,
        asks: bool = False,
        marked: bool = False,
    ) -> tuple[str, Spans]:
        source, tokens = self._source_for(tools), self.special_tokens
        return self.jinja(source, messages, tools, tokens, asks=asks, marked=marked)

    def _source_for(self, tools: Sequence[Mapping[str, Any]]) -> str:
        if tools and WITH_TOOLS in self.sources:
            return self.sources[WITH_TOOLS]
        return self.sources.get(DEFAULT) or next(iter(self.sources.values()))


def read_template(path: str) -> str:
    """The source of a template in a file.

    Raises:
        CorpusError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read the chat template {path}: {reason_of(error)}") from error
