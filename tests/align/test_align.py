"""What both sides are asked about: shared ids, shared windows, or an error that names both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from klcli.align import align as align_sources
from klcli.align.alignment import Alignment
from klcli.choices import Task
from klcli.errors import CorpusError, MismatchError, UsageError
from klcli.sources import Source
from klcli.sources.files.arrays import ArraySource, open_arrays
from klcli.sources.options import LoadOptions
from klcli.text.datasets import read_dataset
from klcli.text.scope import Scope
from klcli.text.vocabulary import NumberedTokens, Vocabulary
from klcli.text.windows import WindowTable
from tests.measure.fakes import FakeModel

Array = npt.NDArray[Any]

WORDS = [f"w{number}" for number in range(1, 20)]
SIZE = 20
"""<unk> and nineteen words."""


def align(sides: Sequence[Source], paths: Sequence[str], scope: Scope) -> Alignment:
    """Align on the corpora at some paths."""
    return align_sources(sides, [read_dataset(path, scope.split) for path in paths], scope)


def vocabulary(
    words: list[str] = WORDS,
    *,
    added: Mapping[str, bool] | None = None,
    bos: str | None = None,
) -> Vocabulary:
    """``w7`` is id 7; ``added`` tokens follow, special or not; ``bos`` is put before a text."""
    ids = {word: number for number, word in enumerate(["<unk>", *words])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_tokens([AddedToken(s, special=special) for s, special in (added or {}).items()])
    bos_id = inner.token_to_id(bos) if bos else None
    if bos is not None:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bos_id)]
        )
    return Vocabulary(inner, bos_id=bos_id, eos_id=None)


@dataclass
class Model(FakeModel):
    """A live model, as far as aligning asks."""

    name: str = "model"
    vocabulary: Vocabulary | None = field(default_factory=vocabulary)
    width: int = SIZE
    longest: int | None = 64
    windows: WindowTable | None = None
    task: Task = "causal"


P, Q = "left", "right"


def sentence(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """A text of ten tokens: w1 to w10."""
    path = tmp_path / "text.txt"
    path.write_text(sentence(*range(1, 11)), encoding="utf-8")
    return str(path)


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def codes(alignment: Alignment) -> list[str]:
    return [notice.code for notice in alignment.notices]


def inputs_of(alignment: Alignment) -> list[list[int]]:
    return [window.inputs.tolist() for window in alignment.table.windows]


def targets_of(alignment: Alignment) -> list[list[int]]:
    return [window.targets.tolist() for window in alignment.table.windows]


# Live models: the windows come from the corpus


@pytest.mark.parametrize("sides", [1, 2], ids=["one model", "two models"])
def test_the_windows_come_from_the_corpus_and_the_references_tokenizer(
    corpus: str, sides: int
) -> None:
    alignment = align([Model(P), Model(Q)][:sides], [corpus], Scope(context=4))
    assert inputs_of(alignment) == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert targets_of(alignment) == [[2, 3, 4, 5], [6, 7, 8, 9], [10]]
    assert alignment.notices == ()
    assert alignment.vocabulary_size == SIZE
    assert alignment.names.bytes_of(3).strip() == b"w3"
    assert [text.name for text in alignment.table.corpora] == [corpus]


def test_the_report_is_told_the_whole_protocol(corpus: str) -> None:
    alignment = align([Model()], [corpus], Scope(context=4, stride=2, limit=7))
    assert alignment.table.protocol == {
        "name": "rolling",
        "context": 4,
        "stride": 2,
        "score_from": 0,
        "bos": "none",
        "special_tokens": "text",
        "documents": "file",
        "limit": 7,
    }


def test_the_context_is_what_the_shorter_model_reads(corpus: str) -> None:
    alignment = align([Model(P, longest=64), Model(Q, longest=5)], [corpus], Scope())
    assert alignment.table.protocol["context"] == 5
    unlimited = align([Model(P, longest=None), Model(Q, longest=None)], [corpus], Scope())
    assert unlimited.table.protocol["context"] == 512


def test_a_context_that_one_model_cannot_read_is_a_usage_error(corpus: str) -> None:
    with pytest.raises(UsageError, match="reads 8 tokens at once, and the model can read 5"):
        align([Model(P), Model(Q, longest=5)], [corpus], Scope(context=8))


@pytest.mark.parametrize("sides", [[Model(P)], [Model(P), Model(Q)]], ids=["one", "two"])
def test_live_models_need_a_corpus(sides: list[Model]) -> None:
    with pytest.raises(UsageError, match="name a CORPUS"):
        align(sides, [], Scope())


def test_documents_carry_the_number_of_their_corpus_and_a_limit_holds_for_each(
    tmp_path: Path,
) -> None:
    paths = [
        write(tmp_path, "a.txt", f"{sentence(1, 2, 3, 4, 5)}\n{sentence(6, 7, 8)}"),
        write(tmp_path, "b.txt", sentence(9, 10, 11)),
    ]
    scope = Scope(context=2, documents="line")
    whole = align([Model()], paths, scope)
    assert [document.corpus for document in whole.table.documents] == [0, 0, 1]
    assert inputs_of(whole) == [[1, 2], [3, 4], [6, 7], [9, 10]]
    limited = align([Model()], paths, Scope(context=2, documents="line", limit=1))
    assert inputs_of(limited) == [[1, 2], [9, 10]]


def test_a_text_too_short_to_score_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nothing to score"):
        align([Model()], [write(tmp_path, "a.txt", "w1")], Scope())


@pytest.mark.parametrize(
    ("special_tokens", "how", "ids"),
    [(None, "text", [1, 0, 2, 0]), ("parse", "special tokens", [1, 20, 2, 20])],
)
def test_strings_of_special_tokens_in_the_text_are_counted_in_a_notice(
    tmp_path: Path, special_tokens: Any, how: str, ids: list[int]
) -> None:
    tokens = vocabulary(added={"<|end|>": True, "<|tool|>": True})
    path = write(tmp_path, "a.txt", "w1 <|end|> w2 <|end|> w3")
    alignment = align(
        [Model(vocabulary=tokens, width=22)], [path], Scope(special_tokens=special_tokens)
    )
    assert inputs_of(alignment) == [ids]
    [notice] = alignment.notices
    assert notice.code == "special_tokens_in_text"
    assert notice.message.startswith("2 strings of special tokens stand in the text, such as <|end")
    assert f"were read as {how}" in notice.message


# Vocabularies


def test_vocabularies_that_differ_are_an_error_that_names_both(corpus: str) -> None:
    other = Model(Q, vocabulary(["w1", "other", *WORDS[2:]]))
    with pytest.raises(MismatchError, match="id 2 is 'w2' in left and 'other' in right"):
        align([Model(P), other], [corpus], Scope())


def test_added_tokens_that_differ_are_told(corpus: str) -> None:
    sides = [
        Model(P, vocabulary(added={"<a>": True}), width=21),
        Model(Q, vocabulary(added={"<b>": True}), width=21),
    ]
    [notice] = align(sides, [corpus], Scope()).notices
    assert notice.code == "special_tokens_differ"
    assert "id 20 is '<a>' in left and '<b>' in right" in notice.message


def test_an_added_token_that_differs_and_occurs_in_the_text_is_an_error(tmp_path: Path) -> None:
    sides = [
        Model(P, vocabulary(added={"<a>": True}), width=21),
        Model(Q, vocabulary(added={"<b>": True}), width=21),
    ]
    path = write(tmp_path, "a.txt", "w1 <a> w2")
    assert align(sides, [path], Scope()).table.tokens == 2
    message = "token id 20 occurs in the text; it is '<a>' in left and '<b>' in right"
    with pytest.raises(MismatchError, match=message):
        align(sides, [path], Scope(special_tokens="parse"))


def test_a_bos_that_differs_is_an_error_where_it_is_fed(corpus: str) -> None:
    sides = [
        Model(P, vocabulary(added={"<a>": True}, bos="<a>"), width=21),
        Model(Q, vocabulary(added={"<b>": True}, bos="<b>"), width=21),
    ]
    with pytest.raises(MismatchError, match="it is '<a>' in left and '<b>' in right"):
        align(sides, [corpus], Scope())
    assert align(sides, [corpus], Scope(bos="none")).table.tokens == 9


# Widths


def test_equal_widths_beyond_the_tokens_need_no_notice(corpus: str) -> None:
    assert align([Model(P, width=32), Model(Q, width=32)], [corpus], Scope()).notices == ()


@pytest.mark.parametrize("wider", [P, Q])
def test_padding_of_the_wider_side_is_cut_with_a_notice(corpus: str, wider: str) -> None:
    sides = [Model(P, width=32 if wider == P else 24), Model(Q, width=32 if wider == Q else 24)]
    [notice] = align(sides, [corpus], Scope()).notices
    assert notice.code == "padded_vocabulary"
    widths = "left predicts 32 ids and right 24" if wider == P else "left predicts 24 ids and right"
    assert notice.message.startswith(widths)
    assert f"the last 8 of {wider} were cut" in notice.message


@pytest.mark.parametrize("widths", [(24, 18), (18, 24)], ids=["left wider", "right wider"])
def test_ordinary_tokens_beyond_the_common_width_are_an_error(
    corpus: str, widths: tuple[int, int]
) -> None:
    sides = [Model(P, width=widths[0]), Model(Q, width=widths[1])]
    message = (
        rf"left predicts {widths[0]} ids and right {widths[1]}, and 2 ids beyond 18 stand for "
        "tokens, first 'w18'"
    )
    with pytest.raises(MismatchError, match=message):
        align(sides, [corpus], Scope())


def test_added_tokens_of_one_side_beyond_the_common_width_are_cut_with_notices(
    tmp_path: Path,
) -> None:
    base, chat = Model(P, width=20), Model(Q, vocabulary(added={"<|im|>": True}), width=21)
    path = write(tmp_path, "a.txt", "w1 <|im|> w2")
    alignment = align([base, chat], [path], Scope())
    assert sorted(codes(alignment)) == ["padded_vocabulary", "special_tokens_differ"]
    assert inputs_of(alignment) == [[1, 0]]


def test_a_model_too_narrow_for_its_own_tokenizer_is_an_error(corpus: str) -> None:
    with pytest.raises(MismatchError, match="token id 10 and narrow predicts only 8 ids"):
        align([Model("narrow", width=8)], [corpus], Scope())


# Logit files: the windows come from the file

WINDOWS, ROWS = 2, 4
TOKENS: Array = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
CHAINED: Array = np.array([[1, 2, 3, 4, 5], [5, 6, 7, 8, 9]])


def logit_file(
    folder: Path,
    name: str,
    tokens: Array | None = TOKENS,
    *,
    shape: tuple[int, int] = (WINDOWS, ROWS),
    width: int = SIZE,
    score_from: int | None = None,
    tokenizer: Vocabulary | None = None,
) -> ArraySource:
    arrays: dict[str, Array] = {"logits": np.zeros((*shape, width), dtype=np.float32)}
    if tokens is not None:
        arrays["tokens"] = tokens
    if score_from is not None:
        arrays["score_from"] = np.array([score_from])
    np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    source = open_arrays(str(folder / f"{name}.npz"), LoadOptions())
    source.name = name
    source.vocabulary = tokenizer
    return source


def test_a_file_brings_its_own_windows(tmp_path: Path) -> None:
    alignment = align([logit_file(tmp_path, P)], [], Scope())
    assert inputs_of(alignment) == TOKENS[:, :-1].tolist()
    assert targets_of(alignment) == TOKENS[:, 1:].tolist()
    assert alignment.table.protocol["name"] == "file"
    assert alignment.table.protocol["context"] == ROWS
    assert alignment.table.protocol["score_from"] == 0
    assert alignment.names == NumberedTokens(SIZE)
    assert alignment.vocabulary_size == SIZE
    assert alignment.table.corpora == ()


@pytest.mark.parametrize("file_first", [True, False], ids=["file first", "model first"])
def test_a_live_model_follows_the_windows_of_a_file(tmp_path: Path, file_first: bool) -> None:
    file, model = logit_file(tmp_path, "file"), Model()
    alignment = align([file, model] if file_first else [model, file], [], Scope())
    assert inputs_of(alignment) == TOKENS[:, :-1].tolist()
    assert alignment.names is model.vocabulary
    assert alignment.notices == ()


def test_a_limit_holds_for_the_windows_of_a_file(tmp_path: Path) -> None:
    alignment = align([logit_file(tmp_path, P)], [], Scope(limit=1))
    assert inputs_of(alignment) == TOKENS[:1, :-1].tolist()
    assert alignment.table.protocol["limit"] == 1


@pytest.mark.parametrize("last", [True, False], ids=["all targets", "last target unknown"])
def test_two_files_of_the_same_windows_agree(tmp_path: Path, last: bool) -> None:
    tokens = TOKENS if last else TOKENS[:, :-1]
    sides = [logit_file(tmp_path, name, tokens, score_from=1) for name in (P, Q)]
    alignment = align(sides, [], Scope())
    assert alignment.notices == ()
    assert [window.score_from for window in alignment.table.windows] == [1, 1]


def test_a_file_that_knows_the_last_target_agrees_with_one_that_does_not(tmp_path: Path) -> None:
    short, long = logit_file(tmp_path, P, TOKENS[:, :-1]), logit_file(tmp_path, Q)
    for sides in ([short, long], [long, short]):
        assert align(sides, [], Scope()).table.tokens == WINDOWS * ROWS


@pytest.mark.parametrize("knows", [True, False], ids=["with tokens", "without tokens"])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3)], ids=["windows", "rows"])
def test_files_of_another_shape_are_an_error_with_both(
    tmp_path: Path, shape: tuple[int, int], knows: bool
) -> None:
    tokens = np.ones((shape[0], shape[1] + 1), dtype=np.int64) if knows else None
    sides = [logit_file(tmp_path, P), logit_file(tmp_path, Q, tokens, shape=shape)]
    message = f"left has 2 windows of 4 rows and right has {shape[0]} windows of {shape[1]} rows"
    with pytest.raises(MismatchError, match=message):
        align(sides, [], Scope())


@pytest.mark.parametrize(
    ("place", "what"),
    [
        pytest.param((0, 0), "inputs 0 of window 0 is id 1 in left and id 11", id="the first"),
        pytest.param((1, 2), "inputs 2 of window 1 is id 8 in left and id 11", id="the middle"),
        pytest.param((1, 4), "targets 3 of window 1 is id 10 in left and id 11", id="the last"),
    ],
)
def test_files_of_other_tokens_are_an_error_that_shows_the_first(
    tmp_path: Path, place: tuple[int, int], what: str
) -> None:
    other = TOKENS.copy()
    other[place] = 11
    with pytest.raises(MismatchError, match=f"the tokens differ: {what} in right"):
        align([logit_file(tmp_path, P), logit_file(tmp_path, Q, other)], [], Scope())


@pytest.mark.parametrize("knows", [True, False], ids=["with tokens", "without tokens"])
def test_files_scored_from_other_rows_are_an_error_with_both(tmp_path: Path, knows: bool) -> None:
    left = logit_file(tmp_path, P, score_from=1)
    right = logit_file(tmp_path, Q, TOKENS if knows else None, score_from=2)
    message = "window 0 is scored from row 1 in left and from row 2 in right"
    with pytest.raises(MismatchError, match=message):
        align([left, right], [], Scope())


@pytest.mark.parametrize("first", [P, Q])
def test_a_file_without_tokens_takes_those_of_the_other_with_a_notice(
    tmp_path: Path, first: str
) -> None:
    files = [logit_file(tmp_path, "known"), logit_file(tmp_path, "unknown", None)]
    alignment = align(files if first == P else files[::-1], [], Scope())
    assert targets_of(alignment) == TOKENS[:, 1:].tolist()
    [notice] = alignment.notices
    assert notice.code == "no_tokens"
    assert notice.message.startswith("unknown does not say which tokens it is about")


def test_two_files_without_tokens_can_be_compared_with_notices(tmp_path: Path) -> None:
    sides = [logit_file(tmp_path, name, None) for name in (P, Q)]
    alignment = align(sides, [], Scope())
    assert set(codes(alignment)) == {"no_tokens"}
    assert targets_of(alignment) == [[-1] * ROWS] * WINDOWS


def test_files_of_another_width_are_cut_with_a_notice(tmp_path: Path) -> None:
    sides = [logit_file(tmp_path, P, width=24), logit_file(tmp_path, Q)]
    alignment = align(sides, [], Scope())
    assert codes(alignment) == ["padded_vocabulary"]
    assert alignment.vocabulary_size == SIZE


def test_a_model_cannot_follow_a_file_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="file holds no token ids, so model cannot be run"):
        align([logit_file(tmp_path, "file", None), Model()], [], Scope())


def test_a_model_cannot_follow_windows_longer_than_it_reads(tmp_path: Path) -> None:
    message = "file has windows of 4 tokens and model can read 3"
    with pytest.raises(MismatchError, match=message):
        align([logit_file(tmp_path, "file"), Model(longest=3)], [], Scope())


def test_a_model_too_narrow_for_the_tokens_of_a_file_is_an_error(tmp_path: Path) -> None:
    narrow = Model("narrow", vocabulary(WORDS[:7]), width=8)
    with pytest.raises(MismatchError, match="token id 10 and narrow predicts only 8 ids"):
        align([logit_file(tmp_path, "file"), narrow], [], Scope())


@pytest.mark.parametrize(
    ("scope", "options"),
    [
        pytest.param(Scope(protocol="rolling"), "--protocol", id="protocol"),
        pytest.param(Scope(context=4), "--context", id="context"),
        pytest.param(Scope(stride=4), "--stride", id="stride"),
        pytest.param(Scope(score_from=0), "--score-from", id="score_from"),
        pytest.param(Scope(bos="none"), "--bos", id="bos"),
        pytest.param(Scope(context=4, stride=2), "--context, --stride", id="two of them"),
    ],
)
def test_options_about_windows_do_not_apply_to_a_file(
    tmp_path: Path, scope: Scope, options: str
) -> None:
    with pytest.raises(UsageError, match=f"the windows come from file: leave out {options}$"):
        align([Model(), logit_file(tmp_path, "file")], [], scope)


# A corpus beside a file


def test_a_corpus_beside_a_file_gives_its_tokens_their_text(tmp_path: Path) -> None:
    path = write(tmp_path, "text.txt", sentence(*range(1, 10)))
    alignment = align([logit_file(tmp_path, "file", CHAINED), Model()], [path], Scope())
    [document] = alignment.table.documents
    assert document.name == path
    assert document.encoding is not None
    assert document.encoding.ends.tolist()[-1] == len(sentence(*range(1, 10)))
    assert [text.name for text in alignment.table.corpora] == [path]
    assert targets_of(alignment) == CHAINED[:, 1:].tolist()


def test_each_window_that_stands_alone_is_a_document_of_the_corpus(tmp_path: Path) -> None:
    path = write(tmp_path, "text.txt", f"{sentence(*TOKENS[0])}\n{sentence(*TOKENS[1])}\n")
    scope = Scope(documents="line")
    alignment = align([logit_file(tmp_path, "file"), Model()], [path], scope)
    assert [document.name for document in alignment.table.documents] == [f"{path}#1", f"{path}#2"]


def test_the_tokenizer_of_the_file_reads_the_corpus(tmp_path: Path) -> None:
    path = write(tmp_path, "text.txt", sentence(*range(1, 10)))
    file = logit_file(tmp_path, "file", CHAINED, tokenizer=vocabulary())
    alignment = align([file], [path], Scope())
    assert alignment.names is file.vocabulary
    assert alignment.table.documents[0].encoding is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            sentence(1, 2, 3, 11, 5, 6, 7, 8, 9),
            "has 9 tokens and file has 9; they differ first at token 3",
            id="another token",
        ),
        pytest.param(
            sentence(*range(1, 9)), "has 8 tokens and file has 9; they differ in length", id="short"
        ),
        pytest.param(
            sentence(*range(1, 12)), "has 11 tokens and file has 9; they differ in", id="longer"
        ),
    ],
)
def test_a_corpus_of_other_tokens_than_the_file_is_an_error(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, "text.txt", text)
    with pytest.raises(MismatchError, match=rf"text\.txt {message}"):
        align([logit_file(tmp_path, "file", CHAINED), Model()], [path], Scope())


def test_a_corpus_of_more_documents_than_the_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "text.txt", sentence(*range(1, 10)))
    message = "the corpus has 2 documents and file has 1"
    with pytest.raises(MismatchError, match=message):
        align([logit_file(tmp_path, "file", CHAINED), Model()], [path, path], Scope())


def test_a_corpus_beside_a_file_needs_a_tokenizer(tmp_path: Path, corpus: str) -> None:
    with pytest.raises(UsageError, match=r"file brings its own tokens; .* give --tokenizer"):
        align([logit_file(tmp_path, "file", CHAINED)], [corpus], Scope())


def test_a_missing_corpus_beside_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no corpus at"):
        align([logit_file(tmp_path, "file"), Model()], [str(tmp_path / "none.txt")], Scope())
