"""``klcli answer``: what a model says to prompts, kept token by token."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from klcli.align.documents import template_of
from klcli.answer_request import Answering
from klcli.errors import CorpusError, Notice, OutputError, some_of
from klcli.hooks import Hooks
from klcli.sources.devices import batch_tokens_for
from klcli.sources.hf.generating import Generator
from klcli.sources.hf.given import as_found
from klcli.sources.hf.loading import open_model
from klcli.sources.hf.model import ModelSource
from klcli.sources.opening import told_of_loading
from klcli.storage.answers import REQUEST, AnswerFile, read_answers, request_of
from klcli.text.chat import FAILS
from klcli.text.corpus import Document
from klcli.text.examples import Answer, Conversation, Dataset, Example
from klcli.text.templates import ChatTemplate, TemplateFailed
from klcli.text.turns import is_answer
from klcli.text.vocabulary import IntArray, Vocabulary

MOST_AT_ONCE = 64
"""Prompts that are continued at the same time, at the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is to continue.

    ``shown`` is how the output says what it was: ``prompt`` or ``messages``.
    """

    number: int
    name: str
    ids: IntArray
    shown: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What ``answer`` did: how many answers there are, how many were made now, and their tokens.

    ``cut`` answers ended at the most tokens that they may have.
    """

    answers: int
    new: int
    tokens: int
    cut: int
    notices: tuple[Notice, ...]


def answer(request: Answering, datasets: Sequence[Dataset]) -> Answered:
    """Let a model answer prompts, and write what it says.

    Raises:
        KlcliError: an input cannot be read, it is not a causal model, or the output cannot be
            written.
    """
    with as_found([request.model]):
        with told_of_loading(request.model, request.hooks):
            source = open_model(request.model, request.load)
        generator = Generator(source, most=request.max_new_tokens, temperature=request.temperature)
        request.hooks.begin("reading the prompts")
        prompts, notices = _prompts(datasets, source, request)
        asked = _asked(request, source, datasets, prompts)
        path, key = Path(request.output), _hash(asked)
        if (made_by := request_of(path)) == key:
            return _answered(_complete(path, len(prompts)), 0, notices)
        if made_by is not None:
            raise OutputError(
                f"{path} holds the answers of another command: repeat that one, or name another "
                "file"
            )
        file = AnswerFile(path, asked)
        before = len(file.made)
        _generate(generator, source, prompts, file, request, key)
        file.complete()
    return _answered(list(file.made.values()), len(file.made) - before, notices)


def _prompts(
    datasets: Sequence[Dataset], source: ModelSource, request: Answering
) -> tuple[list[Prompt], list[Notice]]:
    """Every prompt that the model can read, and what a reader should know of the others.

    Raises:
        CorpusError: none is left, or there is no chat template.
    """
    examples = [example for one in datasets for example in one.examples][: request.limit]
    template, notices = None, [notice for one in datasets for notice in one.notices]
    if any(isinstance(example, Conversation) for example in examples):
        template, said = template_of([source], request.chat_template)
        notices += said
    room = None if source.longest is None else source.longest - request.max_new_tokens
    prompts: list[Prompt] = []
    lost: list[tuple[str, str]] = []
    for number, example in enumerate(examples):
        try:
            prompt = _prompt(number, example, source.vocabulary, template)
            prompt = _grouped(prompt, example, request.fields.group_by)
        except CorpusError as error:
            lost.append((example.name, str(error)))
            continue
        if room is not None and len(prompt.ids) > room:
            lost.append((example.name, f"{len(prompt.ids):,} tokens leave no room for an answer"))
        else:
            prompts.append(prompt)
    if lost:
        shown = some_of([f"{name}: {reason}" for name, reason in lost], between="; ")
        are = "1 prompt is" if len(lost) == 1 else f"{len(lost):,} prompts are"
        message = f"{are} left out ({shown})"
        if not prompts:
            raise CorpusError(f"nothing to answer: {message}")
        notices.append(Notice(code="left_out", message=message))
    return prompts, notices


def _prompt(
    number: int, example: Example, vocabulary: Vocabulary, template: ChatTemplate | None
) -> Prompt:
    """The prompt of an example: all of it but the answer that it may have.

    Raises:
        CorpusError: it has none, or its chat template refuses it.
    """
    if isinstance(example, Answer):
        return Prompt(number=number, name=example.name, ids=example.prompt_ids, shown={})
    if isinstance(example, Conversation):
        return _of_conversation(number, example, vocabulary, template)
    text = _before_the_answer(example)
    ids = vocabulary.encode(text).ids
    if vocabulary.adds_bos:
        ids = np.concatenate([[vocabulary.bos_id], ids]).astype(np.int32)
    if not len(ids):
        raise CorpusError("the prompt is empty")
    return Prompt(number=number, name=example.name, ids=ids, shown={"prompt": text})


def _grouped(prompt: Prompt, example: Example, field: str | None) -> Prompt:
    """A prompt that keeps the field that its answer may be grouped by."""
    if field is None or example.group is None:
        return prompt
    return replace(prompt, shown={field: example.group, **prompt.shown})


def _before_the_answer(document: Document) -> str:
    """The text of a document up to the first part that is scored."""
    border = next((part.start for part in document.parts if part.is_scored), None)
    return document.content[:border].decode()


def _of_conversation(
    number: int, example: Conversation, vocabulary: Vocabulary, template: ChatTemplate | None
) -> Prompt:
    messages = list(example.messages)
    while messages and is_answer(messages[-1]):
        messages.pop()
    if not messages or template is None:
        raise CorpusError("nobody asks anything in it")
    try:
        text = template.render(messages, example.tools, asks=True)
    except TemplateFailed as error:
        raise CorpusError(f"{FAILS}: {error}") from error
    ids = vocabulary.encode(text, parse_special=True).ids
    return Prompt(number=number, name=example.name, ids=ids, shown={"messages": messages})


def _asked(
    request: Answering, source: ModelSource, datasets: Sequence[Dataset], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """What makes the answers the same ones when the command is run again."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.ids.astype(np.int32).tobytes() + b"|")
    return {
        "model": source.name,
        "digest": source.digest(),
        "dtype": source.provenance["dtype"],
        "corpora": [one.sha256[:16] for one in datasets],
        "prompts": digest.hexdigest()[:16],
        "max_new_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "batch_tokens": request.batch_tokens,
    }


def _hash(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _generate(
    generator: Generator,
    source: ModelSource,
    prompts: Sequence[Prompt],
    file: AnswerFile,
    request: Answering,
    key: str,
) -> None:
    """Answer what is not answered yet, batch by batch, and keep each batch."""
    budget = request.batch_tokens or batch_tokens_for([source.device])
    plan = list(_batches(prompts, budget, request.max_new_tokens))
    _tell(request.hooks, file, len(prompts))
    for batch in plan:
        if all(prompt.number in file.made for prompt in batch):
            continue
        seed = request.seed + batch[0].number
        said = generator.answers([prompt.ids for prompt in batch], seed)
        file.add(
            {
                prompt.number: _line(prompt, ids, generator, source, request, key)
                for prompt, ids in zip(batch, said, strict=True)
            }
        )
        _tell(request.hooks, file, len(prompts))


def _tell(hooks: Hooks, file: AnswerFile, prompts: int) -> None:
    if hooks.progress is not None:
        hooks.progress(len(file.made), prompts)


def _batches(prompts: Sequence[Prompt], budget: int, most: int) -> Iterator[list[Prompt]]:
    """Prompts that are continued together, of like length, the longest first."""
    batch: list[Prompt] = []
    for prompt in sorted(prompts, key=lambda one: -len(one.ids)):
        longest = len(batch[0].ids) if batch else 0
        if batch and (
            (len(batch) + 1) * (longest + most) > budget * 4 or len(batch) == MOST_AT_ONCE
        ):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _line(
    prompt: Prompt,
    ids: Sequence[int],
    generator: Generator,
    source: ModelSource,
    request: Answering,
    key: str,
) -> dict[str, Any]:
    """An answer as the output has it."""
    is_finished = bool(ids) and ids[-1] in generator.end_ids
    text = b"".join(source.vocabulary.bytes_of(one) for one in ids[: len(ids) - is_finished])
    return {
        **prompt.shown,
        "answer": text.decode(errors="replace"),
        "finish": "stop" if is_finished else "length",
        "prompt_ids": prompt.ids.tolist(),
        "answer_ids": list(ids),
        "model": source.name,
        "vocabulary": source.vocabulary.fingerprint,
        "temperature": request.temperature,
        "seed": request.seed,
        "max_new_tokens": request.max_new_tokens,
        REQUEST: key,
    }


def _complete(path: Path, prompts: int) -> list[dict[str, Any]]:
    """The answers that are there.

    Raises:
        OutputError: some are missing.
    """
    answers = read_answers(path)
    if len(answers) != prompts:
        raise OutputError(
            f"{path} has {len(answers):,} answers to {prompts:,} prompts: remove it, and answer "
            "again"
        )
    return answers


def _answered(made: Sequence[Mapping[str, Any]], new: int, notices: Sequence[Notice]) -> Answered:
    return Answered(
        answers=len(made),
        new=new,
        tokens=sum(len(one["answer_ids"]) for one in made),
        cut=sum(one["finish"] == "length" for one in made),
        notices=tuple(notices),
    )
