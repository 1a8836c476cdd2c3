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
from klcli.text.templates import ChatTemplate, TemplateFailed
from klcli.text.turns import ANSWERING, TEMPLATE, Region, Rendering, Span, Turns, find_turns

NAMED = 3
"""How many conversations a notice names."""

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
    by_marks: Counter[bool] = Counter()
    for one in conversations:
        try:
            turns = find_turns(one, template, whole=scope.score == "all")
        except TemplateFailed as error:
            lost.append((one.name, f"its chat template fails: {error}"))
            continue
        lost += [(one.name, reason) for reason in turns.lost]
        by_marks[turns.by_marks] += 1
        documents += _documents(one, turns, scope)
    if not documents:
        raise CorpusError(f"nothing to score: {_left_out(lost)}")
    notices = [_about(template, documents, by_marks)]
    if lost:
        notices.append(Notice(code="left_out", message=_left_out(lost)))
    if any(one.tools for one in conversations) and not template.reads_tools:
        message = f"the chat template of {template.name} does not show tools to the model"
        notices.append(Notice(code="tools_not_shown", message=message))
    return documents, notices


def _about(template: ChatTemplate, documents: Sequence[Document], ways: Counter[bool]) -> Notice:
    """Which template it was, and how answers were told from the rest."""
    told = [
        *(["its generation marks"] if ways[True] else []),
        *(["what each adds to its prompt"] if ways[False] else []),
    ]
    turns = sum(len({part.turn for part in one.parts if part.is_scored}) for one in documents)
    answers = "1 answer" if turns == 1 else f"{turns:,} answers"
    return Notice(
        code="chat_template",
        message=f"{answers} rendered by the chat template of {template.name} "
        f"({template.sha256[:12]}), told by {' and '.join(told)}",
    )


def _left_out(lost: Sequence[tuple[str, str]]) -> str:
    """What was left out: for each reason how many answers, and the first of them."""
    reasons: dict[str, list[str]] = {}
    for name, reason in lost:
        reasons.setdefault(reason, []).append(name)
    return "; ".join(
        f"{len(names)} left out, for {reason} ({', '.join(names[:NAMED])}"
        f"{'' if len(names) <= NAMED else ' …'})"
        for reason, names in reasons.items()
    )


def _documents(conversation: Conversation, turns: Turns, scope: Scope) -> Iterator[Document]:
    """The documents of a conversation that have something to score."""
    last = max((span.message for one in turns.renderings for span in one.answers), default=-1)
    several = len(turns.renderings) > 1
    for rendering in turns.renderings:
        chosen = _chosen(rendering, last, scope.score)
        parts = list(_parts(chosen, scope))
        if not any(part.is_scored for part in parts):
            continue
        turn = next(part.turn for part in parts if part.is_scored)
        yield Document(
            name=f"{conversation.name}, turn {turn}" if several else conversation.name,
            content=rendering.text.encode(),
            parts=tuple(_in_bytes(parts, rendering.text)),
            group=conversation.group,
            is_rendered=True,
        )


def _chosen(rendering: Rendering, last: int, score: Score) -> Rendering:
    """A rendering with only the answers that are scored."""
    if score != "last":
        return rendering
    answers = tuple(span for span in rendering.answers if span.message == last)
    return replace(rendering, answers=answers)


def _parts(rendering: Rendering, scope: Scope) -> Iterator[Part]:
    """The parts of a text, in characters, in order; they tile it."""
    everything = scope.score == "all"
    spans = list(rendering.answers)
    for region in rendering.regions:
        own = [span for span in spans if region.start <= span.start < region.stop]
        for part in _of_region(region, own, rendering.text):
            is_answer = part.role in (ANSWERING, REASONING) and bool(own)
            is_left_out = part.role == REASONING and not scope.score_reasoning
            yield replace(part, is_scored=(everything or is_answer) and not is_left_out)


def _of_region(region: Region, spans: Sequence[Span], text: str) -> Iterator[Part]:
    """The text of one message: what the template puts around an answer, and the answer itself."""
    at = region.start
    for span in spans:
        stop = min(span.stop, region.stop)
        if span.start > at:
            yield _part(at, span.start, TEMPLATE, region.turn)
        yield from _of_answer(span.start, stop, region.turn, text)
        at = stop
    if at < region.stop:
        yield _part(at, region.stop, TEMPLATE if spans else region.role, region.turn)


def _of_answer(start: int, stop: int, turn: int, text: str) -> Iterator[Part]:
    """An answer, with its reasoning as parts of their own."""
    borders = [start, *_reasoning(text[start:stop], start), stop]
    for number, (first, behind) in enumerate(pairwise(borders)):
        if behind > first:
            yield _part(first, behind, REASONING if number % 2 else ANSWERING, turn)


def _reasoning(answer: str, offset: int) -> list[int]:
    """Where reasoning begins and ends, one after the other; what is not closed goes to the end.

    Where only its end is marked the prompt has opened it.
    """
    found: list[int] = []
    for opening, closing in REASONING_MARKS:
        at = 0
        while (start := answer.find(opening, at)) >= 0:
            stop = answer.find(closing, start)
            at = len(answer) if stop < 0 else stop + len(closing)
            found += [offset + start, offset + at]
        if not found and (stop := answer.find(closing)) >= 0 and "think" in closing.lower():
            found += [offset, offset + stop + len(closing)]
    return sorted(found)


def _part(start: int, stop: int, role: str, turn: int) -> Part:
    return Part(start=start, stop=stop, role=role, turn=turn, is_scored=False)


def _in_bytes(parts: Sequence[Part], text: str) -> Iterator[Part]:
    """Parts in characters as parts in bytes."""
    at = 0
    for part in parts:
        size = len(text[part.start : part.stop].encode())
        yield replace(part, start=at, stop=at + size)
        at += size
