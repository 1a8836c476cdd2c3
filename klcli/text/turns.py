"""The turns of a rendered conversation: which characters are whose, and what the model generated.

A template may say what a model generates. Most do not: then an answer is what the text with it has
more than the text that asks for it, provided that the one continues the other. A template that
writes an earlier answer otherwise once the conversation goes on, without its reasoning for example,
gives such an answer a text of its own: the one that the model saw.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from klcli.choices import Score
from klcli.text.examples import Conversation
from klcli.text.templates import ChatTemplate, Message, TemplateFailed

ANSWERING = "assistant"
NOT_CONTINUED = "the chat template does not continue the prompt"
EMPTY = "the answer is empty"
NO_ANSWER = "there is no answer in it"
TEMPLATE = "template"
"""The role of text that is nobody's: headers, and what cannot be told."""

MARKS = "its generation marks"
PREFIXES = "what each adds to its prompt"
MARKS_UNFIT = f"{PREFIXES}, for its generation marks are not those of the answers"
"""How answers are told from the rest."""

_READ_BESIDES = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""Fields from which a template may write something in front of the content of an answer."""


class Span(NamedTuple):
    """An answer: the number of its message, its first character, and the one behind its last."""

    message: int
    start: int
    stop: int


class Region(NamedTuple):
    """The text of one message, with what the template puts around it."""

    message: int
    start: int
    stop: int
    role: str


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
    """What a conversation is rendered to, how its answers were told, and why others were not."""

    renderings: tuple[Rendering, ...]
    lost: tuple[str, ...] = ()
    told: str = PREFIXES


def find_turns(conversation: Conversation, template: ChatTemplate, score: Score) -> Turns:
    """Render a conversation up to the last answer that is scored, or to its end if ``all`` is.

    A template that refuses tool calls whose arguments are JSON, as in OpenAI's format, is given
    them as objects.

    Raises:
        TemplateFailed: the template refuses it.
    """
    try:
        return _turns(conversation, template, score)
    except TemplateFailed:
        if (parsed := with_parsed_arguments(conversation)) is None:
            raise
        return _turns(parsed, template, score)


def _turns(conversation: Conversation, template: ChatTemplate, score: Score) -> Turns:
    """The turns of a conversation as it is; nothing is lost of one that is scored as a whole."""
    messages, renderer = conversation.messages, _Renderer(conversation, template, {})
    asked = [n for n, one in enumerate(messages) if n >= conversation.given and is_answer(one)]
    asked = asked[-1:] if score == "last" else asked
    wanted = [number for number in asked if not _is_empty(messages[number])]
    if score == "all":
        return renderer.whole(wanted)
    lost = [EMPTY] * (len(asked) - len(wanted)) if asked else [NO_ANSWER]
    if not wanted:
        return Turns(renderings=(), lost=tuple(lost))
    found = renderer.marked(wanted[-1] + 1, wanted) or renderer.by_prefixes(wanted)
    return replace(found, lost=(*lost, *found.lost))


def turn_of(messages: Sequence[Message], number: int) -> int:
    """Which turn a message belongs to: a question of the user begins one."""
    return max(1, [one["role"] for one in messages[: number + 1]].count("user"))


def is_answer(message: Message) -> bool:
    """Whether it is the assistant's."""
    return bool(message["role"] == ANSWERING)


def with_parsed_arguments(conversation: Conversation) -> Conversation | None:
    """A conversation whose tool calls have objects as arguments; None where they have already."""
    messages = tuple(_parsed(message) for message in conversation.messages)
    if messages == conversation.messages:
        return None
    return replace(conversation, messages=messages)


def _parsed(message: Message) -> Message:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_parsed_call(call) for call in calls]}


def _parsed_call(call: Any) -> Any:
    """A tool call, also in the shape of one that has its function inside."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _parsed_call(call["function"])}
    if not isinstance(arguments := call.get("arguments"), str):
        return call
    try:
        return {**call, "arguments": json.loads(arguments)}
    except (ValueError, RecursionError):
        return call


def _is_empty(message: Message) -> bool:
    return not _content(message).strip() and not message.get("tool_calls")


def _content(message: Message) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        return "".join(str(piece.get("text", "")) for piece in content)
    return str(content)


@dataclass(frozen=True, slots=True)
class _Renderer:
    """A conversation with the template that renders it, and the texts that it has rendered."""

    conversation: Conversation
    template: ChatTemplate
    texts: dict[tuple[int, bool], str | TemplateFailed]

    def whole(self, wanted: Sequence[int]) -> Turns:
        """All of a conversation in one text, with those answers in it that can be told."""
        count = len(self.conversation.messages)
        text = self._text(count)
        if (found := self.marked(count, wanted)) is not None:
            return found
        told = [self._answer(number) for number in wanted]
        spans = [one[0] for one in told if isinstance(one, tuple) and text.startswith(one[1])]
        return Turns(renderings=(self._rendering(text, count, spans),))

    def marked(self, count: int, wanted: Sequence[int]) -> Turns | None:
        """The first messages, with the answers where the template marks each of them."""
        if not self.template.marks_answers:
            return None
        messages = self.conversation.messages[:count]
        text, spans = self.template.render_marked(messages, self.conversation.tools)
        answering = [number for number, one in enumerate(messages) if is_answer(one)]
        if len(spans) != len(answering):
            return None
        found = [Span(n, *span) for n, span in zip(answering, spans, strict=True) if n in wanted]
        if not all(_is_of(messages[span.message], span, text) for span in found):
            return None
        return Turns(renderings=(self._rendering(text, count, found),), told=MARKS)

    def by_prefixes(self, wanted: Sequence[int]) -> Turns:
        """The messages up to the last answer, and the texts of answers that need their own."""
        count = wanted[-1] + 1
        text = self._text(count)
        shared: list[Span] = []
        own: list[Rendering] = []
        lost: list[str] = []
        for number in wanted:
            found = self._answer(number)
            if isinstance(found, str):
                lost.append(found)
            elif text.startswith(found[1]):
                shared.append(found[0])
            else:
                own.append(self._rendering(found[1], number + 1, [found[0]]))
        if shared:
            own.append(self._rendering(text, count, shared))
        told = MARKS_UNFIT if self.template.marks_answers else PREFIXES
        return Turns(renderings=tuple(own), lost=tuple(lost), told=told)

    def _answer(self, number: int) -> tuple[Span, str] | str:
        """Where an answer stands, and the text that ends with it; a reason if it cannot be told."""
        message = self.conversation.messages[number]
        try:
            before = self._text(number, asks=True)
            text = self._text(number + 1)
            is_asked = before != self._text(number)
        except TemplateFailed as error:
            return f"the chat template fails on what stands before it: {error}"
        if not text.startswith(before):
            return NOT_CONTINUED
        answered = before + self._ended(text[len(before) :], message)
        start = len(before) + (0 if is_asked else _header(answered[len(before) :], message))
        if not answered[start:].strip():
            return NOT_CONTINUED
        return Span(number, start, len(answered)), answered

    def _ended(self, added: str, message: Message) -> str:
        """An answer up to where the model stops: white space behind its last token is not its own.

        Where the template marks no end the white space is all that ends the answer.
        """
        answered = added.rstrip()
        if answered.endswith(tuple(filter(None, self.template.special_tokens.values()))):
            return answered
        content = _content(message).strip()
        _, found, rest = added.partition(content) if content else ("", "", "")
        is_open = bool(found) and not rest.strip() and not message.get("tool_calls")
        return added if is_open else answered

    def _text(self, count: int, *, asks: bool = False) -> str:
        """The text of the first messages."""
        if (count, asks) not in self.texts:
            self.texts[count, asks] = self._rendered(count, asks=asks)
        found = self.texts[count, asks]
        if isinstance(found, TemplateFailed):
            raise found
        return found

    def _rendered(self, count: int, *, asks: bool) -> str | TemplateFailed:
        messages = self.conversation.messages[:count]
        try:
            return self.template.render(messages, self.conversation.tools, asks=asks)
        except TemplateFailed as error:
            return error

    def _rendering(self, text: str, count: int, answers: Sequence[Span]) -> Rendering:
        """A text of the first messages; whose it is, or the template's where it cannot be told."""
        regions = tuple(_tiled(self._borders(text, count), len(text)))
        return Rendering(text=text, answers=tuple(answers), regions=regions)

    def _borders(self, text: str, count: int) -> Iterator[tuple[int | None, str]]:
        """Where the text of each message ends, None where that cannot be told; and its role."""
        for number, message in enumerate(self.conversation.messages[:count]):
            yield self._border(text, number, count), str(message["role"])

    def _border(self, text: str, number: int, count: int) -> int | None:
        if number == count - 1:
            return len(text)
        try:
            read = self._text(number + 1)
        except TemplateFailed:
            return None
        return len(read) if read and text.startswith(read) else None


def _is_of(message: Message, span: Span, text: str) -> bool:
    """Whether a marked text is an answer's: inside of a macro the marks are at other places."""
    content, marked = _content(message).strip(), text[span.start : span.stop]
    return bool(marked.strip()) and (content in marked or content not in text)


def _header(added: str, message: Message) -> int:
    """How much of what an answer adds stands before it, where the template does not ask for it."""
    content = _content(message).strip()
    if not content or any(message.get(field) for field in _READ_BESIDES):
        return 0
    header = added[: max(0, added.find(content))].rstrip(" ")
    return len(header) if header.strip() else 0


def _tiled(borders: Iterator[tuple[int | None, str]], length: int) -> Iterator[Region]:
    start, is_certain, number = 0, True, 0
    for number, (border, role) in enumerate(borders):
        if border is None:
            is_certain = False
        elif border > start:
            yield Region(number, start, border, role if is_certain else TEMPLATE)
            start, is_certain = border, True
    if start < length:
        yield Region(number, start, length, TEMPLATE)
