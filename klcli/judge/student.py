"""Student's t: quantiles, and how probable a value is by chance."""

import math
from functools import cache
from statistics import NormalDist

_SMALLEST = 1e-300
_PRECISION = 3e-16
_MOST_STEPS = 500
_CLOSE = 1e-9
"""Newton's method squares its error: behind a step as short as this only rounding is left."""
_LARGE = 30.0
"""From here on what ``_STIRLING`` leaves out of ln Γ is below 1e-17."""
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)


@cache
def student_t(probability: float, degrees: int) -> float:
    """Quantile of Student's t: the inverse of ``two_sided_p``, but for rounding.

    What is left of 1 beyond a probability close to it has few digits. Where it is known better the
    other tail can be asked for: t(p) = -t(1 - p).
    """
    if probability > 0.5:
        return -student_t(1 - probability, degrees)
    if probability == 0.5:
        return 0.0
    return -_exceeded(2 * probability, degrees) if probability > 0 else -math.inf


def two_sided_p(t: float, degrees: int) -> float:
    """How probable a t so far from 0, to either side, is by chance.

    P(|T| ≥ |t|) = I_x(ν/2, 1/2) with x = ν/(ν + t²) (Abramowitz and Stegun, 26.7.1 and 26.5.27).
    """
    if abs(t) < _SMALLEST:
        return 1.0
    if math.isinf(t):
        return 0.0
    return math.exp(_log_beta_share(*_log_parts(abs(t), degrees), degrees / 2, 0.5)[0])


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for x from 0 to 1."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    return math.exp(_log_beta_share(math.log(x), math.log1p(-x), a, b)[0])


def _exceeded(p: float, degrees: int) -> float:
    """The t > 0 that chance exceeds, to either side, with a probability of p, 0 < p < 1.

    By Newton's method for ln P as a function of ln t, where P is the smaller of P(|T| ≥ t) and
    P(|T| < t). Both are concave, so that from the second step on t nears its end from one side.
    """
    t = -NormalDist().inv_cdf(p / 2)
    wanted = math.log(min(p, 1 - p))
    for _ in range(_MOST_STEPS):
        log_x, log_y = _log_parts(t, degrees)
        if p < 0.5:
            found, slope = _log_beta_share(log_x, log_y, degrees / 2, 0.5)
        else:
            found, slope = _log_beta_share(log_y, log_x, 0.5, degrees / 2)
        step = (found - wanted) / (2 * slope) * (1 if p < 0.5 else -1)
        t *= math.exp(step)
        if abs(step) < _CLOSE:
            break
    return t


def _log_parts(t: float, degrees: int) -> tuple[float, float]:
    """The logarithms of ν/(ν + t²) and t²/(ν + t²), of which neither loses digits."""
    ratio = t / math.sqrt(degrees)
    less = min(ratio, 1 / ratio)
    larger = -math.log1p(less * less)
    smaller = 2 * math.log(less) + larger
    return (larger, smaller) if ratio < 1 else (smaller, larger)


def _log_beta_share(log_x: float, log_y: float, a: float, b: float) -> tuple[float, float]:
    """The logarithm of I_x(a, b), by ln x and ln y, with y = 1 - x; and x·y times its derivative.

    By a continued fraction, on the side of the symmetry I_x(a, b) = 1 - I_y(b, a) where that
    converges fast.
    """
    x, y = math.exp(log_x), math.exp(log_y)
    log_front = a * log_x + b * log_y - _log_beta(a, b)
    if y * (a + b + 2) < b + 1:
        front = math.exp(log_front)
        rest = front / _continued_fraction(y, x, b, a)
        return math.log1p(-rest), front / (1 - rest)
    fraction = _continued_fraction(x, y, a, b)
    return log_front - math.log(fraction), fraction


def _log_beta(a: float, b: float) -> float:
    """The logarithm of B(a, b), with the digits that a difference of large ln Γ would lose."""
    a, b = max(a, b), min(a, b)
    if a < _LARGE:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    rise = (a + b - 0.5) * math.log1p(b / a) + b * (math.log(a) - 1)
    return math.lgamma(b) - rise - _beyond_stirling(a + b) + _beyond_stirling(a)


def _beyond_stirling(a: float) -> float:
    """What ln Γ(a) has beyond (a - 1/2)·ln a - a + ln(2π)/2, for a large a (DLMF 5.11.1)."""
    return sum(term / a ** (2 * power + 1) for power, term in enumerate(_STIRLING))


def _continued_fraction(x: float, y: float, a: float, b: float) -> float:
    """x^a·y^b / (B(a, b)·I_x(a, b)) = β₀ + α₁/(β₁ + α₂/(β₂ + …)), by the method of Lentz.

    The even part of the fraction of DLMF 8.17.22, as Didonato and Morris (1992, Algorithm 708) have
    it: where a is large and y is small there is a·y - b·x, and nothing cancels.
    """
    value = c = _beta_term(0, x, y, a, b)
    d = 0.0
    for m in range(1, _MOST_STEPS):
        alpha = (a + m - 1) * (a + b + m - 1) * m * (b - m) * (x / (a + 2 * m - 1)) ** 2
        beta = _beta_term(m, x, y, a, b)
        d = 1 / (beta + alpha * d)
        c = beta + alpha / c
        value *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return value


def _beta_term(m: int, x: float, y: float, a: float, b: float) -> float:
    """β_m of ``_continued_fraction``."""
    first = m * (1 + (b - m) * x / (a + 2 * m - 1)) if m else 0.0
    return first + (a + m) * (a * y - b * x + 1 + m * (1 + y)) / (a + 2 * m + 1)
