"""Every column of rows of logits in a few passes over each row, compiled by Numba.

The arithmetic is in float32, the sums of every ``CHUNK`` numbers are added up in float64. Nothing
here knows of PyTorch: rows lie in flat arrays of float32, of the bits of bfloat16 (int16) or of
those of float16 (uint16), row i from ``i * stride`` on. The GIL is released.

One row of one model (``_read_row``) is read once, chunk by chunk: the largest logit, the number of
logits above the target's, then Σ e^x and Σ x e^x relative to the largest logit so far (online
softmax: Milakov and Gimelshein, arXiv:1805.02867). Two models take one more pass over both rows,
which by then lie in the cache (``_divergence_sums``).

Which flags of fast mathematics a function gets matters: ``contract`` (fused multiply-add) is fine
everywhere; ``reassoc`` and ``nsz``, without which no sum is vectorised, only stand where sums are
made, and never on ``_exp`` and ``_minus``, which need the order of their operations. ``nnan`` and
``ninf`` stand nowhere, because rows hold NaN and -inf. Flags stay with their function when LLVM
inlines it.
"""

# mypy: ignore-errors

import math
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

f32, f64, i32 = np.float32, np.float64, np.int32  # Numba's float(x) leaves a float32 as it is


def njit(function):
    """Compile a function, and keep the machine code where there is a folder to keep it in."""
    options = {"nogil": True, "fastmath": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written to: compile again in every process
        return numba.njit(**options)(function)


def inlined(**flags):
    """Compile a function into those that call it.

    As a function of its own it would be there twice in the process that compiles, optimised once
    with its callers and once without, and that process would have other last digits than those
    which read the kept machine code.
    """
    return numba.njit(forceinline=True, **flags)


CHUNK = 512
"""How many logits are summed in float32 before float64 takes over: 2 kB, which the L1 cache has."""
PART = 64
"""How many logits are searched at once for one of the most probable tokens."""
TOLERANCE = 1e-5
"""How much of TV the sums of p and q may differ by before the pass is made again."""
ROUNDS = 4
LARGE = 1e6
"""Largest logits beyond this leave too few digits of float64 for the difference of two rows."""
FAR = f32(1e4)
"""Log-ratios beyond this are summed by ``_far``: bans and masks in one of the rows only."""
NEAR = f32(0.5)
"""Log-ratios below this need power series: nothing but rounding is left of the closed forms."""

ZERO, HALF, ONE = f32(0), f32(0.5), f32(1)
LOWEST = f32(np.finfo(np.float32).min)
FLOOR = LOWEST * HALF
UNDERFLOW = f32(-88)
LOG2_E, LN_2 = f32(math.log2(math.e)), f32(math.log(2))
LN_2_HIGH = f32(0.693145751953125)  # 15 bits: its product with an exponent is exact
LN_2_LOW = f32(math.log(2) - 0.693145751953125)
TO_INTEGER = f32(1.5 * 2**23)
ONE_BITS, SIGN_OFF, NOTHING = i32(0x3F800000), i32(0x7FFFFFFF), i32(-0x80000000)
INFINITY_KEY = 0x7F800000

# Minimax polynomials (Chebyshev fits, reweighted), highest power first.
# (e^r - 1 - r) / r² on |r| <= ln 2 / 2: e^r to 7e-9
EXP = tuple(map(f32, (1.394116188e-3, 8.363205157e-3, 4.1666374715e-2, 0.16666576826, 0.5)))
# (x - 1 + e^-x) / x² on [0, 1/2]: to 2e-8 of itself
PHI = tuple(map(f32, (1.16327997e-3, -8.23720758e-3, 4.164961020e-2, -0.16666559513, 0.499999989)))
# [(1 + e)(ln 2 - ln(1 + e)) - e x] / 2x², e = e^-x, on [0, 1/2]: to 3e-8 of itself
PSI = tuple(map(f32, (3.37033232e-4, -2.56349105e-3, 1.561790829e-2, -6.24995643e-2, 0.1249999957)))
# ln(1 + e) / e on [0, e^-1/2]: to 8e-8
LOG = tuple(
    map(
        f32,
        (
            3.0998442041e-2,
            -0.10217559137,
            0.17806733909,
            -0.24587864299,
            0.33295154128,
            -0.49998652043,
            0.99999992192,
        ),
    )
)


class SideColumns(NamedTuple):
    """Where the columns of one model go: (rows,), the last two (rows, k)."""

    nll: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]
    entropy: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    padded_mass: npt.NDArray[np.float64]
    usable: npt.NDArray[np.bool_]
    top_ids: npt.NDArray[np.int64]
    top_probabilities: npt.NDArray[np.float64]


class PairColumns(NamedTuple):
    """Where the columns of a comparison go: (rows,)."""

    kl: npt.NDArray[np.float64]
    kl_reverse: npt.NDArray[np.float64]
    jsd: npt.NDArray[np.float64]
    tv: npt.NDArray[np.float64]
    nll_difference: npt.NDArray[np.float64]
    delta_p: npt.NDArray[np.float64]
    overlap_5: npt.NDArray[np.float64]


@intrinsic
def _value(context, x):
    """A logit as float32, whatever it is stored as."""

    def generate(context, builder, signature, arguments):
        (bits,) = arguments
        if x == types.float32:
            return bits
        if x == types.uint16:
            return builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())
        word = ir.IntType(32)
        return builder.bitcast(
            builder.shl(builder.zext(bits, word), ir.Constant(word, 16)), ir.FloatType()
        )

    return types.float32(x), generate


@intrinsic
def _bits(context, x):
    """The bits of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _from_bits(context, x):
    """The float32 of some bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@inlined(fastmath=False)
def _key(x):
    """An integer that orders as x does, so that a maximum is vectorised in spite of NaN."""
    bits = _bits(x + ZERO)  # -0.0 + 0.0 is 0.0
    return i32(bits ^ i32(i32(bits >> 31) & SIGN_OFF))


@inlined(fastmath=False)
def _from_key(key):
    return _from_bits(i32(key ^ i32(i32(key >> 31) & SIGN_OFF)))


@inlined(fastmath={"contract"})
def _exp(x):
    """e^x for -88 <= x <= 0, to 8e-8 of itself; 0 below -87.7, NaN of NaN.

    e^x = 2^n e^r with n = round(x / ln 2): Cody and Waite.
    """
    rounded = x * LOG2_E + TO_INTEGER  # which leaves n in its lowest bits
    n = rounded - TO_INTEGER
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW
    tail = (((EXP[0] * r + EXP[1]) * r + EXP[2]) * r + EXP[3]) * r + EXP[4]
    return _from_bits(i32(i32(_bits(rounded) << 23) + ONE_BITS)) * (r * r * tail + r + ONE)


@inlined(fastmath=False)
def _apart(a, b):
    """``a - b``, which no sum that it is a term of can take apart."""
    return a - b


@inlined(fastmath=False)
def _minus(a, b, high, low):
    """``a - b - (high + low)`` with one rounding, at the size of the result: Knuth's two-sum."""
    difference = a - b
    b_part = difference - a
    rounding = (a - (difference - b_part)) - (b + b_part)
    return (difference - high) + (rounding - low)


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _largest(logits):
    """The key of the largest logit."""
    best = NOTHING
    for i in range(logits.size):
        key = _key(_value(logits[i]))
        best = key if key > best else best
    return best


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _survey(logits, target_value):
    """The key of the largest logit, and how many are above the target's."""
    best, above = NOTHING, ZERO
    for i in range(logits.size):
        x = _value(logits[i])
        above += ONE if x > target_value else ZERO
        key = _key(x)
        best = key if key > best else best
    return best, above


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _exponentials(logits, peak, weights):
    """Σ e^x and Σ x e^x for x = logit - peak; the e^x go into ``weights``.

    The peak's own e^0 is counted apart, or its size would cost the others their last digits.
    """
    rest, peaks, moment = ZERO, ZERO, ZERO
    for i in range(logits.size):
        x = _value(logits[i]) - peak
        x = UNDERFLOW if x < UNDERFLOW else x
        weight = _exp(x)
        weights[i] = weight
        at_peak = ONE if x == ZERO else ZERO
        rest += _apart(weight, at_peak)
        peaks += at_peak
        moment += x * weight
    return f64(rest) + f64(peaks), f64(moment)


@inlined(fastmath=False)
def _keep_top(logits, first_id, keys, ids):
    """Put those of some logits that are among the largest so far into the sorted lists."""
    for start in range(0, logits.size, PART):
        stop = min(start + PART, logits.size)
        if _largest(logits[start:stop]) <= keys[-1]:
            continue
        for i in range(start, stop):
            key = _key(_value(logits[i]))
            place = keys.size - 1
            if key <= keys[place]:
                continue  # on ties the lower id, which came first, stays
            while place > 0 and keys[place - 1] < key:
                keys[place], ids[place] = keys[place - 1], ids[place - 1]
                place -= 1
            keys[place], ids[place] = key, first_id + i


@inlined(fastmath=False)
def _padded_mass(logits, peak, total, weights):
    mass = 0.0
    for start in range(0, logits.size, CHUNK):
        stop = min(start + CHUNK, logits.size)
        mass += _exponentials(logits[start:stop], peak, weights[: stop - start])[0]
    return mass / total


@inlined(fastmath=False)
def _read_row(logits, target, size, weights, peaks, spare, keys, columns, row):
    """The columns of one model at one row; returns its largest logit and ln Σ e^(logit - largest).

    Chunk c of ``weights`` ends up with e^(logit - peaks[c]). A ``weights`` of one chunk is
    written over and over: then nothing is kept.
    """
    ids = columns.top_ids[row]
    keys[:], ids[:] = NOTHING, -1
    target_value = _value(logits[max(target, 0)])
    peak, total, moment, above = LOWEST, 0.0, 0.0, 0.0
    kept = weights.size >= logits.size
    largest = NOTHING
    for start in range(0, logits.size, CHUNK):
        chunk = logits[start : min(start + CHUNK, logits.size)]
        best, count = _survey(chunk, target_value)
        above += count
        if best > keys[-1]:
            _keep_top(chunk, start, keys, ids)
        if best > largest:
            largest = best
            higher = max(_from_key(best), LOWEST)
            drop = f64(peak) - f64(higher)
            moment = math.exp(drop) * (moment + (total * drop if total > 0.0 else 0.0))
            total *= math.exp(drop)
            peak = higher
        place = start if kept else 0
        chunk_total, chunk_moment = _exponentials(chunk, peak, weights[place : place + chunk.size])
        total += chunk_total
        moment += chunk_moment
        peaks[start // CHUNK] = peak
    log_total = math.log(total) if total > 0.0 else math.nan
    usable = largest < INFINITY_KEY and math.isfinite(log_total)
    columns.usable[row] = usable
    mean = moment / total if usable else math.nan
    _write_side(logits, target, usable, f64(peak), log_total, mean, above, columns, row)
    columns.padded_mass[row] = (
        _padded_mass(logits[min(size, logits.size) :], peak, total, spare) if usable else math.nan
    )
    return f64(peak), log_total


@inlined(fastmath=False)
def _write_side(logits, target, usable, peak, log_total, mean, above, columns, row):
    ids = columns.top_ids[row]
    if not usable:
        columns.nll[row] = columns.entropy[row] = columns.confidence[row] = math.nan
        columns.rank[row] = -1
        ids[:], columns.top_probabilities[row, :] = -1, 0.0
        return
    known = target >= 0
    value = f64(_value(logits[max(target, 0)]))
    columns.nll[row] = log_total - (value - peak) if known else math.nan
    columns.rank[row] = int(above) if known else -1
    columns.entropy[row] = max(log_total - mean, 0.0)
    columns.confidence[row] = math.exp(-log_total)
    for k in range(ids.size):
        value = f64(_value(logits[ids[k]]))
        columns.top_probabilities[row, k] = math.exp(value - peak - log_total)


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _all_near(p, q, high):
    """Whether no |δ| of a chunk, but for rounding, is above ``NEAR``: then no e^x is needed."""
    outside = ZERO
    for i in range(p.size):
        outside += ZERO if abs((_value(p[i]) - _value(q[i])) - high) < NEAR else ONE
    return outside == ZERO


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _near_sums(p, q, p_weights, q_weights, p_scale, q_scale, high, low):
    """``_divergence_sums`` of a chunk that is ``_all_near``."""
    kl, kl_reverse, jsd, above, below = ZERO, ZERO, ZERO, ZERO, ZERO
    for i in range(p.size):
        delta = _minus(_value(p[i]), _value(q[i]), high, low)
        x = abs(delta)
        more = delta >= ZERO
        p_weight, q_weight = p_weights[i] * p_scale, q_weights[i] * q_scale
        weight = p_weight if more else q_weight
        square = x * x
        phi = square * ((((PHI[0] * x + PHI[1]) * x + PHI[2]) * x + PHI[3]) * x + PHI[4])
        psi = square * ((((PSI[0] * x + PSI[1]) * x + PSI[2]) * x + PSI[3]) * x + PSI[4])
        gap = x - phi
        other = x * gap - phi
        kl += weight * (phi if more else other)
        kl_reverse += weight * (other if more else phi)
        jsd += weight * psi
        above += weight * gap if more else ZERO
        below += ZERO if more else weight * gap
    return kl, kl_reverse, jsd, above, below, ZERO


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _divergence_sums(p, q, p_weights, q_weights, p_scale, q_scale, high, low):
    """Sums over a chunk: KL(P‖Q), KL(Q‖P), JSD, Σ(p-q)⁺, Σ(q-p)⁺ and the number of far terms.

    ``high`` + ``low`` is the difference of the logarithms of the two rows' sums, so that
    δ = ln p - ln q = logit of P - logit of Q - (high + low). Let x = |δ|, e = e^-x, and M the
    larger of p and q, so that M e is the smaller. In

        KL(P‖Q) = Σ (q - p + p δ),    KL(Q‖P) = Σ (p - q - q δ)

    (the added sums are 0) no term is negative: either M φ with φ = x - 1 + e, or M (1 - e - e x),
    the first in KL(P‖Q) where p >= q. A term of JSD is M ψ, ψ = ½ [(1+e)(ln 2 - ln(1+e)) - e x],
    one of |p - q| is M (1 - e).
    """
    kl, kl_reverse, jsd, above, below, far = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    for i in range(p.size):
        a, b = _value(p[i]), _value(q[i])
        a = FLOOR if a < FLOOR else a  # -inf on both sides: no difference
        b = FLOOR if b < FLOOR else b
        delta = _minus(a, b, high, low)
        x = abs(delta)
        x = FAR if x > FAR else x
        more = delta >= ZERO
        p_weight, q_weight = p_weights[i] * p_scale, q_weights[i] * q_scale
        weight = p_weight if more else q_weight
        e = _exp(-x if x < -UNDERFLOW else UNDERFLOW)
        near = x < NEAR
        square = x * x
        phi_near = square * ((((PHI[0] * x + PHI[1]) * x + PHI[2]) * x + PHI[3]) * x + PHI[4])
        psi_near = square * ((((PSI[0] * x + PSI[1]) * x + PSI[2]) * x + PSI[3]) * x + PSI[4])
        log = (((((LOG[0] * e + LOG[1]) * e + LOG[2]) * e + LOG[3]) * e + LOG[4]) * e + LOG[5]) * e
        log = (log + LOG[6]) * e
        gap = x - phi_near if near else ONE - e
        phi = phi_near if near else x - gap
        other = x * gap - phi if near else gap - e * x
        psi = psi_near if near else HALF * ((ONE + e) * (LN_2 - log) - e * x)
        phi = ZERO if x >= FAR else phi
        kl += weight * (phi if more else other)
        kl_reverse += weight * (other if more else phi)
        jsd += weight * psi
        above += weight * gap if more else ZERO
        below += ZERO if more else weight * gap
        far += ONE if x >= FAR else ZERO
    return kl, kl_reverse, jsd, above, below, far


@inlined(fastmath=False)
def _divergences(p, q, p_side, q_side, centre, sums):
    """Fill ``sums`` with those of ``_divergence_sums`` over whole rows."""
    p_peak, p_log_total, p_weights, p_peaks = p_side
    q_peak, q_log_total, q_weights, q_peaks = q_side
    high = f32(centre)
    low = f32(centre - high)
    sums[:] = 0.0
    for start in range(0, p.size, CHUNK):
        stop = min(start + CHUNK, p.size)
        p_scale = f32(math.exp(f64(p_peaks[start // CHUNK]) - p_peak - p_log_total))
        q_scale = f32(math.exp(f64(q_peaks[start // CHUNK]) - q_peak - q_log_total))
        a, b = p[start:stop], q[start:stop]
        p_weight, q_weight = p_weights[start:stop], q_weights[start:stop]
        if _all_near(a, b, high):
            found = _near_sums(a, b, p_weight, q_weight, p_scale, q_scale, high, low)
        else:
            found = _divergence_sums(a, b, p_weight, q_weight, p_scale, q_scale, high, low)
        for k in range(6):
            sums[k] += found[k]


@inlined(fastmath=False)
def _far(p, q, p_log_sum, q_log_sum, centre):
    """What ``_divergence_sums`` left out: M (x - 1) where x > FAR, for KL(P‖Q) and KL(Q‖P)."""
    kl, kl_reverse = 0.0, 0.0
    high = f32(centre)
    low = f32(centre - high)
    for i in range(p.size):
        a, b = max(_value(p[i]), FLOOR), max(_value(q[i]), FLOOR)
        if abs(_minus(a, b, high, low)) < FAR:
            continue
        log_p = f64(_value(p[i])) - p_log_sum
        log_q = f64(_value(q[i])) - q_log_sum
        delta = log_p - log_q
        if delta > 0.0 and math.exp(log_p) > 0.0:
            kl += math.exp(log_p) * (delta - 1.0)
        if delta < 0.0 and math.exp(log_q) > 0.0:
            kl_reverse += math.exp(log_q) * (-delta - 1.0)
    return kl, kl_reverse


@inlined(fastmath=False)
def _sum_slowly(p, q, p_side, q_side, sums):
    """The sums of ``_divergence_sums`` in float64, of rows too far apart for one common centre."""
    sums[:] = 0.0
    for i in range(p.size):
        log_p = (f64(_value(p[i])) - p_side[0]) - p_side[1]
        log_q = (f64(_value(q[i])) - q_side[0]) - q_side[1]
        x, y = math.exp(log_p), math.exp(log_q)
        if x > 0.0:
            sums[0] += x * (log_p - log_q)
            sums[2] += x * math.log(2 * x / (x + y)) / 2
        if y > 0.0:
            sums[1] += y * (log_q - log_p)
            sums[2] += y * math.log(2 * y / (x + y)) / 2
        sums[3 if x > y else 4] += abs(x - y)


@inlined(fastmath=False)
def _sum_fast(p, q, p_side, q_side, centre, sums):
    """Fill ``sums``; returns a better ``centre``, the difference of the rows' log-sums.

    A difference of two logarithms is good to 1e-8, which is too little for TV where P and Q are
    closer than 1e-3. Σ(p-q), which must be 0, shows by how much it is off.
    """
    for _ in range(ROUNDS):
        _divergences(p, q, p_side, q_side, centre, sums)
        excess = sums[3] - sums[4]
        if abs(excess) <= TOLERANCE * (sums[3] + sums[4]):
            break
        centre -= math.log1p(-excess)
    if sums[5] > 0.0:
        kl, kl_reverse = _far(p, q, p_side[0] + p_side[1], q_side[0] + q_side[1], centre)
        sums[0] += kl
        sums[1] += kl_reverse
    return centre


@inlined(fastmath=False)
def _compare_row(p, q, target, p_side, q_side, sums, columns, row):
    """The columns of a comparison at one row, of two rows that have been read."""
    centre = (p_side[0] - q_side[0]) + (p_side[1] - q_side[1])
    if max(abs(p_side[0]), abs(q_side[0])) > LARGE:
        _sum_slowly(p, q, p_side, q_side, sums)
    else:
        centre = _sum_fast(p, q, p_side, q_side, centre, sums)
    kl, kl_reverse = max(sums[0], 0.0), max(sums[1], 0.0)
    columns.kl[row] = kl
    columns.kl_reverse[row] = kl_reverse
    columns.jsd[row] = min(sums[2], math.log(2.0))
    columns.tv[row] = min((sums[3] + sums[4]) / 2, 1.0)
    _compare_targets(p, q, target, p_side, q_side, centre, columns, row)


@inlined(fastmath=False)
def _compare_targets(p, q, target, p_side, q_side, centre, columns, row):
    columns.nll_difference[row] = columns.delta_p[row] = math.nan
    if target < 0:
        return
    p_value, q_value = f64(_value(p[target])), f64(_value(q[target]))
    delta = (p_value - q_value) - centre
    if max(abs(p_side[0]), abs(q_side[0])) > LARGE:
        delta = (p_value - p_side[0] - p_side[1]) - (q_value - q_side[0] - q_side[1])
    p_target = math.exp(p_value - p_side[0] - p_side[1])
    q_target = math.exp(q_value - q_side[0] - q_side[1])
    columns.nll_difference[row] = delta
    close = abs(delta) < 1.0
    columns.delta_p[row] = p_target * math.expm1(-delta) if close else q_target - p_target


@inlined(fastmath=False)
def _exclude(columns, row):
    columns.kl[row] = columns.kl_reverse[row] = columns.jsd[row] = columns.tv[row] = math.nan
    columns.nll_difference[row] = columns.delta_p[row] = math.nan


@inlined(fastmath=False)
def _overlap(ids, other_ids):
    shared = 0
    for a in ids:
        for b in other_ids:
            shared += a == b
    return shared / ids.size


@njit
def widen(logits, stride, rows):
    """Make float32 of rows: (rows, width)."""
    for row in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            rows[row, i] = _value(logits[row * stride + i])


@njit
def predict_rows(logits, stride, targets, size, width, columns):
    """The columns of one model at every row."""
    weights, spare = np.empty(CHUNK, f32), np.empty(CHUNK, f32)
    peaks = np.empty(width // CHUNK + 1, f32)
    keys = np.empty(columns.top_ids.shape[1], i32)
    for row in range(targets.size):
        values = logits[row * stride : row * stride + width]
        _read_row(values, targets[row], size, weights, peaks, spare, keys, columns, row)


@njit
def compare_rows(p, p_stride, q, q_stride, targets, size, width, p_columns, q_columns, columns):
    """The columns of two models at every row; the caller sees to it that logits have one type."""
    logits, strides, sides = (p, q), (p_stride, q_stride), (p_columns, q_columns)
    weights = (np.empty(width, f32), np.empty(width, f32))
    peaks = (np.empty(width // CHUNK + 1, f32), np.empty(width // CHUNK + 1, f32))
    keys, spare = np.empty(p_columns.top_ids.shape[1], i32), np.empty(CHUNK, f32)
    read, sums = np.empty((2, 2)), np.empty(6)
    for row in range(targets.size):
        target = targets[row]
        for k in range(2):  # the same machine code reads both: equal rows give equal numbers
            values = logits[k][row * strides[k] : row * strides[k] + width]
            read[k] = _read_row(
                values, target, size, weights[k], peaks[k], spare, keys, sides[k], row
            )
        columns.overlap_5[row] = math.nan
        if not (p_columns.usable[row] and q_columns.usable[row]):
            _exclude(columns, row)
            continue
        columns.overlap_5[row] = _overlap(p_columns.top_ids[row], q_columns.top_ids[row])
        p_side = (read[0, 0], read[0, 1], weights[0], peaks[0])
        q_side = (read[1, 0], read[1, 1], weights[1], peaks[1])
        a = p[row * p_stride : row * p_stride + width]
        b = q[row * q_stride : row * q_stride + width]
        _compare_row(a, b, target, p_side, q_side, sums, columns, row)
