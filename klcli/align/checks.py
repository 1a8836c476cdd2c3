"""What the sources of a run must share."""

from collections.abc import Sequence

import numpy as np

from klcli.choices import Task
from klcli.errors import MismatchError, Notice, UsageError
from klcli.sources import UNBOUNDED, Source
from klcli.text.corpus import Corpus
from klcli.text.scope import Scope
from klcli.text.splits import find_splits
from klcli.text.vocabulary import Vocabulary, check_same_vocabulary
from klcli.text.windows import WindowTable

SAMPLE = 100_000
"""Bytes of the text on which two tokenizers are held against each other."""


def check_tasks(sources: Sequence[Source], scope: Scope) -> None:
    """Hold the tasks against each other, and the options against the task."""
    tasks = [source.task for source in sources]
    if len(set(tasks)) > 1:
        raise MismatchError(
            f"{sources[0].name} is {tasks[0]} and {sources[1].name} is {tasks[1]}: a causal model "
            "predicts the next token and a masked one a hidden token; compare two of one kind"
        )
    check_options(sources[0].name, tasks[0], scope)


def check_options(name: str, task: Task, scope: Scope) -> None:
    """Hold the options against the task of a model.

    Raises:
        UsageError: one is for models of the other task.
    """
    masked = {"--pll": scope.pll, "--mask-every": scope.mask_every}
    causal = {
        "--protocol": scope.protocol,
        "--score-from": scope.score_from,
        "--bos": None if scope.bos == "auto" else scope.bos,
    }
    foreign = masked if task == "causal" else causal
    if named := [option for option, value in foreign.items() if value is not None]:
        raise UsageError(f"{name} is a {task} model: leave out {', '.join(named)}")


def check_vocabularies(sources: Sequence[Source]) -> list[Notice]:
    """Hold two vocabularies against each other; notices of special tokens that differ."""
    known = [
        (source.name, source.vocabulary) for source in sources if source.vocabulary is not None
    ]
    if len(known) < 2:
        return []
    (left_name, left), (right_name, right) = known
    differences = check_same_vocabulary(left, right, (left_name, right_name))
    return [Notice(code="special_tokens_differ", message=message) for message in differences]


def check_splits(sources: Sequence[Source], corpora: Sequence[Corpus]) -> list[Notice]:
    """What two models of one vocabulary make of the text: its first 100 kB, and its beginning."""
    known = [(s.name, s.vocabulary) for s in sources if s.vocabulary is not None and s.is_live]
    if len(known) < 2 or not corpora:
        return []
    (name, left), (other, right) = known
    notices = []
    if left.adds_bos != right.adds_bos:
        adding, plain = (name, other) if left.adds_bos else (other, name)
        notices.append(
            Notice(
                code="bos_differs",
                message=f"the tokenizer of {adding} puts its BOS before a text, and that of "
                f"{plain} does not: both models read what {name} reads; see --bos",
            )
        )
    content = b"".join(document.content for corpus in corpora for document in corpus.documents)
    text = content[:SAMPLE].decode(errors="ignore")
    if left.to_json() != right.to_json() and (found := find_splits(left, right, text)):
        ours, theirs = (" ".join(map(repr, pieces)) for pieces in found.pieces)
        notices.append(
            Notice(
                code="tokenizers_differ",
                message=f"the tokenizers split the text differently: {found.differing} of "
                f"{found.tokens} tokens of its first 100 kB, first at byte {found.first}: {ours} "
                f"in {name}, {theirs} in {other}; both models read the tokens of {name}",
            )
        )
    return notices


def check_widths(sources: Sequence[Source]) -> list[Notice]:
    """Where one source is wider its last ids must be padding: cut, and the rest renormalised."""
    widths = [source.width for source in sources]
    if len(set(widths)) == 1 or UNBOUNDED in widths:
        return []
    common = min(widths)
    for source in sources:
        lost = _tokens_beyond(source.vocabulary, common)
        if lost:
            raise MismatchError(
                f"{sources[0].name} predicts {widths[0]} ids and {sources[1].name} {widths[1]}, "
                f"and {len(lost)} ids beyond {common} stand for tokens, first {lost[0]!r}: compare "
                "models of one vocabulary"
            )
    wider = sources[int(np.argmax(widths))]
    message = (
        f"{sources[0].name} predicts {widths[0]} ids and {sources[1].name} {widths[1]}: the last "
        f"{wider.width - common} of {wider.name} were cut and the rest renormalised"
    )
    return [Notice(code="padded_vocabulary", message=message)]


def _tokens_beyond(vocabulary: Vocabulary | None, width: int) -> list[str]:
    if vocabulary is None:
        return []
    return [token for i, token in sorted(vocabulary.ordinary_tokens().items()) if i >= width]


def check_ids(table: WindowTable, sources: Sequence[Source]) -> None:
    """Every id that occurs must exist on both sources, and mean the same on both."""
    occurring = np.unique(
        np.concatenate([array for w in table.windows for array in (w.inputs, w.targets)])
    )
    for source in sources:
        if occurring[-1] >= source.width:
            raise MismatchError(
                f"the text has token id {occurring[-1]} and {source.name} predicts only "
                f"{source.width} ids: give the tokenizer that belongs to the model"
            )
    vocabularies = [source.vocabulary for source in sources if source.vocabulary is not None]
    for token_id in occurring[occurring >= 0].tolist() if len(vocabularies) == 2 else []:
        strings = [vocabulary.string(token_id) for vocabulary in vocabularies]
        if strings[0] != strings[1]:
            raise MismatchError(
                f"token id {token_id} occurs in the text; it is {strings[0]!r} in "
                f"{sources[0].name} and {strings[1]!r} in {sources[1].name}: compare models that "
                "share a tokenizer"
            )


def check_mask(source: Source, name: str, table: WindowTable) -> None:
    """A masked model must know the id that stands for a hidden token."""
    masking, vocabulary = table.windows[0].masking, source.vocabulary
    if masking is None or vocabulary is None or vocabulary.mask_id == masking.mask_id:
        return
    raise MismatchError(
        f"{name} hides tokens behind id {masking.mask_id} and {source.name} behind id "
        f"{vocabulary.mask_id}: compare models that share a tokenizer"
    )
