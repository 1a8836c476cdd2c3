"""Student's t, against SciPy, published tables and closed forms."""

import math

import pytest
from scipy import special, stats

from klcli.judge.student import incomplete_beta, student_t, two_sided_p

DEGREES = (1, 2, 3, 4, 10, 31, 59, 60, 199, 10**4, 10**6, 10**8)
LEVELS = (
    0.01, 0.1, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.99999, 1 - 1e-9, 1 - 1e-12, 1 - 2**-52
)  # fmt: skip


# Quantiles


@pytest.mark.parametrize("level", LEVELS)
def test_quantiles_equal_scipys_at_every_level(level: float) -> None:
    tail = (1 - level) / 2
    for degrees in DEGREES:
        expected = stats.t.isf(tail, degrees)
        assert -student_t(tail, degrees) == pytest.approx(expected, rel=1e-12)
        assert student_t(1 - tail, degrees) == -student_t(1 - (1 - tail), degrees)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99, 0.99999])
def test_a_quantile_asked_for_by_what_is_below_it_is_the_same(level: float) -> None:
    for degrees in DEGREES:
        expected = stats.t.ppf((1 + level) / 2, degrees)
        assert student_t((1 + level) / 2, degrees) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("degrees", DEGREES)
def test_a_quantile_is_where_the_p_is_the_one_asked_for(degrees: int) -> None:
    for p in (0.9, 0.5, 0.4999, 0.05, 1e-3, 1e-9, 1e-16, 1e-100):
        assert two_sided_p(student_t(p / 2, degrees), degrees) == pytest.approx(p, rel=1e-11)


@pytest.mark.parametrize("degrees", DEGREES)
def test_quantiles_next_to_the_middle_keep_their_digits(degrees: int) -> None:
    for off in (2**-50, 2**-40, 2**-20, 2**-12):
        expected = off / stats.t.pdf(0, degrees)
        assert student_t(0.5 + off, degrees) == pytest.approx(expected, rel=2e-6)
        assert student_t(0.5 - off, degrees) == -student_t(0.5 + off, degrees)
    assert student_t(0.5, degrees) == 0


def test_a_quantile_of_certainty_is_infinite_and_of_nearly_that_is_not() -> None:
    for degrees in DEGREES:
        assert student_t(1.0, degrees) == -student_t(0.0, degrees) == math.inf
        assert student_t(1 - 2**-53, degrees) < math.inf


def test_quantiles_of_many_degrees_are_the_normal_ones() -> None:
    for tail in (0.4, 0.025, 1e-6, 1e-16):
        assert student_t(tail, 10**9) == pytest.approx(stats.norm.ppf(tail), rel=1e-7)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (10, 2.22814), (31, 2.03951)],
)
def test_student_t_is_that_of_the_tables(degrees: int, expected: float) -> None:
    assert student_t(0.975, degrees) == pytest.approx(expected, rel=2e-6)


# How probable a t is


@pytest.mark.parametrize("t", [0.01, 0.1, 0.7, 1.5, 1.7, 1.74, 2, 3, 5, 8, 15, 30])
def test_p_equals_scipys_near_and_far(t: float) -> None:
    for degrees in DEGREES:
        expected = 2 * stats.t.sf(t, degrees)
        assert two_sided_p(t, degrees) == pytest.approx(expected, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize(
    ("t", "degrees", "expected"),
    [
        (12.7062, 1, 0.05),
        (4.30265, 2, 0.05),
        (2.22814, 10, 0.05),
        (2.75, 30, 0.01),
        (3.64596, 30, 0.001),
        (1.95996, 10**7, 0.05),
    ],
)
def test_p_is_that_of_the_tables(t: float, degrees: int, expected: float) -> None:
    assert two_sided_p(t, degrees) == pytest.approx(expected, rel=1e-4)
    assert two_sided_p(-t, degrees) == two_sided_p(t, degrees)


@pytest.mark.parametrize("t", [0.0, 1e-9, 0.1, 1.0, 5.0, 40.0, 1e8])
def test_p_is_that_of_the_closed_forms(t: float) -> None:
    cauchy = 2 / math.pi * math.atan2(1, t)
    assert two_sided_p(t, 1) == pytest.approx(cauchy, rel=1e-12)
    with_two = 2 / (2 + t * t + t * math.sqrt(2 + t * t))
    assert two_sided_p(t, 2) == pytest.approx(with_two, rel=1e-12)


def test_nothing_is_certain_at_0_and_everything_at_infinity() -> None:
    assert two_sided_p(0.0, 5) == two_sided_p(5e-324, 5) == 1
    assert two_sided_p(math.inf, 5) == two_sided_p(-math.inf, 5) == 0


# The incomplete beta function


@pytest.mark.parametrize("x", [0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
def test_the_incomplete_beta_of_small_whole_numbers(x: float) -> None:
    assert incomplete_beta(x, 1, 1) == pytest.approx(x)
    assert incomplete_beta(x, 2, 3) == pytest.approx(6 * x**2 - 8 * x**3 + 3 * x**4)
    assert incomplete_beta(x, 5, 0.5) == pytest.approx(1 - incomplete_beta(1 - x, 0.5, 5))


@pytest.mark.parametrize("x", [1e-9, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_the_incomplete_beta_equals_scipys(x: float) -> None:
    for a in (0.5, 1, 3, 29.5, 30, 1e3, 1e6):
        for b in (0.5, 1, 7, 80):
            expected = special.betainc(a, b, x)
            assert incomplete_beta(x, a, b) == pytest.approx(expected, rel=2e-11, abs=1e-300)
