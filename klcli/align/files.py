"""Windows that a recording or a logit file brings, which everything else follows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from klcli.align.alignment import Alignment
from klcli.align.checks import check_mask
from klcli.align.tokenising import tokenise
from klcli.errors import MismatchError, Notice, UsageError
from klcli.sources import UNBOUNDED, Source
from klcli.text.corpus import Corpus, Document
from klcli.text.cutting import encode_rendered, text_read_by
from klcli.text.scope import Scope
from klcli.text.vocabulary import Encoding, NamedTokens, NumberedTokens, TokenNames, Vocabulary
from klcli.text.windows import NO_TARGET, Window, WindowTable

if TYPE_CHECKING:
    from klcli.sources.files.toplogprobs import TopLogprobsSource


def from_files(
    sources: Sequence[Source], corpora: Sequence[Corpus], scope: Scope
) -> Alignment | None:
    """Settle the windows by those that sources bring; None where both are live models.

    Raises:
        UsageError: an option or a text that does not apply to them.
        MismatchError: they do not fit each other, a model or the text.
    """
    _number_together(sources)
    vocabulary = next(
        (source.vocabulary for source in sources if source.vocabulary is not None), None
    )
    brought = [(source.name, source.windows_for(vocabulary)) for source in sources]
    tables = [(name, table) for name, table in brought if table is not None]
    if not tables:
        return None
    name, table = max(tables, key=lambda named: _knowledge(named[1]))
    refuse_window_options(name, scope)
    if len(sources) == 1 and not table.has_tokens:
        raise MismatchError(
            f"{name} does not say which tokens its rows are about, so that nothing can be scored: "
            "add an array named tokens, or --token-ids"
        )
    notices = [*_check_brought(name, table, tables), *_unseen_contexts(sources)]
    for source in sources:
        if source.is_live:
            _check_can_follow(source, name, table)
    if not table.protocol:
        table = replace(table, protocol=_protocol_of_file(table))
    if corpora:
        table = _with_text(table, name, corpora, vocabulary, scope)
    width = min(source.width for source in sources)
    return Alignment(
        table=replace(table, protocol=dict(table.protocol) | _limit(scope)),
        names=vocabulary or _names_of(sources) or NumberedTokens(width),
        vocabulary_size=vocabulary.size if vocabulary else width,
        notices=tuple(notices),
    )


def _check_brought(
    name: str, table: WindowTable, tables: Sequence[tuple[str, WindowTable]]
) -> list[Notice]:
    """Hold all windows that were brought against those of ``name``, which say the most."""
    notices = []
    for other_name, other in tables:
        if other.has_tokens:
            _check_same_windows(name, table, other_name, other)
        else:
            _check_same_shape(name, table, other_name, other)
            notices.append(_no_tokens(other_name))
    return notices


def _number_together(sources: Sequence[Source]) -> None:
    """Give tokens that are known by their bytes alone ids that mean the same on both sides."""
    from klcli.sources.files.toplogprobs import number_tokens

    answers = _answers(sources)
    named = [source.name for source in answers if source.vocabulary is None]
    others = [source.name for source in sources if source.name not in named]
    if named and others:
        raise UsageError(
            f"{named[0]} names its tokens and {others[0]} numbers them: say with --tokenizer which "
            "model's tokens they are"
        )
    numbers = number_tokens(token for source in answers for token in source.tokens)
    for source in answers:
        source.number(numbers)


def _unseen_contexts(sources: Sequence[Source]) -> list[Notice]:
    """A model cannot read the prompt that a server's answer does not hold."""
    live = next((source.name for source in sources if source.is_live), None)
    return [
        Notice(
            code="unseen_context",
            message=f"{source.name} begins with a token that was itself predicted, after a prompt "
            f"that the file does not hold; {live} reads the text without it, so the two sides "
            "differ by more than their models. Ask the server for a completion with echo",
        )
        for source in _answers(sources)
        if live is not None and source.lacks_context
    ]


def _answers(sources: Sequence[Source]) -> "list[TopLogprobsSource]":
    """The files of top log-probabilities among the sources."""
    from klcli.sources.files.toplogprobs import TopLogprobsSource  # which brings torch

    return [source for source in sources if isinstance(source, TopLogprobsSource)]


def _names_of(sources: Sequence[Source]) -> TokenNames | None:
    """The tokens of two files of top log-probabilities, by the bytes that they name."""
    named = [source.names for source in sources if isinstance(source.names, NamedTokens)]
    known = {i: token for one in named for i, token in one.token_bytes.items()}
    return NamedTokens(UNBOUNDED, known) if known else None


def _limit(scope: Scope) -> dict[str, int]:
    """The limit of this run; without one that of the recording stands."""
    return {} if scope.limit is None else {"limit": scope.limit}


def _protocol_of_file(table: WindowTable) -> dict[str, Any]:
    first = table.windows[0]
    return {
        "name": "file",
        "context": len(first.inputs),
        "stride": None,
        "score_from": first.score_from,
        "bos": None,
        "special_tokens": None,
        "documents": None,
        "limit": None,
    }


def _knowledge(table: WindowTable) -> tuple[bool, bool]:
    """Whether the tokens are known, and the one after each window too."""
    return table.has_tokens, bool(table.windows[0].targets[-1] != NO_TARGET)


def _no_tokens(name: str) -> Notice:
    return Notice(
        code="no_tokens",
        message=f"{name} does not say which tokens it is about: nothing shows that both sides "
        "are about the same text; add an array named tokens, or --token-ids",
    )


def refuse_window_options(name: str, scope: Scope) -> None:
    """Refuse options that say which windows are read: a file brings its own.

    Raises:
        UsageError: one is given.
    """
    given = {
        "--protocol": scope.protocol,
        "--context": scope.context,
        "--stride": scope.stride,
        "--score-from": scope.score_from,
        "--bos": None if scope.bos == "auto" else scope.bos,
        "--pll": scope.pll,
        "--mask-every": scope.mask_every,
    }
    named = [option for option, value in given.items() if value is not None]
    if named:
        raise UsageError(f"the windows come from {name}: leave out {', '.join(named)}")


def _check_same_shape(name: str, table: WindowTable, other_name: str, other: WindowTable) -> None:
    shapes = [(len(t.windows), len(t.windows[0].inputs)) for t in (table, other)]
    if shapes[0] != shapes[1]:
        raise MismatchError(
            f"{name} has {_shape(shapes[0])} and {other_name} has {_shape(shapes[1])}: "
            "give two files made from the same windows"
        )
    for left, right in zip(table.windows, other.windows, strict=True):
        if left.score_from != right.score_from:
            raise MismatchError(
                f"window {left.number} is scored from row {left.score_from} in {name} and from row "
                f"{right.score_from} in {other_name}: give files with the same score_from"
            )


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]} windows of {shape[1]} rows"


def _check_same_windows(name: str, table: WindowTable, other_name: str, other: WindowTable) -> None:
    _check_same_shape(name, table, other_name, other)
    for left, right in zip(table.windows, other.windows, strict=True):
        _check_same_masking(name, left, other_name, right)
        for what in ("inputs", "targets"):
            length = min(len(getattr(left, what)), len(getattr(right, what)))
            a, b = getattr(left, what)[:length], getattr(right, what)[:length]
            differ = (a != b) & (a != NO_TARGET) & (b != NO_TARGET)
            if (at := np.flatnonzero(differ)).size:
                raise MismatchError(
                    f"the tokens differ: {what} {at[0]} of window {left.number} is id {a[at[0]]} "
                    f"in {name} and id {b[at[0]]} in {other_name}; give two files made from one "
                    "text"
                )


def _check_same_masking(name: str, left: Window, other_name: str, right: Window) -> None:
    a, b = left.masking, right.masking
    if a is None or b is None:  # two causal ones: the tasks were found equal
        return
    if a.mask_id != b.mask_id or a.every != b.every or not np.array_equal(a.ends, b.ends):
        raise MismatchError(
            f"{name} and {other_name} hide other tokens from their models in window {left.number}: "
            "record both with the same --pll and --mask-every"
        )


def _check_can_follow(source: Source, name: str, table: WindowTable) -> None:
    if not table.has_tokens:
        raise MismatchError(
            f"{name} holds no token ids, so {source.name} cannot be run on its windows: add an "
            "array named tokens to the file, or give --token-ids"
        )
    check_mask(source, name, table)
    longest = max(len(window.inputs) for window in table.windows)
    if source.longest is not None and longest > source.longest:
        raise MismatchError(
            f"{name} has windows of {longest} tokens and {source.name} can read {source.longest}: "
            "make the file with shorter windows"
        )


def _with_text(
    table: WindowTable,
    name: str,
    corpora: Sequence[Corpus],
    vocabulary: Vocabulary | None,
    scope: Scope,
) -> WindowTable:
    """The table with the corpus' text behind its tokens, once they are found equal."""
    if vocabulary is None:
        refuse_text(name)
    if not table.has_tokens:
        raise MismatchError(
            f"{name} holds no token ids to hold against the CORPUS: add an array named tokens to "
            "the file, or give --token-ids"
        )
    parse = (scope.special_tokens or table.protocol["special_tokens"]) == "parse"
    made = tokenise(
        corpora,
        lambda one: _encode(one, table, vocabulary, parse),
        most=table.protocol.get("max_tokens"),
        seed=table.protocol.get("seed", 0),
    )
    texts = made.documents
    if len(texts) != len(table.documents):
        raise MismatchError(
            f"the corpus has {len(texts)} documents and {name} has {len(table.documents)}: "
            "give the text that the file was made from, or none"
        )
    for document, text in zip(table.documents, texts, strict=True):
        length = min(len(document.ids), len(text.ids))
        wrong = np.flatnonzero(document.ids[:length] != text.ids[:length])
        if wrong.size or len(document.ids) != len(text.ids):
            where = f"first at token {wrong[0]}" if wrong.size else "in length"
            raise MismatchError(
                f"{text.name} has {len(text.ids)} tokens and {name} has {len(document.ids)}; "
                f"they differ {where}: give the text that the file was made from, or none"
            )
    documents = tuple(
        replace(text, ids=document.ids)
        for document, text in zip(table.documents, texts, strict=True)
    )
    return replace(table, documents=documents, corpora=made.corpora)


def refuse_text(name: str) -> NoReturn:
    """Refuse a text beside files that have no tokenizer to read it with."""
    raise UsageError(
        f"{name} brings its own tokens; to hold them against a CORPUS give --tokenizer"
    )


def _encode(
    document: Document, table: WindowTable, vocabulary: Vocabulary, parse: bool
) -> Encoding:
    """The tokens of a text, as the protocol of a table has them."""
    if document.is_rendered:
        return encode_rendered(document, vocabulary)
    text = text_read_by(document.text, table.protocol["name"])
    encoding = vocabulary.encode(text, parse_special=parse)
    length = len(table.documents[0].ids)
    if not table.lacks_remainder or len(encoding.ids) - length >= table.protocol["context"]:
        return encoding
    ids, ends, words = encoding.ids[:length], encoding.ends[:length], encoding.words[:length]
    return Encoding(ids=ids, ends=ends, words=words)
