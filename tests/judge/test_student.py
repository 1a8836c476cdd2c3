"""Student's t, against published tables and closed forms."""

import math

import pytest

from klcli.judge.student import incomplete_beta, student_t, two_sided_p


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (10, 2.22814), (31, 2.03951)],
)
def test_student_t_is_that_of_the_tables(degrees: int, expected: float) -> None:
    assert student_t(0.975, degrees) == pytest.approx(expected, rel=2e-3)


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
    assert two_sided_p(t, 1) == pytest.approx(cauchy, rel=1e-12, abs=1e-9)
    with_two = 2 / (2 + t * t + t * math.sqrt(2 + t * t))
    assert two_sided_p(t, 2) == pytest.approx(with_two, rel=1e-7)


def test_nothing_is_certain_at_0_and_everything_at_infinity() -> None:
    assert two_sided_p(0.0, 5) == 1
    assert two_sided_p(math.inf, 5) == two_sided_p(-math.inf, 5) == 0


@pytest.mark.parametrize("degrees", [3, 9, 28, 199])
def test_p_and_the_quantile_belong_together(degrees: int) -> None:
    assert two_sided_p(student_t(0.975, degrees), degrees) == pytest.approx(0.05, rel=6e-3)


@pytest.mark.parametrize("x", [0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
def test_the_incomplete_beta_of_small_whole_numbers(x: float) -> None:
    assert incomplete_beta(x, 1, 1) == pytest.approx(x)
    assert incomplete_beta(x, 2, 3) == pytest.approx(6 * x**2 - 8 * x**3 + 3 * x**4)
    assert incomplete_beta(x, 5, 0.5) == pytest.approx(1 - incomplete_beta(1 - x, 0.5, 5))
