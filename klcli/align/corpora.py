"""Windows out of texts, for live models."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from klcli.align.alignment import Alignment
from klcli.align.checks import check_mask
from klcli.align.tokenising import Encode, Tokenised, tokenise
from klcli.errors import Notice, UsageError, some_of
from klcli.sources import Source
from klcli.text.corpus import Corpus, Document
from klcli.text.cutting import encode_document, plan_windows
from klcli.text.masking import choose_masked_protocol, plan_masked_windows
from klcli.text.protocols import DEFAULT_PROTOCOL, Protocol, choose_protocol
from klcli.text.scope import Scope
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import TokenizedDocument, Window, WindowTable


def from_corpora(sources: Sequence[Source], corpora: Sequence[Corpus], scope: Scope) -> Alignment:
    """Settle the windows of texts by the reference's tokenizer.

    Raises:
        UsageError: there is no text, or an option does not apply to it.
        CorpusError: a text is too short.
        MismatchError: a masked model hides tokens behind another id.
    """
    vocabulary = sources[0].vocabulary
    if not corpora or vocabulary is None:
        raise UsageError("name a CORPUS: a text file, or - for stdin")
    longest = min(
        (source.longest for source in sources if source.longest is not None), default=None
    )
    check_parts(corpora, scope, sources[0])
    plan = _masked_plan if sources[0].task == "masked" else _causal_plan
    table, notices = plan(corpora, vocabulary, longest, scope)
    for source in sources[1:]:
        check_mask(source, sources[0].name, table)
    asked = {"documents": scope.split, "limit": scope.limit}
    table = replace(table, protocol=dict(table.protocol) | asked)
    parsed = table.protocol["special_tokens"] == "parse"
    return Alignment(
        table=table,
        names=vocabulary,
        vocabulary_size=vocabulary.size,
        notices=(
            *notices,
            *_split_documents(table),
            *_not_scored(table),
            *_special_strings(table.corpora, vocabulary, parsed),
        ),
    )


def check_parts(corpora: Sequence[Corpus], scope: Scope, source: Source) -> None:
    """Hold the options, and the task of a model, against documents of which parts are scored.

    Raises:
        UsageError: they do not go together.
    """
    first = next((d for corpus in corpora for d in corpus.documents if d.parts), None)
    if first is None:
        return
    if source.task == "masked":
        raise UsageError(
            f"{source.name} is a masked model, and {first.name} has a prompt and an answer to it: "
            "give plain texts, or name the field of one with --text-field"
        )
    given = {
        "--protocol": scope.protocol if scope.protocol != DEFAULT_PROTOCOL else None,
        "--stride": scope.stride,
        "--score-from": scope.score_from,
        "--bos": scope.bos if first.is_rendered and scope.bos != "auto" else None,
        "--special-tokens": scope.special_tokens if first.is_rendered else None,
    }
    if named := [option for option, value in given.items() if value is not None]:
        raise UsageError(
            f"{first.name} has answers, which are read behind their prompts as they are: leave out "
            f"{', '.join(named)}"
        )


def _causal_plan(
    corpora: Sequence[Corpus], vocabulary: Vocabulary, longest: int | None, scope: Scope
) -> tuple[WindowTable, tuple[Notice, ...]]:
    protocol = choose_protocol(
        scope.protocol or DEFAULT_PROTOCOL,
        vocabulary=vocabulary,
        longest=longest,
        context=scope.context,
        stride=scope.stride,
        score_from=scope.score_from,
        bos=scope.bos,
        special_tokens=scope.special_tokens,
    )
    found = _tokenise(corpora, lambda one: encode_document(one, vocabulary, protocol), scope)
    protocol, whole = _read_whole(protocol, found.documents, longest, scope)
    table = plan_windows(found.documents, protocol, vocabulary.prefix_id, whole)
    said = asdict(protocol)
    if whole is not None and whole != protocol.context:
        said["context_of_answers"] = whole
    if all(document.is_rendered for document in found.documents):
        said |= {"bos": "none", "special_tokens": "parse"}
    return replace(table, protocol=said, corpora=found.corpora), found.notices


def _read_whole(
    protocol: Protocol,
    documents: Sequence[TokenizedDocument],
    longest: int | None,
    scope: Scope,
) -> tuple[Protocol, int | None]:
    """The context of documents with parts: an answer is read behind all of its prompt.

    That is as much as the model can read, where no context is given. Without other documents it is
    that of the protocol.
    """
    lengths = [len(document.ids) for document in documents if document.parts]
    if not lengths or scope.context is not None:
        return protocol, None
    room = max(2, *lengths) + 1  # a BOS may stand before it
    whole = room if longest is None else min(room, longest)
    if len(lengths) < len(documents):
        return protocol, whole
    return replace(protocol, context=whole, stride=whole), whole


def _masked_plan(
    corpora: Sequence[Corpus], vocabulary: Vocabulary, longest: int | None, scope: Scope
) -> tuple[WindowTable, tuple[Notice, ...]]:
    protocol = choose_masked_protocol(
        vocabulary=vocabulary,
        longest=longest,
        context=scope.context,
        stride=scope.stride,
        pll=scope.pll or "original",
        mask_every=scope.mask_every,
        special_tokens=scope.special_tokens,
    )
    parse, words = protocol.special_tokens == "parse", protocol.pll == "word"
    found = _tokenise(
        corpora,
        lambda one: vocabulary.encode(one.text, parse_special=parse, find_words=words),
        scope,
    )
    table = plan_masked_windows(found.documents, protocol, vocabulary)
    said = asdict(protocol) | {"score_from": None, "bos": None}
    return replace(table, protocol=said, corpora=found.corpora), found.notices


def _tokenise(corpora: Sequence[Corpus], encode: Encode, scope: Scope) -> Tokenised:
    return tokenise(corpora, encode, most=scope.max_tokens, seed=scope.seed)


def _split_documents(table: WindowTable) -> list[Notice]:
    """That answers are read without the beginning of their documents, which are too long."""
    context = max(len(window.inputs) for window in table.windows)
    numbers = {window.document for window in table.windows if not _is_at_the_start(window)}
    split = [table.documents[number] for number in sorted(numbers)]
    split = [document for document in split if document.parts]
    if not split:
        return []
    first = split[0]
    are = "1 document is" if len(split) == 1 else f"{len(split):,} documents are"
    message = (
        f"{are} longer than the {context:,} tokens that are read at once (first {first.name}, "
        f"{len(first.ids):,} tokens): what is behind is read without the beginning"
    )
    return [Notice(code="documents_split", message=message)]


def _not_scored(table: WindowTable) -> list[Notice]:
    """That nothing of some documents is scored: they are too short, or lost their answers."""
    scored = {window.document for window in table.windows}
    others = [one for number, one in enumerate(table.documents) if number not in scored]
    if not others:
        return []
    message = (
        f"nothing is scored of {len(others):,} of {len(table.documents):,} documents, which are "
        f"too short or have no answer left: {some_of([one.name for one in others])}"
    )
    return [Notice(code="documents_not_scored", message=message)]


def _is_at_the_start(window: Window) -> bool:
    """Whether a window reads its document from the first token on."""
    return window.position - 1 <= window.score_from


def _special_strings(
    corpora: Sequence[Corpus], vocabulary: Vocabulary, parse: bool
) -> list[Notice]:
    """That strings of special tokens stand in a text; in a rendered one they belong there."""
    texts = [one.content for corpus in corpora for one in _plain(corpus)]
    counts = {s: sum(t.count(s.encode()) for t in texts) for s in vocabulary.special_strings}
    if not (hits := sum(counts.values())):
        return []
    most = max(counts, key=lambda string: counts[string])
    # Some tokenizers have the string among their ordinary tokens, whatever is asked of them.
    parsed = parse or [vocabulary.string(i) for i in vocabulary.encode(most).ids] == [most]
    how = "special tokens" if parsed else "text"
    message = (
        f"{hits} strings of special tokens stand in the text, such as {most}, and were read as "
        f"{how}; change that with --special-tokens"
    )
    return [Notice(code="special_tokens_in_text", message=message)]


def _plain(corpus: Corpus) -> list[Document]:
    return [document for document in corpus.documents if not document.is_rendered]
