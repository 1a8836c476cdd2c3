"""Data sets, written out as documents: conversations by a chat template, answers by their ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from klcli.choices import Score
from klcli.errors import CorpusError, MismatchError, Notice
from klcli.sources import Source
from klcli.text.chat import render_all
from klcli.text.corpus import Corpus, Document, Part
from klcli.text.examples import Answer, Conversation, Dataset, Example
from klcli.text.scope import Scope
from klcli.text.templates import DEFAULT, ChatTemplate, read_template

BYTES_OF_A_TOKEN = 16
"""More than the tokens of any language have on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Data sets as documents, and what the report's protocol says of how they became that."""

    corpora: tuple[Corpus, ...]
    notices: tuple[Notice, ...]
    protocol: dict[str, Any]


def write_out(datasets: Sequence[Dataset], sources: Sequence[Source], scope: Scope) -> Written:
    """Write data sets out as documents, by the reference's vocabulary and chat template.

    Raises:
        CorpusError: there is no chat template, or nothing remains.
        MismatchError: answers are of another vocabulary.
    """
    drawn = _drawn(datasets, scope)
    examples = [example for one in drawn for example in one.examples]
    template, notices = None, [notice for one in drawn for notice in one.notices]
    if any(isinstance(example, Conversation) for example in examples):
        template, said = template_of(sources, scope.chat_template)
        notices += said
    corpora = []
    for one in drawn:
        documents, said = _documents(one, sources[0], template, scope)
        notices += said
        corpora.append(Corpus(name=one.name, sha256=one.sha256, documents=documents))
    return Written(
        corpora=tuple(corpora),
        notices=(*notices, *_about_answers(examples)),
        protocol=_grouped(datasets) | _described(examples, template, scope),
    )


def scope_of(sources: Sequence[Source], scope: Scope) -> Scope:
    """The scope, in which what a recording was made with goes before the defaults.

    A text that is given beside a recording is held against what was read then.
    """
    table = next((one.windows for one in sources if one.windows is not None), None)
    if table is None:
        return scope
    made = table.protocol
    return replace(
        scope,
        score=cast("Score", made.get("score", scope.score)),
        score_reasoning=made.get("score_reasoning", "yes") == "yes",
        max_tokens=made.get("max_tokens"),
        seed=made.get("seed", 0),
    )


def _drawn(datasets: Sequence[Dataset], scope: Scope) -> Sequence[Dataset]:
    """Of data sets that are drawn from, as many examples as surely have enough tokens."""
    if scope.max_tokens is None:
        return datasets
    wanted = scope.max_tokens * BYTES_OF_A_TOKEN
    sizes = [_size(example) for one in datasets for example in one.examples]
    chosen, total = np.zeros(len(sizes), dtype=np.bool_), 0
    for place in np.random.default_rng(scope.seed).permutation(len(sizes)).tolist():
        if total >= wanted:
            break
        chosen[place] = True
        total += sizes[place]
    return list(_only(datasets, iter(chosen.tolist())))


def about_drawing(datasets: Sequence[Dataset], documents: int, scope: Scope) -> list[Notice]:
    """That what is scored was drawn at random, and from how many examples."""
    examples = sum(len(one.examples) for one in datasets)
    if scope.max_tokens is None or documents >= examples:
        return []
    are = "1 document was" if documents == 1 else f"{documents:,} documents were"
    message = (
        f"{are} drawn at random from {examples:,}: --max-tokens {scope.max_tokens}, "
        f"--seed {scope.seed}"
    )
    return [Notice(code="documents_drawn", message=message)]


def _only(datasets: Sequence[Dataset], chosen: Iterator[bool]) -> Iterator[Dataset]:
    for one in datasets:
        yield replace(one, examples=tuple(e for e in one.examples if next(chosen)))


def _size(example: Example) -> int:
    """Bytes that an example has at the most, about."""
    if isinstance(example, Document):
        return len(example.content)
    if isinstance(example, Answer):
        return BYTES_OF_A_TOKEN * len(example.answer_ids)
    return sum(len(str(message.get("content", ""))) for message in example.messages)


def template_of(
    sources: Sequence[Source], path: str | None
) -> tuple[ChatTemplate, Sequence[Notice]]:
    """The one template of all sides: that of a file, the reference's, or else the candidate's.

    Raises:
        CorpusError: there is none, or it cannot be read.
    """
    known = [one.vocabulary.chat for one in sources if one.vocabulary is not None]
    own = [chat for chat in known if chat is not None]
    if path is not None:
        return _given_template(path, sources[0]), ()
    if not own:
        raise CorpusError(
            f"{' and '.join(one.name for one in sources)} have no chat template to render "
            "conversations with: give --chat-template FILE, or compare instruct models"
            if len(sources) > 1
            else f"{sources[0].name} has no chat template to render conversations with: give "
            "--chat-template FILE, or an instruct model"
        )
    if known[:1] == [None]:
        message = (
            f"{sources[0].name} has no chat template: both models read what that of "
            f"{own[0].name} makes"
        )
        return own[0], [Notice(code="chat_template_of_candidate", message=message)]
    if len(own) == 1 or own[0].sha256 == own[1].sha256:
        return own[0], ()
    message = (
        f"the chat templates of {own[0].name} and {own[1].name} differ: both models read what that "
        f"of {own[0].name} makes; see --chat-template"
    )
    return own[0], [Notice(code="chat_templates_differ", message=message)]


def _given_template(path: str, reference: Source) -> ChatTemplate:
    """A template in a file, with the special tokens of the reference."""
    from klcli.sources.hf.jinja import render  # which brings transformers

    vocabulary = reference.vocabulary
    tokens: dict[str, str] = {}
    if vocabulary is not None and vocabulary.chat is not None:
        tokens = dict(vocabulary.chat.special_tokens)
    elif vocabulary is not None:
        ids = {"bos_token": vocabulary.bos_id, "eos_token": vocabulary.eos_id}
        named = {name: vocabulary.string(i) for name, i in ids.items() if i is not None}
        tokens = {name: token for name, token in named.items() if token is not None}
    source = read_template(path)
    return ChatTemplate(name=path, sources={DEFAULT: source}, special_tokens=tokens, jinja=render)


def _documents(
    dataset: Dataset, reference: Source, template: ChatTemplate | None, scope: Scope
) -> tuple[tuple[Document, ...], Sequence[Notice]]:
    """The documents of one data set, whose examples are of one kind."""
    conversations = [one for one in dataset.examples if isinstance(one, Conversation)]
    if template is not None and conversations:
        rendered, notices = render_all(conversations, template, scope)
        return tuple(rendered), notices
    documents = (
        _of_answer(one, reference) if isinstance(one, Answer) else one
        for one in dataset.examples
        if not isinstance(one, Conversation)
    )
    return tuple(_scored_as(one, scope.score) for one in documents), ()


def _scored_as(document: Document, score: Score) -> Document:
    """A document of which ``all`` is scored, if it shall be."""
    if score != "all":
        return document
    return replace(document, parts=tuple(replace(one, is_scored=True) for one in document.parts))


def _of_answer(answer: Answer, reference: Source) -> Document:
    """The prompt and the answer to it, as exactly the tokens that they were."""
    vocabulary = reference.vocabulary
    if vocabulary is None or vocabulary.fingerprint != answer.vocabulary:
        raise MismatchError(
            f"{answer.name} has the token ids of another vocabulary than {reference.name}: compare "
            "the model that answered, or give the answers as messages or as a prompt with its "
            "completion"
        )
    ids = np.concatenate([answer.prompt_ids, answer.answer_ids]).astype(np.int32)
    tokens = [vocabulary.bytes_of(token_id) for token_id in ids.tolist()]
    prompt = sum(len(token) for token in tokens[: len(answer.prompt_ids)])
    content = b"".join(tokens)
    return Document(
        name=answer.name,
        content=content,
        ids=ids,
        group=answer.group,
        is_rendered=True,
        parts=(
            Part(start=0, stop=prompt, role="prompt", turn=1, is_scored=False),
            Part(
                start=prompt, stop=len(content), role="assistant", turn=1, is_scored=True,
                is_answer=True,
            ),
        ),
    )  # fmt: skip


def _grouped(datasets: Sequence[Dataset]) -> dict[str, str]:
    """The field that documents are grouped by, if they are."""
    field = next((one.group_by for one in datasets if one.group_by is not None), None)
    return {} if field is None else {"group_by": field}


def _about_answers(examples: Sequence[Example]) -> list[Notice]:
    """That greedy answers favour who gave them."""
    answers = [one for one in examples if isinstance(one, Answer)]
    if not answers or not all(one.is_greedy for one in answers):
        return []
    message = (
        f"{len(answers):,} answers, each token the first choice of the model that gave them: flips "
        "can only be lost, and perplexity favours it; look at kl and at the answers"
    )
    return [Notice(code="greedy_answers", message=message)]


def _described(
    examples: Sequence[Example], template: ChatTemplate | None, scope: Scope
) -> dict[str, Any]:
    """What of the scope says which tokens are scored, where it applies."""
    answers = [one for one in examples if isinstance(one, Answer)]
    has_parts = (
        template is not None
        or bool(answers)
        or any(isinstance(one, Document) and one.parts for one in examples)
    )
    found: dict[str, Any] = {}
    if has_parts:
        found |= {"score": scope.score}
    if template is not None:
        found |= {"chat_template": template.sha256[:16]}
        found |= {} if scope.score_reasoning else {"score_reasoning": "no"}
    if answers:
        found |= {"answers": "greedy" if all(one.is_greedy for one in answers) else "sampled"}
    if scope.max_tokens is not None:
        found |= {"max_tokens": scope.max_tokens, "seed": scope.seed}
    return found
