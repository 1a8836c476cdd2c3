"""The presets that score as another program does: their windows, by hand and by its own rule."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klcli.errors import CorpusError, UsageError
from klcli.text.cutting import plan_windows
from klcli.text.protocols import Protocol, choose_protocol
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import TokenizedDocument, Window
from tests.text import tokenizer_kinds

BOS = 7
FIRST_ID = 100  # ids of documents begin here, so that no token is mistaken for a BOS
PRESETS = ["lm-eval", "strided", "evaluate", "exllamav3"]

Row = tuple[list[int], int, list[int], int]
"""Inputs, first scored row, targets, and where in the document the first target stands."""

many = settings(deadline=None, max_examples=150)
lengths = st.integers(0, 60)


def document(length: int, corpus: int = 0) -> TokenizedDocument:
    """A document of ``length`` tokens, every one another."""
    ids = np.arange(FIRST_ID, FIRST_ID + length, dtype=np.int32)
    return TokenizedDocument(corpus=corpus, name=f"text{corpus}", ids=ids, encoding=None)


def preset(name: Any, context: int, **options: Any) -> Protocol:
    """A preset as ``choose_protocol`` fills it in, for a tokenizer that adds no BOS by itself."""
    return choose_protocol(name, vocabulary=plain(), longest=None, context=context, **options)


def plan(length: int, protocol: Protocol) -> list[Window]:
    """The windows of one document, none where nothing is scored."""
    try:
        return list(plan_windows([document(length)], protocol, BOS).windows)
    except CorpusError:
        return []


def rows(windows: list[Window]) -> list[Row]:
    return [
        (window.inputs.tolist(), window.score_from, window.targets.tolist(), window.position)
        for window in windows
    ]


def scored_positions(windows: list[Window]) -> list[int]:
    return [w.position + i for w in windows for i in range(len(w.targets))]


def ids(start: int, stop: int) -> list[int]:
    """The tokens of a document from one position to before another."""
    return list(range(FIRST_ID + start, FIRST_ID + stop))


@st.composite
def presets(draw: st.DrawFn) -> Protocol:
    """Any of the four, in any shape that is let through."""
    context = draw(st.integers(2, 12))
    return preset(
        draw(st.sampled_from(PRESETS)),
        context,
        stride=draw(st.none() | st.integers(1, context)),
        score_from=draw(st.none() | st.integers(0, context - 1)),
        bos=draw(st.sampled_from(["auto", "none", "document"])),
    )


# What holds for all four


@many
@given(lengths, presets())
def test_no_token_is_scored_twice(length: int, protocol: Protocol) -> None:
    positions = scored_positions(plan(length, protocol))
    assert positions == sorted(set(positions))
    assert all(0 <= position < length for position in positions)


@many
@given(lengths, presets())
def test_every_target_is_the_token_at_its_position_and_its_row_ends_just_before_it(
    length: int, protocol: Protocol
) -> None:
    stream = [BOS, *ids(0, length)]
    for window in plan(length, protocol):
        assert len(window.targets)
        assert 0 <= window.score_from <= len(window.inputs) - len(window.targets)
        for i, target in enumerate(window.targets.tolist()):
            position = window.position + i
            read = window.inputs[: window.score_from + i + 1].tolist()
            assert target == stream[position + 1]
            assert read == stream[position + 1 - len(read) : position + 1]


@many
@given(lengths, presets())
def test_no_window_is_longer_than_the_context_and_a_bos_stands_in_front_once_at_most(
    length: int, protocol: Protocol
) -> None:
    windows = plan(length, protocol)
    assert all(len(window.inputs) <= protocol.context for window in windows)
    assert all(BOS not in window.inputs[1:] for window in windows)
    leading = sum(window.inputs[0] == BOS for window in windows)
    assert leading <= (1 if protocol.bos == "document" else 0)


@pytest.mark.parametrize("name", ["lm-eval", "strided", "evaluate"])
@pytest.mark.parametrize("bos", ["none", "document"])
def test_a_second_document_begins_anew(name: str, bos: str) -> None:
    protocol = preset(name, 4, bos=bos)
    both = plan_windows([document(6), document(3)], protocol, BOS).windows
    second = [window for window in both if window.document == 1]
    assert rows(second) == rows(plan(3, protocol))
    assert [window.number for window in both] == list(range(len(both)))


# lm-eval


def test_lm_eval_by_hand() -> None:
    """10 tokens, 4 at a time: a prefix before the first, and the last window is filled up."""
    assert rows(plan(10, preset("lm-eval", 4))) == [
        ([BOS, *ids(0, 3)], 0, ids(0, 4), 0),
        (ids(3, 7), 0, ids(4, 8), 4),
        (ids(5, 9), 2, ids(8, 10), 8),
    ]


def test_lm_eval_has_nothing_to_fill_up_where_the_last_window_is_whole() -> None:
    assert rows(plan(8, preset("lm-eval", 4))) == [
        ([BOS, *ids(0, 3)], 0, ids(0, 4), 0),
        (ids(3, 7), 0, ids(4, 8), 4),
    ]


def test_lm_eval_fills_up_with_text_alone_and_does_not_read_the_prefix_again() -> None:
    """One token is left, so that the last window reaches back to the first token, no further."""
    assert rows(plan(5, preset("lm-eval", 4))) == [
        ([BOS, *ids(0, 3)], 0, ids(0, 4), 0),
        (ids(0, 4), 3, ids(4, 5), 4),
    ]


@pytest.mark.parametrize("length", [1, 3, 4])
def test_lm_eval_reads_a_text_that_fits_in_one_window_and_has_nothing_to_fill_it_with(
    length: int,
) -> None:
    read = ([BOS, *ids(0, length - 1)], 0, ids(0, length), 0)
    assert rows(plan(length, preset("lm-eval", 4))) == [read]


def test_lm_eval_without_a_prefix_does_not_score_the_first_token() -> None:
    assert rows(plan(7, preset("lm-eval", 4, bos="none"))) == [
        (ids(0, 4), 0, ids(1, 5), 1),
        (ids(2, 6), 2, ids(5, 7), 5),
    ]


def test_lm_eval_differs_from_rolling_in_its_last_window_alone() -> None:
    lm_eval = rows(plan(10, preset("lm-eval", 4)))
    rolling = rows(plan(10, preset("rolling", 4, bos="document")))
    assert lm_eval[:-1] == rolling[:-1]
    assert lm_eval[-1][2:] == rolling[-1][2:]
    assert rolling[-1][:2] == (ids(7, 9), 0)


@many
@given(lengths, st.integers(1, 12))
def test_lm_eval_scores_every_token_and_reads_the_prefix_once(length: int, context: int) -> None:
    windows = plan(length, preset("lm-eval", context))
    assert scored_positions(windows) == list(range(length))
    assert [w.inputs.tolist().count(BOS) for w in windows] == [1, *[0] * (len(windows) - 1)][
        : len(windows)
    ]
    assert all(len(window.inputs) == context for window in windows[1:])


@many
@given(lengths, st.integers(1, 12), st.data())
def test_lm_eval_by_the_rule_of_that_program(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    protocol = preset("lm-eval", context, stride=stride)
    assert rows(plan(length, protocol)) == list(of_lm_eval(ids(0, length), context, stride))


def of_lm_eval(tokens: list[int], most: int, scored: int) -> Iterator[Row]:
    """As lm-eval says it: after the first window each scores ``scored`` tokens, or what is left.

    A window is given the ``most`` tokens before its last; ``context_len`` is most - scored + 1.
    """
    done = min(most, len(tokens))
    if done:
        yield [BOS, *tokens[: done - 1]], 0, tokens[:done], 0
    while done < len(tokens):
        end = min(done + scored, len(tokens))
        read = tokens[end - most - 1 : end - 1] if end > most else []
        yield read, most - (end - done), tokens[done:end], done
        done = end


# strided


def test_strided_by_hand() -> None:
    """9 tokens, 4 at a time, 2 ahead: later windows have two tokens of context that are theirs."""
    assert rows(plan(9, preset("strided", 4))) == [
        (ids(0, 4), 0, ids(1, 4), 1),
        (ids(2, 6), 1, ids(4, 6), 4),
        (ids(4, 8), 1, ids(6, 8), 6),
        (ids(6, 9), 1, ids(8, 9), 8),
    ]


def test_strided_stops_at_the_first_window_that_reaches_the_end() -> None:
    assert rows(plan(8, preset("strided", 4)))[-1] == (ids(4, 8), 1, ids(6, 8), 6)
    assert len(plan(4, preset("strided", 4, stride=1))) == 1


def test_strided_without_overlap_never_scores_the_first_token_of_a_window() -> None:
    windows = plan(10, preset("strided", 4, stride=4))
    assert rows(windows) == [
        (ids(0, 4), 0, ids(1, 4), 1),
        (ids(4, 8), 0, ids(5, 8), 5),
        (ids(8, 10), 0, ids(9, 10), 9),
    ]
    assert scored_positions(windows) == [1, 2, 3, 5, 6, 7, 9]


def test_strided_without_overlap_has_no_window_for_a_single_last_token() -> None:
    assert rows(plan(9, preset("strided", 4, stride=4))) == rows(
        plan(8, preset("strided", 4, stride=4))
    )


def test_strided_with_a_bos_scores_the_first_token_and_reads_the_bos_once() -> None:
    assert rows(plan(6, preset("strided", 4, bos="document"))) == [
        ([BOS, *ids(0, 3)], 0, ids(0, 3), 0),
        (ids(1, 5), 1, ids(3, 5), 3),
        (ids(3, 6), 1, ids(5, 6), 5),
    ]


@many
@given(lengths, st.integers(2, 12), st.data())
def test_strided_scores_every_token_but_the_first_where_windows_overlap(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context - 1))
    windows = plan(length, preset("strided", context, stride=stride))
    assert scored_positions(windows) == list(range(1, length))


@many
@given(lengths, st.integers(1, 12), st.data())
def test_strided_by_the_rule_of_the_guide(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    protocol = preset("strided", context, stride=stride)
    assert rows(plan(length, protocol)) == list(of_the_guide(ids(0, length), context, stride))


def of_the_guide(tokens: list[int], most: int, stride: int) -> Iterator[Row]:
    """As the guide says it: all labels but the last ``trg_len`` are masked, then shifted by one."""
    previous_end = 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + most, len(tokens))
        inputs = tokens[begin:end]
        masked = len(inputs) - (end - previous_end)
        labels = [None] * masked + inputs[masked:]
        shifted = [(row, label) for row, label in enumerate(labels[1:]) if label is not None]
        if shifted:
            first = shifted[0][0]
            yield inputs, first, [label for _, label in shifted], begin + first + 1
        previous_end = end
        if end == len(tokens):
            return


# evaluate


def test_evaluate_scores_every_token_of_every_line_behind_a_bos() -> None:
    table = plan_windows([document(3), document(1), document(4)], preset("evaluate", 8), BOS)
    assert rows(list(table.windows)) == [
        ([BOS, *ids(0, 2)], 0, ids(0, 3), 0),
        ([BOS], 0, ids(0, 1), 0),
        ([BOS, *ids(0, 3)], 0, ids(0, 4), 0),
    ]
    assert [window.document for window in table.windows] == [0, 1, 2]
    assert table.tokens == 8


def test_evaluate_goes_on_where_a_line_is_longer_than_the_context() -> None:
    """That program would cut it, or fail: here it is scored to its end, the BOS read once."""
    assert rows(plan(6, preset("evaluate", 4))) == [
        ([BOS, *ids(0, 3)], 0, ids(0, 4), 0),
        (ids(3, 5), 0, ids(4, 6), 4),
    ]


def test_evaluate_without_a_bos_does_not_score_the_first_token_of_a_line() -> None:
    table = plan_windows([document(3), document(1)], preset("evaluate", 8, bos="none"), BOS)
    assert rows(list(table.windows)) == [(ids(0, 2), 0, ids(1, 3), 1)]


# exllamav3


def test_exllamav3_by_hand() -> None:
    """11 tokens in rows of 4: no first token is scored, and the last three are dropped."""
    windows = plan(11, preset("exllamav3", 4))
    assert rows(windows) == [
        (ids(0, 4), 0, ids(1, 4), 1),
        (ids(4, 8), 0, ids(5, 8), 5),
    ]
    assert scored_positions(windows) == [1, 2, 3, 5, 6, 7]


@pytest.mark.parametrize(("length", "kept"), [(4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 3)])
def test_exllamav3_drops_a_last_row_that_ends_with_the_text(length: int, kept: int) -> None:
    assert len(plan(length, preset("exllamav3", 4))) == kept


def test_exllamav3_scores_the_rows_of_strided_without_overlap_but_the_last() -> None:
    dropped = rows(plan(8, preset("strided", 4, stride=4)))
    assert rows(plan(8, preset("exllamav3", 4))) == dropped[:-1]


def test_exllamav3_with_overlap_scores_no_token_twice() -> None:
    """Where that program scores a token in every row that it stands in."""
    assert rows(plan(8, preset("exllamav3", 4, stride=2))) == [
        (ids(0, 4), 0, ids(1, 4), 1),
        (ids(2, 6), 1, ids(4, 6), 4),
    ]


@many
@given(lengths, st.integers(2, 12))
def test_exllamav3_by_the_rule_of_that_program(length: int, context: int) -> None:
    tokens = ids(0, length)
    expected = [
        (tokens[a : a + context], 0, tokens[a + 1 : a + context], a + 1)
        for a in range(0, length - context, context)
    ]
    assert rows(plan(length, preset("exllamav3", context))) == expected


# What each is where nothing is given


def plain() -> Vocabulary:
    return tokenizer_kinds.vocabulary("byte-level", bos_id=0, eos_id=1)


def bos_adding() -> Vocabulary:
    tokenizer = tokenizer_kinds.with_template(tokenizer_kinds.byte_level(), "<s> $A", **{"<s>": 0})
    return Vocabulary(tokenizer, bos_id=0, eos_id=1)


@pytest.mark.parametrize(
    ("name", "longest", "context", "stride"),
    [
        ("lm-eval", None, 2048, 2048),
        ("lm-eval", 8192, 8192, 8192),
        ("lm-eval", 128, 128, 128),
        ("strided", None, 1024, 512),
        ("strided", 8192, 1024, 512),
        ("strided", 129, 129, 64),
        ("strided", 1, 1, 1),
        ("evaluate", None, 1024, 1024),
        ("evaluate", 8192, 8192, 8192),
        ("evaluate", 128, 128, 128),
        ("exllamav3", None, 2048, 2048),
        ("exllamav3", 8192, 2048, 2048),
        ("exllamav3", 128, 128, 128),
    ],
)
def test_context_and_stride_are_those_of_the_program_or_what_the_model_takes(
    name: Any, longest: int | None, context: int, stride: int
) -> None:
    chosen = choose_protocol(name, vocabulary=plain(), longest=longest)
    assert (chosen.name, chosen.context, chosen.stride) == (name, context, stride)
    assert (chosen.score_from, chosen.special_tokens) == (0, "text")


@pytest.mark.parametrize(
    ("name", "without", "adding"),
    [
        ("lm-eval", "document", "document"),
        ("strided", "none", "document"),
        ("evaluate", "document", "document"),
        ("exllamav3", "none", "none"),
    ],
)
def test_where_a_bos_is_put_for_a_tokenizer_that_adds_none_and_one_that_does(
    name: Any, without: str, adding: str
) -> None:
    assert choose_protocol(name, vocabulary=plain(), longest=None).bos == without
    assert choose_protocol(name, vocabulary=bos_adding(), longest=None).bos == adding


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_given_by_hand_goes_before_the_preset(name: Any) -> None:
    chosen = choose_protocol(
        name,
        vocabulary=bos_adding(),
        longest=100,
        context=50,
        stride=20,
        score_from=3,
        bos="none",
        special_tokens="parse",
    )
    assert chosen == Protocol(
        name=name, context=50, stride=20, score_from=3, bos="none", special_tokens="parse"
    )


def test_a_stride_follows_a_context_that_is_given() -> None:
    assert preset("strided", 100).stride == 50
    assert preset("lm-eval", 100).stride == 100


@pytest.mark.parametrize("name", ["lm-eval", "evaluate"])
def test_a_prefix_needs_a_token_to_stand_for_it(name: Any) -> None:
    nothing = tokenizer_kinds.vocabulary("byte-level", bos_id=None, eos_id=None)
    with pytest.raises(UsageError, match="has neither a BOS nor an EOS token"):
        choose_protocol(name, vocabulary=nothing, longest=None)
    only_eos = tokenizer_kinds.vocabulary("byte-level", bos_id=None, eos_id=1)
    assert choose_protocol(name, vocabulary=only_eos, longest=None).bos == "document"


@pytest.mark.parametrize("name", ["strided", "exllamav3"])
def test_the_others_need_none(name: Any) -> None:
    nothing = tokenizer_kinds.vocabulary("byte-level", bos_id=None, eos_id=None)
    assert choose_protocol(name, vocabulary=nothing, longest=None).bos == "none"


@pytest.mark.parametrize(("name", "length"), [("strided", 1), ("exllamav3", 8)])
def test_a_text_of_which_nothing_is_scored_is_an_error(name: str, length: int) -> None:
    with pytest.raises(CorpusError, match=f"text0, .* has {length} token"):
        plan_windows([document(length)], preset(name, 8), BOS)
