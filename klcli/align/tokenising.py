"""Documents as tokens: each with its parts, and of a data set that is drawn from only some."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from klcli.errors import CorpusError, Notice, some_of
from klcli.text.corpus import Corpus, Document, Part
from klcli.text.parts import parts_in_tokens
from klcli.text.vocabulary import Encoding
from klcli.text.windows import TokenizedDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenised:
    """Documents with their tokens, the corpora that they are of, and what a reader should know."""

    documents: tuple[TokenizedDocument, ...]
    corpora: tuple[Corpus, ...]
    notices: tuple[Notice, ...]


Encode = Callable[[Document], Encoding]


def tokenise(
    corpora: Sequence[Corpus], encode: Encode, *, most: int | None = None, seed: int = 0
) -> Tokenised:
    """Make tokens of documents.

    Args:
        corpora: what holds them.
        encode: makes the tokens of one.
        most: about how many tokens are to be scored: documents are drawn at random until they have
            as many. All for None.
        seed: which are drawn.

    Raises:
        CorpusError: no answer can be scored.
    """
    places = [(c, d) for c, corpus in enumerate(corpora) for d in range(len(corpus.documents))]
    order = range(len(places)) if most is None else _shuffled(len(places), seed)
    found: dict[int, TokenizedDocument] = {}
    lost: list[tuple[str, Part]] = []
    scored = 0
    for place in order:
        if most is not None and scored >= most:
            break
        number, within = places[place]
        document = corpora[number].documents[within]
        found[place], parts = _tokenised(number, document, encode(document))
        lost += [(document.name, part) for part in parts]
        scored += int(found[place].is_scored.sum())
    if lost and not scored:
        raise CorpusError(f"nothing to score: {_left_out(lost)}")
    kept = [places[place] for place in sorted(found)]
    return Tokenised(
        documents=tuple(found[place] for place in sorted(found)),
        corpora=tuple(_only(corpora, kept)),
        notices=(Notice(code="left_out", message=_left_out(lost)),) if lost else (),
    )


def _shuffled(count: int, seed: int) -> list[int]:
    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order


def _tokenised(
    corpus: int, document: Document, encoding: Encoding
) -> tuple[TokenizedDocument, list[Part]]:
    """A document with its tokens, and the parts of it that cannot be scored."""
    parts, lost = parts_in_tokens(document.parts, encoding.ends)
    tokens = TokenizedDocument(
        corpus=corpus,
        name=document.name,
        ids=encoding.ids,
        encoding=encoding,
        parts=parts,
        group=document.group,
        is_rendered=document.is_rendered,
    )
    return tokens, lost


def _only(corpora: Sequence[Corpus], kept: Sequence[tuple[int, int]]) -> Iterator[Corpus]:
    """The corpora with only the documents that were taken, which may be none."""
    taken: list[list[int]] = [[] for _ in corpora]
    for number, within in kept:
        taken[number].append(within)
    for number, corpus in enumerate(corpora):
        own = tuple(corpus.documents[d] for d in taken[number])
        yield replace(corpus, documents=own)


def _left_out(lost: Sequence[tuple[str, Part]]) -> str:
    named = some_of([f"{name} (turn {part.turn})" for name, part in lost])
    answers = "1 answer is" if len(lost) == 1 else f"{len(lost)} answers are"
    return (
        f"{answers} left out, where one token runs from the prompt into the answer: {named}; "
        "end prompts before white space, and begin completions with it"
    )
