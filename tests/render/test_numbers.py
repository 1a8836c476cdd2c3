import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klcli.render.numbers import (
    apart,
    count,
    duration,
    estimate,
    figure,
    fixed,
    number,
    percent,
)


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (0.0, "0"),
        (2.14112018, "2.1411"),
        (12.34567, "12.346"),
        (12345.678, "12346"),
        (123456.78, "123457"),
        (0.96651785, "0.9665"),
        (0.00101425, "0.001014"),
        (-0.00023461, "-0.000235"),
        (0.0000312, "3.12e-05"),
        (12345678.0, "1.23e+07"),
    ],
)
def test_a_number_is_short_and_has_its_significant_digits(x: float | None, shown: str) -> None:
    assert number(x) == shown


@given(st.floats(min_value=-1e99, max_value=1e99).filter(lambda x: abs(x) > 1e-99))
def test_a_number_has_its_column(x: float) -> None:
    assert len(number(x).removeprefix("-")) <= 9
    assert float(number(x)) == pytest.approx(x, rel=0.006)


def test_a_share_is_shown_in_percent() -> None:
    assert (percent(0.96651785), percent(1.0), percent(None)) == ("96.652", "100.00", "–")


def test_a_fixed_number_gives_up_decimals_before_its_column() -> None:
    shown = [fixed(x, 3, 6) for x in (1.5, 99.9999, 123.456, 12345.6, math.nan, None, math.inf)]
    assert shown == ["1.500", "100.00", "123.46", "12346", "–", "–", "inf"]


def test_what_is_counted_is_named() -> None:
    assert (count(1, "token"), count(1234, "token"), count(0, "token")) == (
        "1 token", "1,234 tokens", "0 tokens",
    )  # fmt: skip
    assert (count(None), count(1234567)) == ("–", "1,234,567")


@pytest.mark.parametrize(
    ("value", "limit", "shown"),
    [
        (0.0100001, 0.01, "0.0100001"),
        (0.01, 0.01, "0.01"),
        (0.012345671, 0.012345671, "0.012345671"),
        (0.5, 0.01, "0.5"),
        (0.123456789, 0.5, "0.12346"),
        (math.inf, 0.5, "inf"),
        (None, 0.5, "–"),
    ],
)
def test_a_value_stands_to_its_limit_in_print_as_in_truth(
    value: float | None, limit: float, shown: str
) -> None:
    assert apart(value, limit) == shown


@given(st.floats(1e-9, 1e9), st.floats(-1e-6, 1e-6))
def test_a_printed_value_never_contradicts_the_verdict(limit: float, difference: float) -> None:
    value = limit * (1 + difference)
    shown = float(apart(value, limit))
    assert (shown <= limit, shown >= limit) == (value <= limit, value >= limit)


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (None, "–"), (math.nan, "–"), (math.inf, "inf"), (0.0, "0"), (0.272, "0.272"),
        (24.83, "24.8"), (9.996, "10.0"), (1234.5, "1,234"), (0.0001, "0.000100"),
        (-0.04, "-0.0400"), (3.123e-5, "3.12e-05"), (2e7, "2.00e+07"),
    ],
)  # fmt: skip
def test_a_figure_has_three_significant_digits(x: float | None, shown: str) -> None:
    assert figure(x) == shown


@pytest.mark.parametrize(
    ("x", "shown"),
    [(None, "–"), (math.inf, "inf"), (0.0, "0"), (8.38812, "8.3881"), (2e-9, "2.0000e-09")],
)
def test_a_figure_has_as_many_digits_as_are_asked_for(x: float | None, shown: str) -> None:
    assert figure(x, 5) == shown


@pytest.mark.parametrize(
    ("x", "low", "high", "number_", "interval"),
    [
        (0.272, 0.26, 0.284, "0.272", "0.260 to 0.284"),
        (2.12691, 2.1030, 2.1507, "2.127", "2.103 to 2.151"),
        (0.0000484, -0.0011, 0.0021, "0.00005", "-0.0011 to 0.0021"),
        (0.2721234, 0.2721230, 0.2721239, "0.27212", "0.27212300 to 0.27212390"),
        (0.0, -0.1, 0.1, "0", "-0.10 to 0.10"),
        (3e-6, 2e-6, 4e-6, "3.00e-06", "2.00e-06 to 4.00e-06"),
        (123456.7, 1e5, 2e5, "123,457", "100,000 to 200,000"),
        (0.5, 0.5, 0.5, "0.500", ""),
        (0.5, None, 0.6, "0.500", ""),
        (math.inf, 0.5, 0.6, "inf", ""),
        (math.nan, 0.5, 0.6, "–", ""),
        (None, 0.5, 0.6, "–", ""),
    ],
)
def test_an_estimate_has_as_many_digits_as_its_interval_deserves(
    x: float | None, low: float | None, high: float | None, number_: str, interval: str
) -> None:
    assert estimate(x, low, high) == (number_, interval)


@given(st.floats(-1e5, 1e5), st.floats(0, 1e3), st.floats(0, 1e3))
def test_an_estimate_is_near_what_it_says(x: float, below: float, above: float) -> None:
    said = estimate(x, x - below, x + above)
    assert float(said.number.replace(",", "")) == pytest.approx(x, rel=0.006, abs=below + above)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0 s"), (0.31, "0.3 s"), (4.2, "4 s"), (59.7, "1m00s"), (308, "5m08s"), (7500, "2h05m")],
)
def test_a_duration_is_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
