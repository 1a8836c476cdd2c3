"""Windows out of a text, for live models."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

from klcli.align.alignment import Alignment
from klcli.align.checks import check_mask
from klcli.errors import Notice, UsageError
from klcli.sources import Source
from klcli.text.corpus import Corpus
from klcli.text.cutting import plan_windows, tokenize
from klcli.text.masking import choose_masked_protocol, plan_masked_windows
from klcli.text.protocols import DEFAULT_PROTOCOL, choose_protocol
from klcli.text.scope import Scope
from klcli.text.vocabulary import Encoding, Vocabulary
from klcli.text.windows import TokenizedDocument, WindowTable


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
    plan = _masked_plan if sources[0].task == "masked" else _causal_plan
    table = plan(corpora, vocabulary, longest, scope)
    for source in sources[1:]:
        check_mask(source, sources[0].name, table)
    asked = {"documents": scope.split, "limit": scope.limit}
    table = replace(table, protocol=dict(table.protocol) | asked, corpora=tuple(corpora))
    parsed = table.protocol["special_tokens"] == "parse"
    return Alignment(
        table=table,
        names=vocabulary,
        vocabulary_size=vocabulary.size,
        notices=tuple(_special_strings(corpora, vocabulary, parsed)),
    )


def _causal_plan(
    corpora: Sequence[Corpus], vocabulary: Vocabulary, longest: int | None, scope: Scope
) -> WindowTable:
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
    documents = _tokenize(corpora, lambda text: tokenize(text, vocabulary, protocol))
    table = plan_windows(documents, protocol, vocabulary.prefix_id)
    return replace(table, protocol=asdict(protocol))


def _masked_plan(
    corpora: Sequence[Corpus], vocabulary: Vocabulary, longest: int | None, scope: Scope
) -> WindowTable:
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
    documents = _tokenize(
        corpora, lambda text: vocabulary.encode(text, parse_special=parse, find_words=words)
    )
    table = plan_masked_windows(documents, protocol, vocabulary)
    return replace(table, protocol=asdict(protocol) | {"score_from": None, "bos": None})


def _tokenize(
    corpora: Iterable[Corpus], encode: Callable[[str], Encoding]
) -> list[TokenizedDocument]:
    documents = []
    for number, corpus in enumerate(corpora):
        for document in corpus.documents:
            encoding = encode(document.text)
            documents.append(
                TokenizedDocument(
                    corpus=number, name=document.name, ids=encoding.ids, encoding=encoding
                )
            )
    return documents


def _special_strings(
    corpora: Sequence[Corpus], vocabulary: Vocabulary, parse: bool
) -> list[Notice]:
    texts = [document.content for corpus in corpora for document in corpus.documents]
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
