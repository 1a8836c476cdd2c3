"""What the fields of a record mean: a text, a prompt and its completion, a conversation, an answer.

The first record decides for a file; every other must be of its kind.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from klcli.errors import CorpusError, Notice, some_of
from klcli.text.corpus import Document, Part
from klcli.text.examples import Answer, Conversation, Example
from klcli.text.scope import Fields
from klcli.text.tables import Record, Row
from klcli.text.templates import Message

TEXT = "text"
MESSAGES = ("messages", "conversations")
ANSWER = ("prompt_ids", "answer_ids")
PROMPT, COMPLETION = "prompt", "completion"
PAIRS = (
    (PROMPT, COMPLETION), ("instruction", "output"), ("question", "answer"), ("input", "target"),
)  # fmt: skip
MORE_OF_THE_PROMPT = {"instruction": "input"}
"""Alpaca's third field, which belongs to the instruction."""

PLAIN = (TEXT, MESSAGES[0], ANSWER[0])
"""Fields that need no word of what was read."""

SPEAKERS = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "function_call": "assistant", "function_response": "tool", "observation": "tool",
}  # fmt: skip
"""What ShareGPT calls roles."""


class Skipped(Exception):
    """A record has nothing to score; the message says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the records of a file are.

    Attributes:
        noun: several of them, for messages.
        fields: those that are read.
        optional: those that are read where they are.
        make: an example of a record; name, record, group.
    """

    noun: str
    fields: tuple[str, ...]
    make: Callable[[str, Record, str | None], Example]
    optional: tuple[str, ...] = ()


def examples_of(
    rows: Iterator[Row], name: str, fields: Fields
) -> tuple[list[Example], list[Notice]]:
    """The examples of a file's records, and which fields were read.

    Raises:
        CorpusError: a record is not like the first, or none is known.
    """
    examples: list[Example] = []
    skipped: list[tuple[str, str]] = []
    kind: Kind | None = None
    first: Row | None = None
    for row in rows:
        where = f"{name}, line {row.number}"
        if kind is None or first is None:
            kind, first = kind_of(row.record, where, fields), row
        _check_like(row, first, kind, where, fields)
        try:
            examples.append(_made(kind, f"{name}#{row.number}", row.record, fields, where))
        except Skipped as reason:
            skipped.append((f"{name}#{row.number}", str(reason)))
    return examples, _notices(name, kind, first, examples, skipped, fields)


def wanted_fields(names: list[str], fields: Fields) -> list[str]:
    """Which of a file's columns are needed: those that may say what its records are.

    All, where what is needed is not there, so that a message can list them.
    """
    given = {
        fields.text_field, fields.prompt_field, fields.completion_field, fields.group_by,
    } - {None}  # fmt: skip
    telling = {TEXT, *MESSAGES, *ANSWER, *(one for pair in PAIRS for one in pair)}
    known = telling | given | {"tools", "answer", "vocabulary", "temperature"}
    if not given <= {*names} or not (telling | given) & {*names}:
        return names
    return [name for name in names if name in known]


def looks_like_records(text: str) -> bool:
    """Whether a text begins with a JSON object that has a field which klcli knows."""
    first = next((line for line in text.split("\n", 100) if line.strip()), "")
    try:
        record = json.loads(first)
        kind_of(record, "", Fields())
    except (ValueError, RecursionError, CorpusError, TypeError):
        return False
    return isinstance(record, dict)


def kind_of(record: Record, where: str, fields: Fields) -> Kind:
    """What a record is, by what it was said to be or by its fields.

    Raises:
        CorpusError: it has none of the known fields.
    """
    if fields.text_field is not None:
        is_list = isinstance(record.get(fields.text_field), list)
        return _conversations(fields.text_field) if is_list else _texts(fields.text_field)
    if fields.prompt_field is not None and fields.completion_field is not None:
        return _pairs(fields.prompt_field, fields.completion_field, record)
    if all(field in record for field in ANSWER):
        return Kind("answers", (*ANSWER, "answer", "vocabulary"), _answer, ("temperature",))
    for field in MESSAGES:
        if field in record:
            return _conversations(field)
    if TEXT in record:
        return _texts(TEXT)
    for pair in PAIRS:
        if all(field in record for field in pair):
            return _pairs(*pair, record)
    raise CorpusError(
        f"{where} has none of the fields that hold a text (text), a conversation (messages) or a "
        f"prompt with its completion; its fields are {_listed(record)}: name one with --text-field"
    )


def _check_like(row: Row, first: Row, kind: Kind, where: str, fields: Fields) -> None:
    """Find out whether a record has the fields that the first one has."""
    group = () if fields.group_by is None else (fields.group_by,)
    missing = next((one for one in (*kind.fields, *group) if one not in row.record), None)
    if missing is None:
        return
    if row is first:
        raise CorpusError(f"{where} has no {missing!r}; its fields are {_listed(row.record)}")
    raise CorpusError(
        f"{where} has no {missing!r}, as line {first.number} has; its fields are "
        f"{_listed(row.record)}: give files of one kind of record each"
    )


def _made(kind: Kind, name: str, record: Record, fields: Fields, where: str) -> Example:
    try:
        group = None if fields.group_by is None else _group(record[fields.group_by])
        return kind.make(name, record, group)
    except CorpusError as error:
        raise CorpusError(f"{where}: {error}") from None


def _notices(
    name: str,
    kind: Kind | None,
    first: Row | None,
    examples: Sequence[Example],
    skipped: Sequence[tuple[str, str]],
    fields: Fields,
) -> list[Notice]:
    found = []
    if kind is not None and first is not None and kind.fields[0] not in PLAIN and examples:
        message = f"{name}: {len(examples):,} {kind.noun}, of {' and '.join(kind.fields[:2])}"
        found.append(Notice(code="fields_read", message=message))
    if first is not None and kind is not None and kind.fields == (TEXT,):
        pair = next((p for p in PAIRS if all(one in first.record for one in p)), None)
        if pair is not None and fields.text_field is None:
            message = (
                f"{name}: text is read; to score the answers alone give --prompt-field {pair[0]} "
                f"--completion-field {pair[1]}"
            )
            found.append(Notice(code="fields_read", message=message))
    if skipped:
        named = some_of([one for one, _ in skipped])
        message = f"{len(skipped)} left out, for {skipped[0][1]}: {named}"
        found.append(Notice(code="left_out", message=message))
    return found


def _texts(field: str) -> Kind:
    def make(name: str, record: Record, group: str | None) -> Example:
        return Document(name=name, content=_text(record, field).encode(), group=group)

    return Kind("texts", (field,), make)


def _pairs(prompt: str, completion: str, record: Record) -> Kind:
    if isinstance(record.get(prompt), list) and isinstance(record.get(completion), list):
        return _asked(prompt, completion)
    more = MORE_OF_THE_PROMPT.get(prompt)

    def make(name: str, record: Record, group: str | None) -> Example:
        asked, answered = _text(record, prompt), _text(record, completion)
        if more is not None and record.get(more):
            asked = f"{asked}\n\n{_text(record, more)}"
        if not answered.strip():
            raise Skipped("the completion is empty")
        joined = (prompt, completion) == (PROMPT, COMPLETION)
        return _pair(name, asked, answered, group, as_it_is=joined)

    optional = () if more is None else (more,)
    return Kind("prompts with their completions", (prompt, completion), make, optional)


def _pair(
    name: str, prompt: str, completion: str, group: str | None, *, as_it_is: bool
) -> Document:
    """A prompt and its completion as one text; a line break goes between where nothing does."""
    if not as_it_is and not (prompt[-1:].isspace() or completion[:1].isspace()):
        prompt += "\n"
    border, content = len(prompt.encode()), (prompt + completion).encode()
    given = Part(start=0, stop=border, role=PROMPT, turn=1, is_scored=False)
    scored = Part(start=border, stop=len(content), role=COMPLETION, turn=1, is_scored=True)
    parts = (given, scored) if border else (scored,)
    return Document(name=name, content=content, parts=parts, group=group)


def _conversations(field: str) -> Kind:
    def make(name: str, record: Record, group: str | None) -> Example:
        return Conversation(
            name=name,
            messages=tuple(_messages(record[field], field)),
            tools=_tools(record),
            group=group,
        )

    return Kind("conversations", (field,), make, ("tools",))


def _asked(prompt: str, completion: str) -> Kind:
    """Conversations of which the last messages are the completion."""

    def make(name: str, record: Record, group: str | None) -> Example:
        given = list(_messages(record[prompt], prompt))
        answered = list(_messages(record[completion], completion))
        return Conversation(
            name=name,
            messages=(*given, *answered),
            tools=_tools(record),
            given=len(given),
            group=group,
        )

    return Kind("conversations", (prompt, completion), make, ("tools",))


def _messages(value: Any, field: str) -> Iterator[Message]:
    if isinstance(value, str):
        value = _from_json(value, field)
    if not isinstance(value, list) or not value:
        _refuse(field, "a list of messages", value)
    for number, message in enumerate(value, start=1):
        yield _message(message, f"message {number} of {field}")


def _message(message: Any, where: str) -> Message:
    """A message with ``role`` and ``content``, also of one as ShareGPT has it."""
    if not isinstance(message, Mapping):
        _refuse(where, "an object", message)
    if "role" not in message and isinstance(role := message.get("from"), str):
        message = {"role": SPEAKERS.get(role, role), "content": message.get("value")}
    if not isinstance(message.get("role"), str):
        raise CorpusError(f"{where} has no role; its fields are {_listed(message)}")
    content = message.get("content")
    if isinstance(content, list):
        content = _joined(content, where)
    elif content is not None and not isinstance(content, str):
        _refuse(f"the content of {where}", "a string", content)
    _check_unicode(json.dumps(message, ensure_ascii=False, default=str), where)
    return {**{k: v for k, v in message.items() if v is not None}, "content": content or ""}


def _joined(content: Sequence[Any], where: str) -> str:
    """The text of content that comes in pieces."""
    texts = []
    for piece in content:
        if not isinstance(piece, Mapping) or not isinstance(piece.get("text"), str):
            kind = piece.get("type") if isinstance(piece, Mapping) else type(piece).__name__
            raise CorpusError(f"{where} holds {kind!r}: klcli reads texts only")
        texts.append(piece["text"])
    return "".join(texts)


def _tools(record: Record) -> tuple[Mapping[str, Any], ...]:
    tools = record.get("tools") or ()
    if isinstance(tools, str):
        tools = _from_json(tools, "tools")
    if not isinstance(tools, list | tuple) or not all(isinstance(t, Mapping) for t in tools):
        _refuse("tools", "a list of objects", tools)
    _check_unicode(json.dumps(tools, ensure_ascii=False, default=str), "tools")
    return tuple(tools)


def _answer(name: str, record: Record, group: str | None) -> Example:
    prompt, answer = (_ids(record, field) for field in ANSWER)
    if not len(prompt) or not len(answer):
        raise Skipped("the answer or its prompt is empty")
    return Answer(
        name=name,
        prompt_ids=prompt,
        answer_ids=answer,
        answer=_text(record, "answer"),
        vocabulary=_text(record, "vocabulary"),
        is_greedy=record.get("temperature", 0) == 0,
        group=group,
    )


def _ids(record: Record, field: str) -> npt.NDArray[np.int32]:
    value = record[field]
    largest = np.iinfo(np.int32).max
    if not isinstance(value, list) or not all(
        type(one) is int and 0 <= one <= largest for one in value
    ):
        _refuse(field, "a list of token ids", value)
    return np.array(value, dtype=np.int32)


def _text(record: Record, field: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        _refuse(repr(field), "a string", value)
    _check_unicode(value, repr(field))
    return value


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"{what} is not Unicode ({error.reason})") from None


def _from_json(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        _refuse(field, "a list, or JSON of one", text)


def _refuse(what: str, wanted: str, value: Any) -> NoReturn:
    shown = json.dumps(value, default=str)
    raise CorpusError(f"{what} is not {wanted}: {shown[:60]}{'…' if len(shown) > 60 else ''}")


def _group(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value, default=str)
    _check_unicode(value, repr(value))
    return value


def _listed(record: Mapping[str, Any]) -> str:
    return ", ".join(map(str, record)) or "none"
