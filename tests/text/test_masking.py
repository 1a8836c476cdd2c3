"""Masked models: which tokens are hidden, and what is read to score each."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from klcli.errors import CorpusError, UsageError
from klcli.text.masking import (
    MaskedProtocol,
    choose_masked_protocol,
    masked_rows,
    plan_masked_windows,
)
from klcli.text.vocabulary import Encoding, Vocabulary
from klcli.text.windows import Masking, TokenizedDocument, Window, WindowTable, plan_batches
from tests.text import tokenizer_kinds

UNKNOWN, CLS, SEP, MASK, PAD = range(5)
SPECIALS = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]
CONTROL = [CLS, SEP, MASK, PAD]
FIRST_ID = 5  # ids of ordinary words begin here
WORDS = 120
FRAMES = ("[CLS] $A [SEP]", "[CLS] $A", "$A [SEP]", "$A", "[CLS] [CLS] $A [SEP] [PAD]")

many = settings(deadline=None, max_examples=70)


def vocabulary(frame: str = "[CLS] $A [SEP]", mask_id: int | None = MASK) -> Vocabulary:
    """Words ``a``, w6, w7 and so on, in a frame of special tokens."""
    words = ["a", *(f"w{number}" for number in range(FIRST_ID + 1, FIRST_ID + WORDS))]
    inner = Tokenizer(
        models.WordLevel(tokenizer_kinds.numbered([*SPECIALS, *words]), unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(SPECIALS)
    tokenizer_kinds.with_template(inner, frame, **{"[CLS]": CLS, "[SEP]": SEP, "[PAD]": PAD})
    return Vocabulary(inner, bos_id=None, eos_id=None, mask_id=mask_id, unknown_id=UNKNOWN)


VOCABULARIES = {frame: vocabulary(frame) for frame in FRAMES}


def text_of(ids: Sequence[int], word_ends: Sequence[int] | None = None) -> TokenizedDocument:
    """A document of these tokens, a byte each."""
    array = np.array(ids, dtype=np.int32)
    encoding = Encoding(
        ids=array,
        ends=np.arange(1, len(array) + 1),
        words=np.ones_like(array),
        word_ends=None if word_ends is None else np.array(word_ends, dtype=np.int32),
    )
    return TokenizedDocument(corpus=0, name="text", ids=array, encoding=encoding)


def ordinary(length: int) -> TokenizedDocument:
    """Every token another, and none of them special."""
    return text_of(range(FIRST_ID, FIRST_ID + length))


def frame_length(frame: str) -> int:
    return len(frame.split()) - 1


def protocol(room: int, frame: str = FRAMES[0], **options: Any) -> MaskedProtocol:
    """What ``choose_masked_protocol`` makes of it, for ``room`` tokens of text at once."""
    return choose_masked_protocol(
        vocabulary=VOCABULARIES[frame], longest=None, context=room + frame_length(frame), **options
    )


def plan(
    document: TokenizedDocument, room: int, frame: str = FRAMES[0], **options: Any
) -> WindowTable:
    return plan_masked_windows([document], protocol(room, frame, **options), VOCABULARIES[frame])


def scored_positions(table: WindowTable) -> list[int]:
    return [w.position + i for w in table.windows for i in range(len(w.targets))]


def text_read(window: Window, frame: str) -> list[int]:
    """What a window reads without the frame."""
    before, after = VOCABULARIES[frame].frame
    read: list[int] = window.inputs[len(before) : len(window.inputs) - len(after)].tolist()
    return read


def hidden_by_hand(window: Window) -> list[set[int]]:
    """For each scored token, the inputs that must be hidden where it is scored."""
    assert window.masking is not None
    places = [window.score_from + i for i in range(len(window.targets))]
    every = window.masking.every
    if every is not None:
        return [set(places[i % every :: every]) for i in range(len(places))]
    ends = window.masking.ends.tolist()
    return [set(range(place, end)) for place, end in zip(places, ends, strict=True)]


lengths = st.integers(1, 60)
rooms = st.integers(1, 14)
frames = st.sampled_from(FRAMES)


@st.composite
def strides(draw: st.DrawFn) -> tuple[int, int | None]:
    """A room and a stride within it, or the stride that is chosen by default."""
    room = draw(rooms)
    return room, draw(st.none() | st.integers(1, room))


@st.composite
def words_of(draw: st.DrawFn) -> tuple[int, list[int]]:
    """The length of a text, and where the word of each token ends."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=15))
    borders = np.cumsum(sizes).tolist()
    ends = [end for end, size in zip(borders, sizes, strict=True) for _ in range(size)]
    return len(ends), ends


# Which tokens are scored


@many
@given(lengths, strides(), frames)
def test_every_token_is_scored_once_the_first_and_the_last_too(
    length: int, shape: tuple[int, int | None], frame: str
) -> None:
    room, stride = shape
    table = plan(ordinary(length), room, frame, stride=stride)
    assert scored_positions(table) == list(range(length))
    assert table.tokens == length


@many
@given(lengths, strides(), frames)
def test_a_scored_row_is_that_of_the_token_itself(
    length: int, shape: tuple[int, int | None], frame: str
) -> None:
    room, stride = shape
    document = ordinary(length)
    for window in plan(document, room, frame, stride=stride).windows:
        stop = window.score_from + len(window.targets)
        at = slice(window.position, window.position + len(window.targets))
        np.testing.assert_array_equal(window.inputs[window.score_from : stop], window.targets)
        np.testing.assert_array_equal(document.ids[at], window.targets)


@many
@given(lengths, strides(), frames)
def test_a_window_is_a_stretch_of_text_in_the_frame_that_is_never_scored(
    length: int, shape: tuple[int, int | None], frame: str
) -> None:
    room, stride = shape
    before, after = VOCABULARIES[frame].frame
    assert len(before) + len(after) == frame_length(frame)
    document = ordinary(length)
    for window in plan(document, room, frame, stride=stride).windows:
        read = text_read(window, frame)
        assert window.inputs.tolist() == [*before, *read, *after]
        start = window.position - (window.score_from - len(before))
        assert read == document.ids[start : start + len(read)].tolist()
        assert len(before) <= window.score_from
        assert window.score_from + len(window.targets) <= len(window.inputs) - len(after)
        assert len(window.inputs) <= room + frame_length(frame)


@many
@given(
    st.lists(st.sampled_from([UNKNOWN, *CONTROL, *range(FIRST_ID, FIRST_ID + 9)]), max_size=60),
    strides(),
    frames,
)
def test_special_tokens_in_the_text_are_read_and_not_scored_but_the_unknown_one_is(
    ids: list[int], shape: tuple[int, int | None], frame: str
) -> None:
    room, stride = shape
    expected = [i for i, token in enumerate(ids) if token not in CONTROL]
    if not expected:
        with pytest.raises(CorpusError, match="nothing to score"):
            plan(text_of(ids), room, frame, stride=stride)
        return
    table = plan(text_of(ids), room, frame, stride=stride)
    assert scored_positions(table) == expected
    for window in table.windows:
        assert not np.isin(window.targets, CONTROL).any()
    if len(ids) <= room:
        assert all(text_read(window, frame) == ids for window in table.windows)


def test_special_strings_of_a_text_are_words_of_it_unless_they_are_parsed() -> None:
    found = VOCABULARIES[FRAMES[0]]
    text = "w6[SEP]nobody w7"
    parsed = found.encode(text, parse_special=True).ids.tolist()
    assert parsed == [6, SEP, UNKNOWN, 7]
    assert scored_positions(plan(text_of(parsed), 10)) == [0, 2, 3]
    plain = found.encode(text).ids.tolist()
    assert plain == [UNKNOWN, 7]
    assert scored_positions(plan(text_of(plain), 10)) == [0, 1]


def test_windows_are_numbered_through_all_documents() -> None:
    documents = [ordinary(9), text_of([CLS]), text_of([]), ordinary(3)]
    table = plan_masked_windows(documents, protocol(4, stride=2), VOCABULARIES[FRAMES[0]])
    assert [window.number for window in table.windows] == list(range(len(table.windows)))
    assert [window.document for window in table.windows] == [0] * 5 + [3]
    assert table.documents == tuple(documents)


# What is read around them


@many
@given(lengths, strides(), frames)
def test_a_document_that_fits_is_one_window_and_a_longer_one_is_several_full_ones(
    length: int, shape: tuple[int, int | None], frame: str
) -> None:
    room, stride = shape
    windows = plan(ordinary(length), room, frame, stride=stride).windows
    if length <= room:
        assert len(windows) == 1
        assert text_read(windows[0], frame) == ordinary(length).ids.tolist()
    else:
        assert {len(text_read(window, frame)) for window in windows} == {room}
        longest = stride or max(1, room // 4)
        assert [len(w.targets) for w in windows[:-1]] == [longest] * (len(windows) - 1)
        assert 1 <= len(windows[-1].targets) <= longest


@many
@given(lengths, rooms, frames)
def test_a_token_has_three_eighths_of_the_room_on_either_side_or_all_that_there_is(
    length: int, room: int, frame: str
) -> None:
    before = len(VOCABULARIES[frame].frame[0])
    for window in plan(ordinary(length), room, frame).windows:
        read = len(text_read(window, frame))
        for i in range(len(window.targets)):
            left = window.score_from + i - before
            right = read - left - 1
            position = window.position + i
            assert left >= min(3 * room // 8, position)
            assert right >= min(3 * room // 8, length - position - 1)


@many
@given(lengths, rooms, frames)
def test_a_stride_of_one_puts_every_token_in_the_middle(length: int, room: int, frame: str) -> None:
    before = len(VOCABULARIES[frame].frame[0])
    for window in plan(ordinary(length), room, frame, stride=1).windows:
        if length <= room:
            continue
        assert len(window.targets) == 1
        left = window.score_from - before
        right = room - left - 1
        is_inside = left < window.position and right < length - window.position - 1
        assert not is_inside or 0 <= right - left <= 1


def test_by_hand() -> None:
    """Nine tokens, of which four are read and two scored at once."""
    windows = plan(ordinary(9), 4, stride=2).windows
    assert [(w.inputs.tolist(), w.score_from, w.targets.tolist(), w.position) for w in windows] == [
        ([CLS, 5, 6, 7, 8, SEP], 1, [5, 6], 0),
        ([CLS, 6, 7, 8, 9, SEP], 2, [7, 8], 2),
        ([CLS, 8, 9, 10, 11, SEP], 2, [9, 10], 4),
        ([CLS, 10, 11, 12, 13, SEP], 2, [11, 12], 6),
        ([CLS, 10, 11, 12, 13, SEP], 4, [13], 8),
    ]


# What is hidden


@many
@given(lengths, strides(), frames)
def test_original_hides_the_scored_token_alone(
    length: int, shape: tuple[int, int | None], frame: str
) -> None:
    room, stride = shape
    for window in plan(ordinary(length), room, frame, stride=stride).windows:
        assert window.masking is not None
        assert (window.masking.mask_id, window.masking.every) == (MASK, None)
        places = window.score_from + np.arange(len(window.targets))
        assert window.masking.ends.tolist() == (places + 1).tolist()
        assert window.forward_rows == len(window.targets)


@many
@given(words_of(), strides(), frames)
def test_word_hides_the_rest_of_the_word_as_far_as_it_is_read(
    words: tuple[int, list[int]], shape: tuple[int, int | None], frame: str
) -> None:
    (length, ends), (room, stride) = words, shape
    document = text_of(range(FIRST_ID, FIRST_ID + length), ends)
    before, after = VOCABULARIES[frame].frame
    for window in plan(document, room, frame, stride=stride, pll="word").windows:
        for i, hidden in enumerate(hidden_by_hand(window)):
            ids = [int(window.inputs[place]) for place in sorted(hidden)]
            position = window.position + i
            rest = document.ids[position : ends[position]].tolist()
            assert ids == rest[: len(ids)]
            assert len(ids) == len(rest) or max(hidden) == len(window.inputs) - len(after) - 1
            assert min(hidden) >= len(before)


def test_original_leaves_a_words_other_tokens_in_sight() -> None:
    document = text_of([5, 6, 7], word_ends=[3, 3, 3])
    [original] = plan(document, 8).windows
    [word] = plan(document, 8, pll="word").windows
    assert hidden_by_hand(original) == [{1}, {2}, {3}]
    assert hidden_by_hand(word) == [{1, 2, 3}, {2, 3}, {3}]


KINDS_THAT_SPLIT = ("byte-level", "byte-level-prefix-space", "wordpiece", "unigram")


@pytest.mark.parametrize("kind", KINDS_THAT_SPLIT)
@many
@given(text=st.text("abthefox ., ", max_size=30))
def test_words_are_those_that_the_tokenizer_splits_text_into(kind: str, text: str) -> None:
    inner = tokenizer_kinds.MAKERS[kind]()
    own = inner.encode(text, add_special_tokens=False).word_ids
    borders = [i for i in range(1, len(own)) if own[i] != own[i - 1]]
    expected = [next((b for b in borders if b > i), len(own)) for i in range(len(own))]
    found = tokenizer_kinds.vocabulary(kind).encode(text, find_words=True).word_ends
    assert found is not None
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("kind", "tokens", "ends"),
    [
        ("unigram", ["▁the", "▁", "f", "o", "x"], [1, 5, 5, 5, 5]),
        ("byte-level", ["t", "h", "e", "Ġ", "f", "o", "x"], [3, 3, 3, 7, 7, 7, 7]),
    ],
)
def test_the_piece_that_is_only_the_space_before_a_word_belongs_to_the_word(
    kind: str, tokens: list[str], ends: list[int]
) -> None:
    found = tokenizer_kinds.vocabulary(kind)
    encoding = found.encode("the fox", find_words=True)
    assert [found.string(i) for i in encoding.ids.tolist()] == tokens
    assert encoding.word_ends is not None
    assert encoding.word_ends.tolist() == ends


def test_a_tokenizer_that_does_not_split_text_has_the_words_between_spaces() -> None:
    found = tokenizer_kinds.vocabulary("llama-2")
    encoding = found.encode("the ab fox", find_words=True)
    tokens = [found.string(i) for i in encoding.ids.tolist()]
    assert tokens == ["▁", "t", "h", "e", "▁ab", "▁", "f", "o", "x"]
    assert encoding.word_ends is not None
    assert encoding.word_ends.tolist()[:4] == [4] * 4
    assert encoding.word_ends.tolist()[6:] == [9] * 3


def test_words_are_not_sought_unless_they_are_asked_for() -> None:
    assert VOCABULARIES[FRAMES[0]].encode("w6 w7").word_ends is None


# Masked copies


@st.composite
def any_windows(draw: st.DrawFn) -> tuple[Window, ...]:
    """Windows of one length, each with a way of hiding its tokens."""
    length = draw(st.integers(1, 12))
    every = draw(st.none() | st.integers(1, 14))
    windows = []
    for number in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, length - 1))
        count = draw(st.integers(1, length - first))
        inputs = np.arange(100 * number, 100 * number + length, dtype=np.int32) + FIRST_ID
        ends = [
            place + 1 if every else draw(st.integers(place + 1, length))
            for place in range(first, first + count)
        ]
        windows.append(
            Window(
                number=number,
                document=0,
                inputs=inputs,
                score_from=first,
                targets=inputs[first : first + count],
                position=0,
                masking=Masking(mask_id=MASK, ends=np.array(ends, dtype=np.int32), every=every),
            )
        )
    return tuple(windows)


@many
@given(any_windows())
def test_each_token_is_scored_in_a_copy_that_hides_what_it_should_and_nothing_else(
    windows: tuple[Window, ...],
) -> None:
    length = len(windows[0].inputs)
    ids, hidden = masked_rows(windows)
    assert ids.shape == (sum(window.forward_rows for window in windows), length)
    assert hidden.shape == (sum(len(window.targets) for window in windows),)
    assert (ids.reshape(-1)[hidden] == MASK).all()
    expected = [
        (window, window.score_from + i, places)
        for window in windows
        for i, places in enumerate(hidden_by_hand(window))
    ]
    for at, (window, place, places) in zip(hidden.tolist(), expected, strict=True):
        row = window.inputs.copy()
        row[sorted(places)] = MASK
        assert at % length == place
        assert ids[at // length].tolist() == row.tolist()
    assert set((hidden // length).tolist()) == set(range(len(ids))), "no copy is for nothing"


@many
@given(any_windows())
def test_no_two_tokens_share_a_place_and_windows_follow_one_another(
    windows: tuple[Window, ...],
) -> None:
    ids, hidden = masked_rows(windows)
    assert len(set(hidden.tolist())) == len(hidden)
    owners = np.repeat(np.arange(len(windows)), [window.forward_rows for window in windows])
    found = owners[hidden // ids.shape[1]].tolist()
    assert found == [i for i, window in enumerate(windows) for _ in window.targets]


def test_every_third_token_by_hand() -> None:
    """Seven tokens, all scored in three copies."""
    [window] = plan(ordinary(7), 8, mask_every=3).windows
    ids, hidden = masked_rows((window,))
    m = MASK
    assert ids.tolist() == [
        [CLS, m, 6, 7, m, 9, 10, m, SEP],
        [CLS, 5, m, 7, 8, m, 10, 11, SEP],
        [CLS, 5, 6, m, 8, 9, m, 11, SEP],
    ]
    assert hidden.tolist() == [1, 11, 21, 4, 14, 24, 7]


@many
@given(lengths, strides(), st.integers(1, 80))
def test_mask_every_reads_at_most_so_many_copies_of_a_window(
    length: int, shape: tuple[int, int | None], every: int
) -> None:
    room, stride = shape
    windows = plan(ordinary(length), room, stride=stride, mask_every=every).windows
    for window in windows:
        assert window.forward_rows == min(every, len(window.targets))
        assert len(masked_rows((window,)).ids) == window.forward_rows


def test_as_many_passes_as_tokens_are_the_exact_way() -> None:
    [exact] = plan(ordinary(9), 9).windows
    for every in (9, 10, 100):
        [window] = plan(ordinary(9), 9, mask_every=every).windows
        for found, expected in zip(masked_rows((window,)), masked_rows((exact,)), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_copies_are_made_once_for_the_two_models_that_read_them() -> None:
    windows = plan(ordinary(20), 8).windows[1:4]
    assert masked_rows(tuple(windows)) is masked_rows((*windows,))
    assert masked_rows(tuple(windows)) is not masked_rows(tuple(windows[:2]))


def test_making_copies_leaves_the_window_as_it_was() -> None:
    [window] = plan(ordinary(6), 8, pll="original").windows
    before = window.inputs.tolist()
    masked_rows((window,))
    assert window.inputs.tolist() == before


# Batches


def ids_read(windows: Sequence[Window], batch: Sequence[int]) -> int:
    return sum(windows[n].forward_rows * len(windows[n].inputs) for n in batch)


@many
@given(
    st.lists(st.integers(1, 25), min_size=1, max_size=8),
    strides(),
    st.none() | st.integers(1, 6),
    st.integers(1, 400),
)
def test_the_copies_of_a_batch_are_of_one_length_and_within_the_budget(
    sizes: list[int], shape: tuple[int, int | None], every: int | None, budget: int
) -> None:
    room, stride = shape
    chosen = protocol(room, stride=stride, mask_every=every)
    documents = [ordinary(size) for size in sizes]
    windows = plan_masked_windows(documents, chosen, VOCABULARIES[FRAMES[0]]).windows
    batches = plan_batches(windows, budget)
    assert sorted(n for batch in batches for n in batch) == list(range(len(windows)))
    for batch in batches:
        assert len({len(windows[n].inputs) for n in batch}) == 1
        assert len(batch) == 1 or ids_read(windows, batch) <= budget
    for one, other in pairwise(batches):
        if len(windows[one[0]].inputs) == len(windows[other[0]].inputs):
            assert ids_read(windows, [*one, other[0]]) > budget, "they would have fitted together"


# Choosing


def test_defaults_follow_from_what_the_model_reads() -> None:
    found = choose_masked_protocol(vocabulary=VOCABULARIES[FRAMES[0]], longest=66)
    assert found == MaskedProtocol(
        name="masked",
        context=66,
        stride=16,
        pll="original",
        mask_every=None,
        special_tokens="text",
    )
    unlimited = choose_masked_protocol(vocabulary=VOCABULARIES[FRAMES[0]], longest=None)
    assert (unlimited.context, unlimited.stride) == (512, 127)


@many
@given(rooms, frames)
def test_the_default_stride_is_a_quarter_of_the_room_and_at_least_one(
    room: int, frame: str
) -> None:
    assert protocol(room, frame).stride == max(1, room // 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 67}, "--context 67 is more than the 66 tokens the model can read"),
        ({"context": 1}, "--context 1 is too short: the special tokens around a text take 2"),
        ({"context": 2}, "--context 2 is too short: the special tokens around a text take 2"),
        ({"stride": 65}, r"--stride 65 is more than the 64 tokens of text that --context 66 "),
        ({"context": 10, "stride": 9}, "--stride 9 is more than the 8 tokens of text"),
        ({"pll": "word", "mask_every": 4}, "--mask-every hides single tokens: .* --pll word"),
    ],
)
def test_values_that_contradict_each_other_or_the_model_are_a_usage_error(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_masked_protocol(vocabulary=VOCABULARIES[FRAMES[0]], longest=66, **options)


@pytest.mark.parametrize(
    "options", [{"context": 3}, {"context": 66, "stride": 64}, {"pll": "original", "mask_every": 1}]
)
def test_values_at_the_edge_are_taken(options: dict[str, Any]) -> None:
    found = choose_masked_protocol(vocabulary=VOCABULARIES[FRAMES[0]], longest=66, **options)
    assert {name: getattr(found, name) for name in options} == options


def test_a_tokenizer_without_a_mask_token_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="this tokenizer has no mask token"):
        choose_masked_protocol(vocabulary=vocabulary(mask_id=None), longest=None)
