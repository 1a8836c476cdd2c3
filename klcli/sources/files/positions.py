"""What servers say of each token of a text: JSONL, read into positions.

A line is one position, ``{"token": …, "logprob": …, "top_logprobs": [{"token": …, "logprob": …},
…]}``, or a whole response with ``choices[0].logprobs``: the ``content`` of a chat, or ``tokens``,
``token_logprobs`` and ``top_logprobs`` of a completion with echo. ``bytes`` may say which bytes a
token is; otherwise its text does.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from klcli.errors import SourceError
from klcli.text.datasets import read_lines

Record = Mapping[str, Any]


class Position(NamedTuple):
    """The token that stands there, and log-probabilities by token, both as bytes.

    The first ``listed`` of them stood in the list; the token of the text may follow. ``where`` is
    what an error calls the position.
    """

    token: bytes
    log_probs: Mapping[bytes, float]
    listed: int
    where: str


def read_positions(spec: str) -> list[list[Position]]:
    """The positions of each text in a file: one text, or one for every response.

    Raises:
        SourceError: a line is not of these shapes, a position is missing, or there are too few.
    """
    lines = [
        (number, where := f"{spec}, line {number + 1}", _parse(line, where))
        for number, line in read_lines(spec)
    ]
    are_responses = [isinstance(record, dict) and "choices" in record for *_, record in lines]
    if not any(are_responses):
        texts = [[_read(record, number, where) for number, where, record in lines]]
        _check_length(spec, texts[0])
        return texts
    if not all(are_responses):
        _, where, _ = lines[are_responses.index(not are_responses[0])]
        raise SourceError(f"{where}: the file holds responses and single positions; part them")
    texts = []
    for _, where, response in lines:
        texts.append(list(_positions_of(response, where)))
        _check_length(where, texts[-1])
    return texts


def _check_length(where: str, positions: Sequence[Position]) -> None:
    if len(positions) < 2:
        raise SourceError(f"{where} has {len(positions)} positions: nothing can be scored")


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not a position with its top_logprobs ({error!r})") from None


def _positions_of(response: Record, where: str) -> Iterator[Position]:
    """The positions of one response of a server."""
    choices = response["choices"]
    if not isinstance(choices, list) or len(choices) != 1:
        count = len(choices) if isinstance(choices, list) else "no"
        raise SourceError(f"{where} is a response with {count} choices: ask the server for one")
    try:
        found = choices[0]["logprobs"]
        records = found["content"] if "content" in found else _records_of_completion(found)
        if not isinstance(records, list):
            raise TypeError(f"content must be a list, not {records!r:.40}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{where} is a response without lists of log-probabilities ({error!r}): ask the server "
            "for them, in a completion with echo and logprobs, in a chat with logprobs and "
            "top_logprobs"
        ) from None
    for number, record in enumerate(records):
        yield _read(record, number, f"{where}: position {number}")


def _records_of_completion(found: Record) -> list[Record]:
    """The positions of a completion, which has them as three lists of one length."""
    columns = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
    return [
        {
            "token": token,
            "logprob": log_prob,
            "top_logprobs": None
            if listed is None
            else [{"token": name, "logprob": value} for name, value in listed.items()],
        }
        for token, log_prob, listed in columns
    ]


def _read(record: Any, number: int, where: str) -> Position:
    try:
        token, listed = _bytes_of(record), record.get("top_logprobs")
        if listed is None and number == 0:
            return Position(token, {}, 0, where)
        if record.get("position", number) != number:
            raise SourceError(
                f"{where} is position {record['position']} and should be {number}: there is a gap"
            )
        log_probs = {_bytes_of(one): float(one["logprob"]) for one in listed}
        if len(log_probs) < len(listed):
            raise SourceError(f"{where} lists a token twice")
        count = len(log_probs)
        if record.get("logprob") is not None:
            log_probs.setdefault(token, float(record["logprob"]))
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise SourceError(f"{where} is not a position with its top_logprobs ({error!r})") from None
    if not log_probs:
        raise SourceError(f"{where} lists no token: the file has a gap")
    if any(math.isnan(value) for value in log_probs.values()):
        raise SourceError(f"{where}: a log-probability is NaN")
    return Position(token, log_probs, count, where)


def _bytes_of(record: Record) -> bytes:
    given = record.get("bytes")
    if given is None:
        return str(record["token"]).encode()
    if not isinstance(given, list):
        raise TypeError(f"bytes must be a list, not {given!r}")
    return bytes(given)


def listed_at_most(positions: Sequence[Position]) -> int:
    """How many tokens the server ranks at a position.

    Servers append the token of the text where it is not among the first k. So where the longest
    lists all end in it, that entry is not ranked, and k is one less.
    """
    most = max(position.listed for position in positions)
    longest = [position for position in positions if position.listed == most]
    return most - 1 if most > 1 and all(map(_ends_in_its_token, longest)) else most


def _ends_in_its_token(position: Position) -> bool:
    least = min(position.log_probs.values())
    return position.log_probs.get(position.token) == least
