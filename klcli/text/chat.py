"""Conversations as documents: rendered by a chat template, with the parts that are scored."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from klcli.choices import Score
from klcli.errors import CorpusError, Notice
from klcli.text.corpus import Document, Part
from klcli.text.examples import Conversation
from klcli.text.parts import REASONING
from klcli.text.scope import Scope
from klcli.text.templates import ChatTemplate, Message, TemplateFailed
from klcli.text.turns import ANSWERING, TEMPLATE, Rendering, Span, Turns, find_turns, turn_of

NAMED = 3
"""How many conversations, and how many reasons, a notice names."""
FAILS = "its chat template fails"
ONLY_REASONING = "there is nothing but reasoning in it; see --score-reasoning"

REASONING_MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)
"""What stands around the reasoning in an answer, by the habits of several families."""


def render_all(
    conversations: Sequence[Conversation], template: ChatTemplate, scope: Scope
) -> tuple[list[Document], list[Notice]]:
    """Render conversations, each to a document, or to several where answers need their own.

    Returns:
        The documents, and which template made them, how answers were told and what is left out.

    Raises:
        CorpusError: nothing of them can be scored.
    """
    documents: list[Document] = []
    lost: list[tuple[str, str]] = []
    answers: Counter[str] = Counter()
    rendered = 0
    for one in conversations:
        try:
            turns = find_turns(one, template, scope.score)
        except TemplateFailed as error:
            lost.append((one.name, f"{FAILS}: {error}"))
            continue
        lost += [(one.name, reason) for reason in turns.lost]
        found = list(_documents(one, turns, scope))
        answers[turns.told] += sum(len(made.answers) for made in turns.renderings)
        rendered += bool(found)
        documents += found
        if turns.renderings and not found:
            lost.append((one.name, ONLY_REASONING))
    if not documents:
        raise CorpusError(f"nothing to score: {_left_out(lost)}{_way_out(lost)}")
    notices = [_about(template, answers, rendered, scope.score)]
    if lost:
        notices.append(Notice(code="left_out", message=_left_out(lost)))
    return documents, notices + _advice(conversations, template)


def _way_out(lost: Sequence[tuple[str, str]]) -> str:
    """What to do where the template is the reason that nothing is left."""
    if any("chat template" in reason for _, reason in lost):
        return ": give another with --chat-template FILE"
    return ""


def _about(template: ChatTemplate, answers: Counter[str], rendered: int, score: Score) -> Notice:
    """Which template it was, how much it rendered, and how answers were told from the rest."""
    found = _several(rendered, "conversation")
    told = ""
    if score != "all":
        found = f"{_several(answers.total(), 'answer')} in {found}"
        told = (
            f", answers found by {' and by '.join(sorted(way for way, n in answers.items() if n))}"
        )
    return Notice(
        code="chat_template",
        message=f"{found} rendered by the chat template of {template.name} "
        f"({template.sha256[:12]}){told}",
    )


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _advice(conversations: Sequence[Conversation], template: ChatTemplate) -> list[Notice]:
    """What a reader should know of a template."""
    found = []
    if any(one.tools for one in conversations) and not template.reads_tools:
        message = f"the chat template of {template.name} does not show tools to the model"
        found.append(Notice(code="tools_not_shown", message=message))
    if template.reads_date:
        message = (
            f"the chat template of {template.name} asks for today's date: what it writes, and the "
            "numbers with it, may differ on another day"
        )
        found.append(Notice(code="dated_template", message=message))
    return found


def _left_out(lost: Sequence[tuple[str, str]]) -> str:
    """What was left out: for each of a few reasons how many answers, and the first of them."""
    reasons: dict[str, list[str]] = {}
    for name, reason in lost:
        reasons.setdefault(reason, []).append(name)
    said = [
        f"{len(names):,} left out, for {reason} ({', '.join(names[:NAMED])}"
        f"{'' if len(names) <= NAMED else ' …'})"
        for reason, names in reasons.items()
    ]
    others = sum(len(names) for names in list(reasons.values())[NAMED:])
    return "; ".join([*said[:NAMED], *([f"{others:,} for other reasons"] if others else [])])


def _documents(conversation: Conversation, turns: Turns, scope: Scope) -> Iterator[Document]:
    """The documents of a conversation that have something to score."""
    several = len(turns.renderings) > 1
    named: Counter[str] = Counter()
    for rendering in turns.renderings:
        parts = list(_parts(conversation, rendering, scope))
        first = next((part for part in parts if part.is_scored), None)
        if first is None:
            continue
        name = f"{conversation.name}, turn {first.turn}" if several else conversation.name
        named[name] += 1
        yield Document(
            name=name if named[name] == 1 else f"{name}, answer {named[name]}",
            content=rendering.text.encode(),
            parts=tuple(_in_bytes(parts, rendering.text)),
            group=conversation.group,
            is_rendered=True,
        )


def _parts(conversation: Conversation, rendering: Rendering, scope: Scope) -> Iterator[Part]:
    """The parts of a text, in characters, in order; they tile it."""
    everything, messages, at = scope.score == "all", conversation.messages, 0
    for span in rendering.answers:
        yield from _around(at, span.start, messages, rendering, is_scored=everything)
        turn = turn_of(messages, span.message)
        yield from _of_answer(span, turn, rendering.text, scope)
        at = span.stop
    yield from _around(at, len(rendering.text), messages, rendering, is_scored=everything)


def _around(
    start: int,
    stop: int,
    messages: Sequence[Message],
    rendering: Rendering,
    *,
    is_scored: bool,
) -> Iterator[Part]:
    """What stands between answers: other messages, and what the template puts around answers."""
    answered = {span.message for span in rendering.answers}
    for region in rendering.regions:
        first, behind = max(start, region.start), min(stop, region.stop)
        role = TEMPLATE if region.message in answered else region.role
        if first < behind:
            turn = turn_of(messages, region.message)
            yield Part(start=first, stop=behind, role=role, turn=turn, is_scored=is_scored)


def _of_answer(span: Span, turn: int, text: str, scope: Scope) -> Iterator[Part]:
    """An answer, with its reasoning as parts of their own."""
    borders = [span.start, *_reasoning(text, span), span.stop]
    for number, (first, behind) in enumerate(pairwise(borders)):
        is_reasoning = bool(number % 2)
        is_scored = scope.score_reasoning or not is_reasoning
        role = REASONING if is_reasoning else ANSWERING
        if behind > first:
            yield Part(start=first, stop=behind, role=role, turn=turn, is_scored=is_scored)


def _reasoning(text: str, span: Span) -> list[int]:
    """Where reasoning begins and ends in an answer, one after the other.

    The prompt may have opened it. What an answer begins with and does not close goes to its end.
    """
    found: list[int] = []
    prompt = text[: span.start].rstrip()
    for opening, closing in REASONING_MARKS:
        if prompt.endswith(opening):
            found = [span.start, _behind(text, closing, span.start, span.stop)]
    at = found[-1] if found else span.start
    while (opened := _opened(text, at, span.stop)) is not None:
        start, closing = opened
        is_first = not text[span.start : start].strip()
        if not is_first and text.find(closing, start, span.stop) < 0:
            break
        at = _behind(text, closing, start, span.stop)
        found += [start, at]
    return found


def _opened(text: str, at: int, stop: int) -> tuple[int, str] | None:
    """The next reasoning that is opened, with what closes it."""
    marks = ((text.find(opening, at, stop), closing) for opening, closing in REASONING_MARKS)
    return min((one for one in marks if one[0] >= 0), default=None)


def _behind(text: str, closing: str, start: int, stop: int) -> int:
    """The character behind what closes reasoning, or the end."""
    at = text.find(closing, start, stop)
    return stop if at < 0 else at + len(closing)


def _in_bytes(parts: Sequence[Part], text: str) -> Iterator[Part]:
    """Parts in characters as parts in bytes."""
    at = 0
    for part in parts:
        size = len(text[part.start : part.stop].encode())
        yield replace(part, start=at, stop=at + size)
        at += size
