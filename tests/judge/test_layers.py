"""When a layer counts as apart, and what the sums are."""

import math

import numpy as np
import pytest
import torch

from klcli.align import Alignment
from klcli.judge.layers import LEAST, Layer, conclude_layers
from klcli.measure.layers import LayerSums, MeasuredLayers
from klcli.sources.conditions import Conditions
from klcli.text.vocabulary import NumberedTokens
from klcli.text.windows import TokenizedDocument, Window, WindowTable


def sums(error: float) -> LayerSums:
    return LayerSums(
        tokens=4,
        apart=error**2,
        size=1.0,
        errors=4 * error,
        cosines=4.0,
        largest=error,
        largest_at=3,
    )


def judged(errors: list[float], noise: list[float], *dtypes: str) -> list[Layer]:
    ids = np.arange(5)
    window = Window(document=0, inputs=ids[:-1], targets=ids[1:], score_from=0, position=1)
    document = TokenizedDocument(corpus=0, name="a", ids=ids, encoding=None)
    names = ["embedding", "block 0", "logits"]
    found = conclude_layers(
        MeasuredLayers(
            candidate=dict(zip(names, map(sums, errors), strict=True)),
            noise=dict(zip(names, map(sums, noise), strict=True)),
            blocks=(1, 1),
        ),
        ["h.0"],
        Alignment(
            table=WindowTable(documents=(document,), windows=(window,)),
            names=NumberedTokens(5),
            vocabulary_size=5,
            notices=(),
        ),
        Conditions(
            models={
                side: {"source": side, "dtype": dtype}
                for side, dtype in zip(("reference", "candidate"), dtypes, strict=True)
            },
            environment={},
        ),
        {"tokens": 4},
    )
    assert found.first_apart == next((one.layer for one in found.layers if one.is_apart), None)
    return list(found.layers)


def test_an_error_below_ten_times_the_noise_is_none() -> None:
    found = judged([0.0, 0.09, 0.11], [0.0, 0.01, 0.01], "float32", "float32")
    assert [one.is_apart for one in found] == [False, False, True]
    assert [one.allowed for one in found[1:]] == pytest.approx([0.1, 0.1])


def test_rounding_of_the_coarser_format_is_allowed_once_more_in_each_layer() -> None:
    found = judged([0.0] * 3, [0.0] * 3, "float32", "bfloat16")
    step = LEAST["bfloat16"]
    assert [one.allowed for one in found] == pytest.approx([step, step * 2**0.5, step * 3**0.5])


def test_an_unknown_format_counts_as_float32() -> None:
    assert judged([0.0] * 3, [0.0] * 3, "float8", "float8")[0].allowed == LEAST["float32"]


def test_the_place_of_the_largest_error_is_that_of_the_scored_token() -> None:
    place = judged([0.0, 0.5, 0.5], [0.0] * 3, "float32", "float32")[1].largest
    assert place is not None
    assert (place.index, place.position, place.token_id, place.token) == (3, 4, 4, " #4")


def of(p: list[list[float]], q: list[list[float]]) -> LayerSums:
    found = LayerSums()
    places = np.arange(10, 10 + len(p))
    found.add(torch.tensor(p), torch.tensor(q), places)
    return found


def test_the_relative_error_is_over_all_positions() -> None:
    found = of([[3.0, 4.0], [0.0, 1.0]], [[3.0, 4.0], [1.0, 1.0]])
    assert found.error == pytest.approx(math.sqrt(1 / 26))
    assert found.cosine == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert (found.largest, found.largest_at) == (1.0, 11)


def test_one_token_of_large_states_hides_the_others_in_one_error_only() -> None:
    found = of([[1000.0, 0.0], [0.0, 1.0]], [[1000.0, 0.0], [0.0, 1.5]])
    assert found.error == pytest.approx(0.5 / 1000, rel=1e-5)
    assert found.token_error == pytest.approx(0.5 / 2)


def test_states_of_nothing_are_alike() -> None:
    found = of([[0.0, 0.0]], [[0.0, 0.0]])
    assert (found.error, found.token_error, found.cosine, found.largest) == (0.0, 0.0, 1.0, 0.0)
    assert of([[0.0, 0.0]], [[0.0, 2.0]]).error == math.inf


def test_the_same_infinity_is_no_difference() -> None:
    inf = math.inf
    found = of([[-inf, 1.0]], [[-inf, 1.0]])
    assert (found.error, found.not_finite) == (0.0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_positions_that_are_not_finite_are_left_out_and_counted(bad: float) -> None:
    found = of([[1.0, 1.0], [2.0, 0.0]], [[bad, 1.0], [2.0, 0.0]])
    assert (found.error, found.tokens, found.not_finite, found.largest_at) == (0.0, 1, 1, 11)
    nothing = of([[1.0]], [[bad]])
    assert math.isnan(nothing.error)
    assert math.isnan(nothing.cosine)
    assert nothing.largest_at is None
