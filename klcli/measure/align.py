"""What both sides are asked about: the tokens, windows and ids that they share.

Two live models: the windows come from the corpus and the reference's tokenizer, once the two
vocabularies are found equal. With a logit file they come from the file, and a live model follows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from klcli.errors import MismatchError, Notice, UsageError
from klcli.sources.llamacpp import BaseFileSource, as_read_by
from klcli.sources.options import Task
from klcli.sources.rows import UNBOUNDED
from klcli.sources.toplogprobs import TopLogprobsSource
from klcli.text.corpus import Corpus, DocumentSplit
from klcli.text.masking import Pll, choose_masked_protocol, plan_masked_windows
from klcli.text.vocabulary import (
    Encoding,
    NamedTokens,
    NumberedTokens,
    TokenNames,
    Vocabulary,
    check_same_vocabulary,
)
from klcli.text.windows import (
    NO_TARGET,
    Bos,
    ProtocolName,
    SpecialTokens,
    TokenizedDocument,
    Window,
    WindowTable,
    choose_protocol,
    plan_windows,
    tokenize,
)


class Side(Protocol):
    """What aligning needs to know of a source."""

    name: str
    width: int
    task: Task

    @property
    def longest(self) -> int | None:
        """The most tokens that a live model can read at once; None without a limit."""
        ...

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The tokenizer, None for a file that has none."""
        ...

    @property
    def windows(self) -> WindowTable | None:
        """The windows that the source brings; None for a live model, which takes any."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which tokens a user wants scored: the options of the same names."""

    protocol: ProtocolName | None = None
    context: int | None = None
    stride: int | None = None
    score_from: int | None = None
    bos: Bos = "auto"
    special_tokens: SpecialTokens | None = None
    documents: DocumentSplit = "file"
    limit: int | None = None
    pll: Pll | None = None
    mask_every: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """What is scored, settled. Ids from ``vocabulary_size`` on stand for no token."""

    table: WindowTable
    names: TokenNames
    vocabulary_size: int
    notices: tuple[Notice, ...]


def align(sides: Sequence[Side], corpora: Sequence[Corpus], scope: Scope) -> Alignment:
    """Settle which tokens one source, or two, are scored on.

    Raises:
        UsageError: a corpus is missing, or an option does not apply.
        CorpusError: a corpus is too short.
        MismatchError: the sides do not share a vocabulary, their tokens or their windows.
    """
    _check_tasks(sides, scope)
    notices = [*_check_vocabularies(sides), *_check_widths(sides)]
    found = _from_files(sides, corpora, scope) or _from_corpora(sides, corpora, scope)
    table = found.table.limited(scope.limit)
    _check_ids(table, sides)
    return replace(found, table=table, notices=(*notices, *found.notices))


def _check_tasks(sides: Sequence[Side], scope: Scope) -> None:
    tasks = [side.task for side in sides]
    if len(set(tasks)) > 1:
        raise MismatchError(
            f"{sides[0].name} is {tasks[0]} and {sides[1].name} is {tasks[1]}: a causal model "
            "predicts the next token and a masked one a hidden token; compare two of one kind"
        )
    masked = {"--pll": scope.pll, "--mask-every": scope.mask_every}
    causal = {
        "--protocol": scope.protocol,
        "--score-from": scope.score_from,
        "--bos": None if scope.bos == "auto" else scope.bos,
    }
    foreign = masked if tasks[0] == "causal" else causal
    if named := [option for option, value in foreign.items() if value is not None]:
        raise UsageError(f"{sides[0].name} is a {tasks[0]} model: leave out {', '.join(named)}")


def _from_corpora(sides: Sequence[Side], corpora: Sequence[Corpus], scope: Scope) -> Alignment:
    vocabulary = sides[0].vocabulary
    if not corpora or vocabulary is None:
        raise UsageError("name a CORPUS: a text file, or - for stdin")
    longest = min((side.longest for side in sides if side.longest is not None), default=None)
    plan = _masked_plan if sides[0].task == "masked" else _causal_plan
    table = plan(corpora, vocabulary, longest, scope)
    for side in sides[1:]:
        _check_mask(side, sides[0].name, table)
    asked = {"documents": scope.documents, "limit": scope.limit}
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
        scope.protocol or "rolling",
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
        f"{how}; --special-tokens says which"
    )
    return [Notice(code="special_tokens_in_text", message=message)]


def _from_files(sides: Sequence[Side], corpora: Sequence[Corpus], scope: Scope) -> Alignment | None:
    vocabulary = next((side.vocabulary for side in sides if side.vocabulary is not None), None)
    tables = [
        (side.name, _as_read(side, side.windows, vocabulary))
        for side in sides
        if side.windows is not None
    ]
    if not tables:
        return None
    name, table = max(tables, key=lambda named: _knowledge(named[1]))
    _refuse_window_options(name, scope)
    if len(sides) == 1 and not _has_tokens(table):
        raise MismatchError(
            f"{name} does not say which tokens its rows are about, so that nothing can be scored: "
            "add an array named tokens, or --token-ids"
        )
    notices = []
    for other_name, other in tables:
        if _has_tokens(other):
            _check_same_windows(name, table, other_name, other)
        else:
            _check_same_shape(name, table, other_name, other)
            notices.append(_no_tokens(other_name))
    for side in sides:
        if side.windows is None:
            _check_can_follow(side, name, table)
    if not table.protocol:
        table = replace(table, protocol=_protocol_of_file(table))
    if corpora:
        from_base_file = any(isinstance(s, BaseFileSource) and s.name == name for s in sides)
        table = _with_text(table, name, corpora, vocabulary, scope, is_cut=from_base_file)
    width = min(side.width for side in sides)
    return Alignment(
        table=replace(table, protocol=dict(table.protocol) | _limit(scope)),
        names=vocabulary or _names_of(sides) or NumberedTokens(width),
        vocabulary_size=vocabulary.size if vocabulary else width,
        notices=tuple(notices),
    )


def _as_read(side: Side, table: WindowTable, vocabulary: Vocabulary | None) -> WindowTable:
    """A base file of llama.cpp does not say whether a BOS was put into its chunks."""
    if isinstance(side, BaseFileSource) and vocabulary is not None:
        return as_read_by(table, vocabulary)
    return table


def _names_of(sides: Sequence[Side]) -> TokenNames | None:
    """The tokens of two files of top log-probabilities, by the bytes that they name."""
    named = [side.names for side in sides if isinstance(side, TopLogprobsSource)]
    pieces = {i: p for one in named if isinstance(one, NamedTokens) for i, p in one.pieces.items()}
    return NamedTokens(UNBOUNDED, pieces) if pieces else None


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


def _has_tokens(table: WindowTable) -> bool:
    return bool((table.windows[0].inputs >= 0).all())


def _knowledge(table: WindowTable) -> tuple[bool, bool]:
    """Whether the tokens are known, and the one after each window too."""
    return _has_tokens(table), bool(table.windows[0].targets[-1] != NO_TARGET)


def _no_tokens(name: str) -> Notice:
    return Notice(
        code="no_tokens",
        message=f"{name} does not say which tokens it is about: nothing shows that the two sides "
        "speak of the same text; add an array named tokens, or --token-ids",
    )


def _refuse_window_options(name: str, scope: Scope) -> None:
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


def _check_can_follow(side: Side, name: str, table: WindowTable) -> None:
    if not _has_tokens(table):
        raise MismatchError(
            f"{name} holds no token ids, so {side.name} cannot be run on its windows: add an array "
            "named tokens to the file, or give --token-ids"
        )
    _check_mask(side, name, table)
    longest = max(len(window.inputs) for window in table.windows)
    if side.longest is not None and longest > side.longest:
        raise MismatchError(
            f"{name} has windows of {longest} tokens and {side.name} can read {side.longest}: make "
            "the file with shorter windows"
        )


def _check_mask(side: Side, name: str, table: WindowTable) -> None:
    """A masked model must know the id that stands for a hidden token."""
    masking, vocabulary = table.windows[0].masking, side.vocabulary
    if masking is None or vocabulary is None or vocabulary.mask_id == masking.mask_id:
        return
    raise MismatchError(
        f"{name} hides tokens behind id {masking.mask_id} and {side.name} behind id "
        f"{vocabulary.mask_id}: compare models that share a tokenizer"
    )


def _with_text(
    table: WindowTable,
    name: str,
    corpora: Sequence[Corpus],
    vocabulary: Vocabulary | None,
    scope: Scope,
    *,
    is_cut: bool,
) -> WindowTable:
    """The table with the corpus' text behind its tokens, once they are found equal.

    ``is_cut``: the file lacks the remainder of the text that made no whole chunk.
    """
    if vocabulary is None:
        raise UsageError(
            f"{name} brings its own tokens; to hold them against a CORPUS give --tokenizer"
        )
    if not _has_tokens(table):
        raise MismatchError(
            f"{name} holds no token ids to hold against the CORPUS: add an array named tokens to "
            "the file, or give --token-ids"
        )
    parse = (scope.special_tokens or table.protocol["special_tokens"]) == "parse"
    texts = [
        (number, document.name, _encode(document.text, table, vocabulary, parse, is_cut))
        for number, corpus in enumerate(corpora)
        for document in corpus.documents
    ]
    if len(texts) != len(table.documents):
        raise MismatchError(
            f"the corpus has {len(texts)} documents and {name} has {len(table.documents)}: "
            "give the text that the file was made from, or none"
        )
    documents = []
    for document, (number, text_name, encoding) in zip(table.documents, texts, strict=True):
        length = min(len(document.ids), len(encoding.ids))
        wrong = np.flatnonzero(document.ids[:length] != encoding.ids[:length])
        if wrong.size or len(document.ids) != len(encoding.ids):
            where = f"first at token {wrong[0]}" if wrong.size else "in length"
            raise MismatchError(
                f"{text_name} has {len(encoding.ids)} tokens and {name} has {len(document.ids)}; "
                f"they differ {where}: give the text that the file was made from, or none"
            )
        documents.append(
            TokenizedDocument(corpus=number, name=text_name, ids=document.ids, encoding=encoding)
        )
    return replace(table, documents=tuple(documents), corpora=tuple(corpora))


def _encode(
    text: str, table: WindowTable, vocabulary: Vocabulary, parse: bool, is_cut: bool
) -> Encoding:
    """The tokens of a text, as the protocol of a table has them."""
    if table.protocol["name"] == "llama.cpp":
        text = text.removesuffix("\n")
    encoding = vocabulary.encode(text, parse_special=parse)
    length = len(table.documents[0].ids)
    if not is_cut or len(encoding.ids) - length >= table.protocol["context"]:
        return encoding
    ids, ends, words = encoding.ids[:length], encoding.ends[:length], encoding.words[:length]
    return Encoding(ids=ids, ends=ends, words=words)


def _check_vocabularies(sides: Sequence[Side]) -> list[Notice]:
    known = [(side.name, side.vocabulary) for side in sides if side.vocabulary is not None]
    if len(known) < 2:
        return []
    (left_name, left), (right_name, right) = known
    differences = check_same_vocabulary(left, right, (left_name, right_name))
    return [Notice(code="special_tokens_differ", message=message) for message in differences]


def _check_widths(sides: Sequence[Side]) -> list[Notice]:
    """Where one side is wider its last ids must be padding: cut, and the rest renormalised."""
    widths = [side.width for side in sides]
    if len(set(widths)) == 1 or UNBOUNDED in widths:
        return []
    common = min(widths)
    for side in sides:
        lost = _tokens_beyond(side.vocabulary, common)
        if lost:
            raise MismatchError(
                f"{sides[0].name} predicts {widths[0]} ids and {sides[1].name} {widths[1]}, and "
                f"{len(lost)} ids beyond {common} stand for tokens, first {lost[0]!r}: compare "
                "models of one vocabulary"
            )
    wider = sides[int(np.argmax(widths))]
    message = (
        f"{sides[0].name} predicts {widths[0]} ids and {sides[1].name} {widths[1]}: the last "
        f"{wider.width - common} of {wider.name} were cut and the rest renormalised"
    )
    return [Notice(code="padded_vocabulary", message=message)]


def _tokens_beyond(vocabulary: Vocabulary | None, width: int) -> list[str]:
    if vocabulary is None:
        return []
    return [token for i, token in sorted(vocabulary.ordinary_tokens().items()) if i >= width]


def _check_ids(table: WindowTable, sides: Sequence[Side]) -> None:
    """Every id that occurs must exist on both sides, and mean the same on both."""
    occurring = np.unique(
        np.concatenate([array for w in table.windows for array in (w.inputs, w.targets)])
    )
    for side in sides:
        if occurring[-1] >= side.width:
            raise MismatchError(
                f"the text has token id {occurring[-1]} and {side.name} predicts only "
                f"{side.width} ids: give the tokenizer that belongs to the model"
            )
    vocabularies = [side.vocabulary for side in sides if side.vocabulary is not None]
    for token_id in occurring[occurring >= 0].tolist() if len(vocabularies) == 2 else []:
        strings = [vocabulary.string(token_id) for vocabulary in vocabularies]
        if strings[0] != strings[1]:
            raise MismatchError(
                f"token id {token_id} occurs in the text; it is {strings[0]!r} in {sides[0].name} "
                f"and {strings[1]!r} in {sides[1].name}: compare models that share a tokenizer"
            )
