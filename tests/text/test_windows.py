"""Protocols: which tokens are scored, and what a model has read before each."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from klcli.errors import CorpusError, UsageError
from klcli.text.corpus import Document
from klcli.text.cutting import encode_document, plan_windows
from klcli.text.protocols import Protocol, choose_protocol
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import TokenizedDocument, Window, WindowTable, plan_batches
from tests.text import tokenizer_kinds

BOS = 7
FIRST_ID = 100  # ids of documents begin here, so that no token is mistaken for a BOS


def document(length: int, corpus: int = 0, first: int = FIRST_ID) -> TokenizedDocument:
    """A document of ``length`` tokens, every one another."""
    ids = np.arange(first, first + length, dtype=np.int64)
    return TokenizedDocument(corpus=corpus, name=f"text{corpus}", ids=ids, encoding=None)


def protocol(**changes: Any) -> Protocol:
    values: dict[str, Any] = {"name": "rolling", "context": 8, "score_from": 0, "bos": "none"}
    values |= changes
    return Protocol(special_tokens="text", **{"stride": values["context"]} | values)


def plan(length: int, chosen: Protocol) -> list[Window]:
    """The windows of one document, none where nothing is scored."""
    try:
        return list(plan_windows([document(length)], chosen, BOS).windows)
    except CorpusError:
        return []


def scored_positions(windows: list[Window]) -> list[int]:
    return [w.position + i for w in windows for i in range(len(w.targets))]


@st.composite
def protocols(draw: st.DrawFn, *, score_from: int | None = None) -> Protocol:
    """Any rolling protocol that ``choose_protocol`` lets through."""
    bos = draw(st.sampled_from(["none", "document", "window"]))
    context = draw(st.integers(2 if bos == "window" else 1, 12))
    return protocol(
        context=context,
        stride=draw(st.integers(1, context)),
        score_from=draw(st.integers(0, context - 1)) if score_from is None else score_from,
        bos=bos,
    )


lengths = st.integers(0, 60)
many = settings(deadline=None, max_examples=150)


# Rolling


@many
@given(lengths, protocols())
def test_no_token_is_scored_twice(length: int, chosen: Protocol) -> None:
    counts = Counter(scored_positions(plan(length, chosen)))
    assert all(count == 1 for count in counts.values())
    assert all(0 <= position < length for position in counts)


@many
@given(lengths, protocols(score_from=0))
def test_every_token_but_the_first_is_scored_once_and_the_first_too_after_a_bos(
    length: int, chosen: Protocol
) -> None:
    first = 1 if chosen.bos == "none" else 0
    assert scored_positions(plan(length, chosen)) == list(range(first, length))


@many
@given(lengths, protocols())
def test_a_first_scored_row_within_the_overlap_leaves_out_only_the_beginning(
    length: int, chosen: Protocol
) -> None:
    assume(chosen.score_from <= chosen.context - chosen.stride)
    first = chosen.score_from + (1 if chosen.bos == "none" else 0)
    assert scored_positions(plan(length, chosen)) == list(range(first, length))


@many
@given(lengths, protocols())
def test_every_target_is_the_token_at_its_position(length: int, chosen: Protocol) -> None:
    ids = document(length).ids
    for window in plan(length, chosen):
        end = window.position + len(window.targets)
        np.testing.assert_array_equal(window.targets, ids[window.position : end])


@many
@given(lengths, protocols())
def test_the_row_of_a_target_has_just_read_the_token_before_it(
    length: int, chosen: Protocol
) -> None:
    ids = document(length).ids
    for window in plan(length, chosen):
        for i, target in enumerate(window.targets):
            position = window.position + i
            read = window.inputs[: window.score_from + i + 1]
            past = [BOS, *ids[:position].tolist()]
            text = [token for token in read.tolist() if token != BOS]
            assert read[-1] == past[-1]
            assert text == past[len(past) - len(text) :]
            assert target not in read


@many
@given(lengths, protocols())
def test_bos_stands_where_the_protocol_puts_it_and_nowhere_else(
    length: int, chosen: Protocol
) -> None:
    for number, window in enumerate(plan(length, chosen)):
        begins = chosen.bos == "window" or (chosen.bos == "document" and number == 0)
        if chosen.score_from and chosen.bos == "document":
            begins = bool(window.inputs[0] == BOS)  # the first window may have had nothing to score
        assert (window.inputs == BOS).tolist() == [begins] + [False] * (len(window.inputs) - 1)


@many
@given(lengths, protocols())
def test_no_window_is_longer_than_the_context_nor_reads_beyond_its_last_target(
    length: int, chosen: Protocol
) -> None:
    for window in plan(length, chosen):
        assert 1 <= len(window.inputs) <= chosen.context
        assert window.score_from + len(window.targets) == len(window.inputs)


@many
@given(lengths, protocols())
def test_no_row_before_score_from_is_scored(length: int, chosen: Protocol) -> None:
    assert all(window.score_from >= chosen.score_from for window in plan(length, chosen))


@many
@given(lengths, protocols())
def test_after_the_first_window_every_target_has_at_least_the_overlap_as_context(
    length: int, chosen: Protocol
) -> None:
    for window in plan(length, chosen):
        if window.position + (chosen.bos != "none") > chosen.context:
            context = window.inputs[: window.score_from + 1]
            assert (context != BOS).sum() >= chosen.context - chosen.stride


@many
@given(st.integers(2, 60), st.integers(1, 12))
def test_without_overlap_no_token_is_read_twice(length: int, context: int) -> None:
    read = [int(i) for window in plan(length, protocol(context=context)) for i in window.inputs]
    assert read == document(length).ids[:-1].tolist()


def rows(windows: list[Window]) -> list[tuple[list[int], int, list[int], int]]:
    return [(w.inputs.tolist(), w.score_from, w.targets.tolist(), w.position) for w in windows]


def test_rolling_by_hand() -> None:
    """Nine tokens in runs of four: each input predicts its successor."""
    assert rows(plan(9, protocol(context=4))) == [
        ([100, 101, 102, 103], 0, [101, 102, 103, 104], 1),
        ([104, 105, 106, 107], 0, [105, 106, 107, 108], 5),
    ]


def test_rolling_with_overlap_by_hand() -> None:
    """A stride of two below a context of four reads two tokens again, which are not scored."""
    assert rows(plan(8, protocol(context=4, stride=2))) == [
        ([100, 101, 102, 103], 0, [101, 102, 103, 104], 1),
        ([102, 103, 104, 105], 2, [105, 106], 5),
        ([104, 105, 106], 2, [107], 7),
    ]


def test_rolling_with_a_bos_before_the_document_by_hand() -> None:
    assert rows(plan(5, protocol(context=4, bos="document"))) == [
        ([BOS, 100, 101, 102], 0, [100, 101, 102, 103], 0),
        ([103], 0, [104], 4),
    ]


def test_rolling_with_a_bos_before_every_window_by_hand() -> None:
    """The row of a repeated BOS is not scored: its target was, with more context."""
    assert rows(plan(8, protocol(context=4, bos="window"))) == [
        ([BOS, 100, 101, 102], 0, [100, 101, 102, 103], 0),
        ([BOS, 103, 104, 105], 1, [104, 105, 106], 4),
        ([BOS, 106], 1, [107], 7),
    ]


def test_rolling_from_a_later_row_by_hand() -> None:
    assert rows(plan(9, protocol(context=4, score_from=2))) == [
        ([100, 101, 102, 103], 2, [103, 104], 3),
        ([104, 105, 106, 107], 2, [107, 108], 7),
    ]


def test_documents_do_not_see_each_other_and_windows_are_numbered_throughout() -> None:
    texts = [document(5), document(1), document(4, first=200)]
    table = plan_windows(texts, protocol(context=3), None)
    assert table.documents == tuple(texts)
    assert [(w.number, w.document, w.inputs.tolist()) for w in table.windows] == [
        (0, 0, [100, 101, 102]),
        (1, 0, [103]),
        (2, 2, [200, 201, 202]),
    ]
    assert table.tokens == 7


@pytest.mark.parametrize(
    ("texts", "chosen", "numbers"),
    [
        pytest.param(
            [1, 0],
            protocol(),
            "has 1 token, and the first token of a window is only read",
            id="too short",
        ),
        pytest.param(
            [0],
            protocol(),
            "has 0 tokens, and the first token of a window is only read",
            id="no token",
        ),
        pytest.param(
            [3, 5],
            protocol(score_from=6),
            "has 5 tokens, and the first 7 of a window are only read",
            id="shorter than score_from",
        ),
    ],
)
def test_nothing_to_score_is_an_error_with_both_numbers(
    texts: list[int], chosen: Protocol, numbers: str
) -> None:
    with pytest.raises(
        CorpusError, match=f"nothing to score: text0, the longest document, {numbers}"
    ):
        plan_windows([document(length) for length in texts], chosen, None)


# llama.cpp


def llama_cpp(context: int, bos: str = "none") -> Protocol:
    return protocol(name="llama.cpp", context=context, score_from=context // 2, bos=bos)


def test_llama_cpp_by_hand() -> None:
    """14 tokens in chunks of 6: targets 4 and 5 of each chunk, and the last two tokens dropped."""
    assert rows(plan(14, llama_cpp(6))) == [
        ([100, 101, 102, 103, 104, 105], 3, [104, 105], 4),
        ([106, 107, 108, 109, 110, 111], 3, [110, 111], 10),
    ]


def test_llama_cpp_with_bos_by_hand() -> None:
    """A BOS before the text shifts the chunks by one, and covers the first token of each later."""
    assert rows(plan(13, llama_cpp(6, "window"))) == [
        ([BOS, 100, 101, 102, 103, 104], 3, [103, 104], 3),
        ([BOS, 106, 107, 108, 109, 110], 3, [109, 110], 9),
    ]


@many
@given(st.integers(3, 12), st.integers(0, 60), st.sampled_from(["none", "window"]))
def test_llama_cpp_scores_the_second_half_of_disjoint_whole_chunks(
    context: int, length: int, bos: str
) -> None:
    stream = [*([BOS] if bos == "window" else []), *document(length).ids.tolist()]
    windows = plan(length, llama_cpp(context, bos))
    chunks = len(stream) // context
    assert len(windows) == (chunks if len(stream) >= 2 * context else 0)
    for number, window in enumerate(windows):
        chunk = stream[number * context : (number + 1) * context]
        assert window.targets.tolist() == chunk[context // 2 + 1 :]
        assert window.score_from == context // 2
        assert document(length).ids[window.position] == window.targets[0]
        lead = BOS if bos == "window" else chunk[0]
        assert window.inputs.tolist() == [lead, *chunk[1:]]


@pytest.mark.parametrize(
    ("length", "bos", "numbers"),
    [
        pytest.param(
            11, "none", "text0 has 11 tokens, and --protocol llama.cpp needs 12", id="none"
        ),
        pytest.param(
            10, "window", "text0 has 11 tokens, and --protocol llama.cpp needs 12", id="bos"
        ),
    ],
)
def test_llama_cpp_refuses_less_than_two_chunks_with_both_numbers(
    length: int, bos: str, numbers: str
) -> None:
    with pytest.raises(CorpusError, match=numbers):
        plan_windows([document(length)], llama_cpp(6, bos), BOS)
    assert len(plan(length + 1, llama_cpp(6, bos))) == 2


def test_llama_cpp_refuses_a_short_document_among_long_ones() -> None:
    with pytest.raises(CorpusError, match="text1 has 3 tokens"):
        plan_windows([document(20), document(3, corpus=1)], llama_cpp(6), None)


@pytest.mark.parametrize(
    ("name", "text", "tokenised"),
    [
        pytest.param("llama.cpp", "a b\n", "a b", id="one final newline is dropped"),
        pytest.param("llama.cpp", "a b\n\n", "a b\n", id="only one"),
        pytest.param("llama.cpp", "a b", "a b", id="none to drop"),
        pytest.param("llama.cpp", "a b\n ", "a b\n ", id="only the very last character"),
        pytest.param("rolling", "a b\n", "a b\n", id="rolling drops nothing"),
    ],
)
def test_llama_cpp_drops_one_final_newline(name: str, text: str, tokenised: str) -> None:
    vocabulary = tokenizer_kinds.vocabulary("byte-level")
    chosen = protocol(name=name)
    made = encode_document(Document(name="a", content=text.encode()), vocabulary, chosen)
    assert made.ids.tolist() == vocabulary.encode(tokenised).ids.tolist()
    assert made.ends[-1] == len(tokenised)


@pytest.mark.parametrize("special_tokens", ["text", "parse"])
def test_the_protocol_says_whether_special_strings_are_parsed(special_tokens: str) -> None:
    vocabulary = tokenizer_kinds.vocabulary("byte-level")
    chosen = Protocol(
        name="rolling",
        context=8,
        stride=8,
        score_from=0,
        bos="none",
        special_tokens="parse" if special_tokens == "parse" else "text",
    )
    made = encode_document(Document(name="a", content=b"a</s>"), vocabulary, chosen)
    assert (1 in made.ids) == (special_tokens == "parse")


# Choosing a protocol


def plain() -> Vocabulary:
    return tokenizer_kinds.vocabulary("byte-level", bos_id=0, eos_id=1)


def bos_adding() -> Vocabulary:
    tokenizer = tokenizer_kinds.with_template(tokenizer_kinds.byte_level(), "<s> $A", **{"<s>": 0})
    return Vocabulary(tokenizer, bos_id=0, eos_id=1)


@pytest.mark.parametrize(
    ("name", "longest", "context"),
    [
        ("rolling", None, 512),
        ("rolling", 4096, 512),
        ("rolling", 128, 128),
        ("llama.cpp", None, 512),
        ("llama.cpp", 512, 512),
    ],
)
def test_the_context_is_512_or_what_a_rolling_model_takes(
    name: Any, longest: int | None, context: int
) -> None:
    chosen = choose_protocol(name, vocabulary=plain(), longest=longest)
    assert (chosen.name, chosen.context, chosen.stride) == (name, context, context)
    assert chosen.score_from == (0 if name == "rolling" else context // 2)
    assert (chosen.bos, chosen.special_tokens) == ("none", "text")


def test_bos_auto_follows_the_tokenizer() -> None:
    assert choose_protocol("rolling", vocabulary=bos_adding(), longest=None).bos == "window"
    assert choose_protocol("llama.cpp", vocabulary=bos_adding(), longest=None).bos == "window"
    chosen = choose_protocol("rolling", vocabulary=bos_adding(), longest=None, bos="none")
    assert chosen.bos == "none"


def test_what_is_given_by_hand_goes_before_the_preset() -> None:
    chosen = choose_protocol(
        "rolling",
        vocabulary=plain(),
        longest=100,
        context=100,
        stride=25,
        score_from=3,
        bos="document",
        special_tokens="parse",
    )
    assert chosen == Protocol(
        name="rolling",
        context=100,
        stride=25,
        score_from=3,
        bos="document",
        special_tokens="parse",
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        pytest.param(
            "rolling",
            {"context": 129},
            "reads 129 tokens at once, and the model can read 128",
            id="too long",
        ),
        pytest.param(
            "llama.cpp",
            {},
            "--protocol llama.cpp reads 512 tokens at once, and the model can read 128",
            id="llama.cpp too long",
        ),
        pytest.param("rolling", {"context": 0}, "--context 0 is too short: at least 1", id="none"),
        pytest.param("rolling", {"context": -4}, "--context -4 is too short", id="negative"),
        pytest.param(
            "rolling",
            {"context": 1, "bos": "window"},
            "at least 2 with --bos window",
            id="only BOS",
        ),
        pytest.param(
            "rolling", {"context": 8, "stride": 9}, "--stride 9 .* 1 and --context 8", id="a gap"
        ),
        pytest.param("rolling", {"stride": 0}, "--stride 0 must lie between", id="no stride"),
        pytest.param(
            "rolling", {"context": 8, "score_from": 8}, "--score-from 8 .* 0 and 7", id="no row"
        ),
        pytest.param("rolling", {"score_from": -1}, "--score-from -1 must lie", id="row -1"),
        pytest.param(
            "llama.cpp", {"context": 8, "stride": 4}, "leave out --stride", id="llama.cpp stride"
        ),
        pytest.param(
            "llama.cpp",
            {"context": 8, "bos": "document"},
            "--protocol llama.cpp takes --bos none or window, not document",
            id="llama.cpp document",
        ),
    ],
)
def test_values_that_contradict_each_other_are_a_usage_error(
    name: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_protocol(name, vocabulary=plain(), longest=128, **options)


@pytest.mark.parametrize("bos", ["document", "window"])
def test_a_bos_needs_a_token_to_stand_for_it(bos: Any) -> None:
    without = tokenizer_kinds.vocabulary("byte-level", bos_id=None, eos_id=None)
    with pytest.raises(UsageError, match=f"--bos {bos}: this tokenizer has neither a BOS nor"):
        choose_protocol("rolling", vocabulary=without, longest=None, bos=bos)
    only_eos = tokenizer_kinds.vocabulary("byte-level", bos_id=None, eos_id=1)
    assert choose_protocol("rolling", vocabulary=only_eos, longest=None, bos=bos).bos == bos


# Limits and batches


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(None, [0, 1, 2, 3, 4]), (1, [0, 3]), (2, [0, 1, 3, 4]), (3, [0, 1, 2, 3, 4])],
)
def test_a_limit_keeps_the_first_windows_of_each_corpus(limit: int | None, kept: list[int]) -> None:
    texts = [document(4), document(6), document(5, corpus=1)]
    table = plan_windows(texts, protocol(context=3), None)
    assert [texts[w.document].corpus for w in table.windows] == [0, 0, 0, 1, 1]
    limited = table.limited(limit)
    assert limited.documents == table.documents
    assert [w.number for w in limited.windows] == kept


def window(length: int) -> Window:
    ids = np.arange(length, dtype=np.int64)
    return Window(document=0, inputs=ids, score_from=0, targets=ids, position=0)


@many
@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 30))
def test_batches_hold_every_window_once_equal_in_length_within_the_budget(
    window_lengths: list[int], budget: int
) -> None:
    batches = plan_batches([window(length) for length in window_lengths], budget)
    assert sorted(n for batch in batches for n in batch) == list(range(len(window_lengths)))
    for batch in batches:
        assert len({window_lengths[n] for n in batch}) == 1
        assert len(batch) == 1 or len(batch) * window_lengths[batch[0]] <= budget


@many
@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 30))
def test_the_plan_of_batches_depends_on_the_lengths_alone_and_wastes_no_room(
    window_lengths: list[int], budget: int
) -> None:
    batches = plan_batches([window(length) for length in window_lengths], budget)
    assert batches == plan_batches([window(length) for length in window_lengths], budget)
    for length in set(window_lengths):
        of_length = [batch for batch in batches if window_lengths[batch[0]] == length]
        assert [n for batch in of_length for n in batch] == [
            n for n, other in enumerate(window_lengths) if other == length
        ]
        room = max(1, budget // length)
        assert all(len(batch) == room for batch in of_length[:-1])


def test_the_longest_windows_come_first_so_that_memory_is_proved_at_once() -> None:
    windows = [window(length) for length in (2, 4, 4, 1, 4)]
    assert plan_batches(windows, 8) == [[1, 2], [4], [0], [3]]


def test_an_empty_plan_has_no_batches() -> None:
    assert plan_batches([], 8) == []
    assert WindowTable(documents=(), windows=()).limited(3).tokens == 0
