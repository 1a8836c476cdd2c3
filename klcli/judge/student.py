"""Student's t: quantiles, and how probable a value is by chance."""

import math
from statistics import NormalDist

_SMALLEST = 1e-300
_PRECISION = 1e-15
_MOST_STEPS = 500


def student_t(probability: float, degrees: int) -> float:
    """Quantile of Student's t.

    Exact for 1 and 2 degrees of freedom, else the expansion in 1/degrees around the normal quantile
    (Abramowitz and Stegun, 26.7.5): within 0.2 % from 3 degrees on.
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))


def two_sided_p(t: float, degrees: int) -> float:
    """How probable a t so far from 0, to either side, is by chance.

    P(|T| ≥ |t|) = I_x(ν/2, 1/2) with x = ν/(ν + t²) (Abramowitz and Stegun, 26.7.1 and 26.5.27).
    """
    if math.isinf(t):
        return 0.0
    return incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for x from 0 to 1.

    By its continued fraction (DLMF 8.17.22), on the side of the symmetry I_x(a, b) = 1 - I_1-x(b,
    a) where that converges fast.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _continued_fraction(x, a, b))


def _continued_fraction(x: float, a: float, b: float) -> float:
    """1 + d₁/(1 + d₂/(1 + …)) of DLMF 8.17.22, by the modified method of Lentz."""
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, _MOST_STEPS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _apart_from_0(1 + term * d)
        c = _apart_from_0(1 + term / c)
        value *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return value


def _apart_from_0(x: float) -> float:
    return x if abs(x) > _SMALLEST else _SMALLEST
