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
made, and never on ``fast_exp`` and ``minus``, which need the order of their operations. ``nnan``
and ``ninf`` stand nowhere, because rows hold NaN and -inf. Flags stay with their function when LLVM
inlines it.
"""

# mypy: ignore-errors

import math

import numpy as np

from klcli.measure.kernels.constants import (
    CHUNK,
    FAR,
    FLOOR,
    HALF,
    INFINITY_KEY,
    LARGE,
    LN_2,
    LOG,
    LOWEST,
    NEAR,
    NOTHING,
    ONE,
    OVERLAP,
    PART,
    PHI,
    PSI,
    ROUNDS,
    TOLERANCE,
    UNDERFLOW,
    ZERO,
    f32,
    i32,
)
from klcli.measure.kernels.cpu_math import (
    apart,
    fast_exp,
    from_key,
    inlined,
    key_of,
    minus,
    njit,
    value_of,
)

f64 = np.float64  # Numba's float(x) leaves a float32 as it is


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _largest(logits):
    """The key of the largest logit."""
    best = NOTHING
    for i in range(logits.size):
        key = key_of(value_of(logits[i]))
        best = key if key > best else best
    return best


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _survey(logits, target_value):
    """The key of the largest logit, and how many are above the target's."""
    best, above = NOTHING, ZERO
    for i in range(logits.size):
        x = value_of(logits[i])
        above += ONE if x > target_value else ZERO
        key = key_of(x)
        best = key if key > best else best
    return best, above


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _exponentials(logits, peak, weights):
    """Σ e^x and Σ x e^x for x = logit - peak; the e^x go into ``weights``.

    The peak's own e^0 is counted apart, or its size would cost the others their last digits.
    """
    rest, peaks, moment = ZERO, ZERO, ZERO
    for i in range(logits.size):
        x = value_of(logits[i]) - peak
        x = UNDERFLOW if x < UNDERFLOW else x
        weight = fast_exp(x)
        weights[i] = weight
        at_peak = ONE if x == ZERO else ZERO
        rest += apart(weight, at_peak)
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
            key = key_of(value_of(logits[i]))
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
    target_value = value_of(logits[max(target, 0)])
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
            higher = max(from_key(best), LOWEST)
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
    value = f64(value_of(logits[max(target, 0)]))
    columns.nll[row] = log_total - (value - peak) if known else math.nan
    columns.rank[row] = int(above) if known else -1
    columns.entropy[row] = max(log_total - mean, 0.0)
    columns.confidence[row] = math.exp(-log_total)
    for k in range(ids.size):
        value = f64(value_of(logits[ids[k]]))
        columns.top_probabilities[row, k] = math.exp(value - peak - log_total)


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _all_near(p, q, high):
    """Whether no |δ| of a chunk, but for rounding, is above ``NEAR``: then no e^x is needed."""
    outside = ZERO
    for i in range(p.size):
        outside += ZERO if abs((value_of(p[i]) - value_of(q[i])) - high) < NEAR else ONE
    return outside == ZERO


@inlined(fastmath={"reassoc", "contract", "nsz"})
def _near_sums(p, q, p_weights, q_weights, p_scale, q_scale, high, low):
    """``_divergence_sums`` of a chunk that is ``_all_near``."""
    kl, kl_reverse, jsd, above, below = ZERO, ZERO, ZERO, ZERO, ZERO
    for i in range(p.size):
        delta = minus(value_of(p[i]), value_of(q[i]), high, low)
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
        a, b = value_of(p[i]), value_of(q[i])
        a = FLOOR if a < FLOOR else a  # -inf on both sides: no difference
        b = FLOOR if b < FLOOR else b
        delta = minus(a, b, high, low)
        x = abs(delta)
        x = FAR if x > FAR else x
        more = delta >= ZERO
        p_weight, q_weight = p_weights[i] * p_scale, q_weights[i] * q_scale
        weight = p_weight if more else q_weight
        e = fast_exp(-x if x < -UNDERFLOW else UNDERFLOW)
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
        a, b = max(value_of(p[i]), FLOOR), max(value_of(q[i]), FLOOR)
        if abs(minus(a, b, high, low)) < FAR:
            continue
        log_p = f64(value_of(p[i])) - p_log_sum
        log_q = f64(value_of(q[i])) - q_log_sum
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
        log_p = (f64(value_of(p[i])) - p_side[0]) - p_side[1]
        log_q = (f64(value_of(q[i])) - q_side[0]) - q_side[1]
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
    p_value, q_value = f64(value_of(p[target])), f64(value_of(q[target]))
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
    first, shared = min(ids.size, OVERLAP), 0
    for a in ids[:first]:
        for b in other_ids[:first]:
            shared += a == b
    return shared / first


@njit
def widen(logits, stride, rows):
    """Make float32 of rows: (rows, width)."""
    for row in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            rows[row, i] = value_of(logits[row * stride + i])


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
