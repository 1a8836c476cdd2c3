"""The turns of a rendered conversation: which characters are whose, and what the model generated.

A template may say what a model generates. Most do not: then an answer is what the text with it has
more than the text that asks for it, provided that the one continues the other. A template that
writes an earlier answer otherwise once the conversation goes on, without its reasoning for example,
gives such an answer a text of its own: the one that the model saw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from klcli.text.examples import Conversation
from klcli.text.templates import ChatTemplate, Message, TemplateFailed

ANSWERING = "assistant"
NOT_CONTINUED = "the chat template does not continue the prompt"
EMPTY = "the answer is empty"
NO_ANSWER = "there is no answer in it"
TEMPLATE = "template"
"""The role of text that is nobody's: headers, and what cannot be told."""


class Span(NamedTuple):
    """An answer: the number of its message, its first character, and the one behind its last."""

    message: int
    start: int
    stop: int


class Region(NamedTuple):
    """The text of one message, with what the template puts around it."""

    start: int
    stop: int
    role: str
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A text of a conversation, the answers in it, and whose the rest is.

    ``regions`` tile the text.
    """

    text: str
    answers: tuple[Span, ...]
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """What a conversation is rendered to, and for each answer that is left out the reason."""

    renderings: tuple[Rendering, ...]
    lost: tuple[str, ...] = ()
    by_marks: bool = False


def find_turns(conversation: Conversation, template: ChatTemplate, *, whole: bool) -> Turns:
    """Render a conversation and find the answers in it; the ``whole`` of it, or up to the last.

    Raises:
        TemplateFailed: the template refuses it.
    """
    messages = conversation.messages
    asked = [n for n, one in enumerate(messages) if n >= conversation.given and _is_answer(one)]
    wanted = [number for number in asked if not _is_empty(messages[number])]
    lost = [EMPTY] * (len(asked) - len(wanted))
    if not asked and not whole:
        lost = [NO_ANSWER]
    if not wanted and not whole:
        return Turns(renderings=(), lost=tuple(lost))
    last = len(messages) if whole else wanted[-1] + 1
    renderer = _Renderer(conversation, template)
    marked = renderer.marked(last, wanted)
    if marked is not None:
        return Turns(renderings=(marked,), lost=tuple(lost), by_marks=True)
    renderings, not_continued = renderer.by_prefixes(last, wanted, whole=whole)
    return Turns(renderings=renderings, lost=(*lost, *[NOT_CONTINUED] * not_continued))


def _is_answer(message: Message) -> bool:
    return bool(message["role"] == ANSWERING)


def _is_empty(message: Message) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    return not (content or "").strip() and not message.get("tool_calls")


@dataclass(frozen=True, slots=True)
class _Renderer:
    """A conversation with the template that renders it."""

    conversation: Conversation
    template: ChatTemplate

    def marked(self, last: int, wanted: Sequence[int]) -> Rendering | None:
        """The first ``last`` messages, with the answers where the template marks each of them."""
        if not self.template.marks_answers:
            return None
        messages = self.conversation.messages[:last]
        text, spans = self.template.render_marked(messages, self.conversation.tools)
        answering = [number for number, one in enumerate(messages) if _is_answer(one)]
        if len(spans) != len(answering):
            return None
        found = zip(answering, spans, strict=True)
        answers = tuple(Span(n, start, stop) for n, (start, stop) in found if n in wanted)
        return Rendering(text=text, answers=answers, regions=self._regions(text, last))

    def by_prefixes(
        self, last: int, wanted: Sequence[int], *, whole: bool
    ) -> tuple[tuple[Rendering, ...], int]:
        """The text of the first ``last`` messages, and those of answers that need their own.

        Returns:
            The renderings, and how many answers cannot be told from their prompts.
        """
        text = self._text(last)
        shared: list[Span] = []
        own: list[Rendering] = []
        found = [one for number in wanted if (one := self._answer(number)) is not None]
        for span, answered in found:
            if text.startswith(answered):
                shared.append(span)
            else:
                regions = self._regions(answered, span.message + 1)
                own.append(Rendering(text=answered, answers=(span,), regions=regions))
        if shared or whole:
            regions = self._regions(text, last)
            own.append(Rendering(text=text, answers=tuple(shared), regions=regions))
        return tuple(own), len(wanted) - len(found)

    def _answer(self, number: int) -> tuple[Span, str] | None:
        """Where an answer stands, and the text that ends with it; None where that cannot be told.

        White space behind it is the template's: a model stops before it.
        """
        try:
            before = self._text(number, asks=True)
            text = self._text(number + 1)
        except TemplateFailed:
            return None
        answered = text.rstrip()
        if not text.startswith(before) or len(answered) <= len(before):
            return None
        return Span(number, len(before), len(answered)), answered

    def _text(self, count: int, *, asks: bool = False) -> str:
        """The text of the first messages."""
        messages = self.conversation.messages[:count]
        return self.template.render(messages, self.conversation.tools, asks=asks)

    def _regions(self, text: str, count: int) -> tuple[Region, ...]:
        """Whose text it is, message by message; the template's where that cannot be told."""
        return tuple(_tiled(self._borders(text, count), len(text)))

    def _borders(self, text: str, count: int) -> Iterator[tuple[int | None, str, int]]:
        """Where the text of each message ends, None where that cannot be told; role and turn."""
        turn = 0
        for number, message in enumerate(self.conversation.messages[:count]):
            turn += message["role"] == "user"
            try:
                read = self._text(number + 1)
            except TemplateFailed:
                read = ""
            border = len(read) if read and text.startswith(read) else None
            if number == count - 1:
                border = len(text)
            yield border, str(message["role"]), max(1, turn)


def _tiled(borders: Iterator[tuple[int | None, str, int]], length: int) -> Iterator[Region]:
    start, is_certain = 0, True
    for border, role, turn in borders:
        if border is None:
            is_certain = False
        elif border > start:
            yield Region(start, border, role if is_certain else TEMPLATE, turn)
            start, is_certain = border, True
    if start < length:
        yield Region(start, length, TEMPLATE, 1)
