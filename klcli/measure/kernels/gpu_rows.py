"""All columns of a block of rows on a GPU at once: the passes of ``cpu_rows`` in Triton.

One program reads one row of each side. The first pass finds everything that one model says; the
second, back to front because what was read last is still in the cache, how two differ. Nothing of
the size of the vocabulary is written. Arithmetic is in float32 and made of sums and products only
(no hardware approximations), added up with compensation and in float64 at the end of a row, so
that the accuracy is that of the compiled kernels of the CPU.

A thread holds ``GROUP`` logits that lie beside each other, 16 bytes: tiles are (groups, GROUP), and
sums over a tile's second axis stay within a thread.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import math

import triton
import triton.language as tl

from klcli.measure.kernels import constants
from klcli.measure.kernels.constants import TOP

WARPS = 8
"""With eight no loop spills registers on compute capability 8.0 or 9.0."""
COLUMNS = ("nll", "rank", "entropy", "confidence", "padded_mass", "usable")
"""Where ``_read_side`` puts what it says; TOP ids and TOP probabilities follow."""
DIFFERENCES = ("kl", "kl_reverse", "jsd", "tv", "nll_difference", "delta_p", "overlap_5")
"""Where ``compare_row`` puts what it says."""

GROUPS = tl.constexpr(32 * WARPS)
KEPT = tl.constexpr(TOP)
COMPARED = tl.constexpr(constants.OVERLAP)
SLOTS = tl.constexpr(triton.next_power_of_2(TOP))
SIDE = tl.constexpr(len(COLUMNS) + 2 * TOP)
PAIR = tl.constexpr(2 * SIDE.value + len(DIFFERENCES))
ROUNDS = tl.constexpr(constants.ROUNDS)
TOLERANCE = tl.constexpr(constants.TOLERANCE)
LARGE = tl.constexpr(constants.LARGE)
FAR = tl.constexpr(float(constants.FAR))
NEAR = tl.constexpr(float(constants.NEAR))
LOWEST = tl.constexpr(float(constants.LOWEST))
FLOOR = tl.constexpr(float(constants.FLOOR))
UNDERFLOW = tl.constexpr(float(constants.UNDERFLOW))
LOG2_E = tl.constexpr(float(constants.LOG2_E))
LN_2 = tl.constexpr(math.log(2))
LN_2_HIGH = tl.constexpr(float(constants.LN_2_HIGH))
LN_2_LOW = tl.constexpr(float(constants.LN_2_LOW))
TO_INTEGER = tl.constexpr(float(constants.TO_INTEGER))
ONE_BITS = tl.constexpr(int(constants.ONE_BITS))
SIGN_OFF = tl.constexpr(int(constants.SIGN_OFF))
NOTHING = tl.constexpr(-(2**63))
EVERYTHING = tl.constexpr(2**63 - 1)
INFINITY = tl.constexpr(math.inf)
EXP_4, EXP_3, EXP_2, EXP_1, EXP_0 = (tl.constexpr(float(c)) for c in constants.EXP)
PHI_4, PHI_3, PHI_2, PHI_1, PHI_0 = (tl.constexpr(float(c)) for c in constants.PHI)
PSI_4, PSI_3, PSI_2, PSI_1, PSI_0 = (tl.constexpr(float(c)) for c in constants.PSI)
LOG_6, LOG_5, LOG_4, LOG_3, LOG_2, LOG_1, LOG_0 = (tl.constexpr(float(c)) for c in constants.LOG)


@triton.jit
def _exp(x):
    """As in ``cpu_math``: e^x for -88 <= x <= 0, to 8e-8 of itself; 0 below -87.7."""
    rounded = x * LOG2_E + TO_INTEGER
    n = rounded - TO_INTEGER
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW
    tail = (((r * EXP_4 + EXP_3) * r + EXP_2) * r + EXP_1) * r + EXP_0
    scale = ((rounded.to(tl.int32, bitcast=True) << 23) + ONE_BITS).to(tl.float32, bitcast=True)
    return scale * (r * r * tail + r + 1.0)


@triton.jit
def _minus(a, b, high, low):
    """``a - b - (high + low)`` with one rounding, at the size of the result: Knuth's two-sum."""
    difference = a - b
    b_part = difference - a
    rounding = (a - (difference - b_part)) - (b + b_part)
    return (difference - high) + (rounding - low)


@triton.jit
def _add(total, lost, terms):
    """Add each group's terms to its sum, which is ``total`` - ``lost``: Kahan's summation."""
    more = tl.sum(terms, 1) - lost
    higher = total + more
    return higher, (higher - total) - more


@triton.jit
def _sum(total, lost):
    """The sum over all groups, in float64."""
    return tl.sum(total.to(tl.float64) - lost.to(tl.float64), 0)


@triton.jit
def _tile(GROUP: tl.constexpr, ALIGNED: tl.constexpr):
    """The places of a block of logits, as (groups, GROUP)."""
    groups, members = tl.arange(0, GROUPS)[:, None], tl.arange(0, GROUP)[None, :]
    if ALIGNED:
        return groups * GROUP + members
    return groups + members * GROUPS


@triton.jit
def _load(logits, ids, width):
    """Logits as float32; -inf from ``width`` on."""
    return tl.load(logits + ids, mask=ids < width, other=-INFINITY).to(tl.float32)


@triton.jit
def _weights(x, peak):
    """e^(x - peak), and the exponent as it was used; NaN stays NaN."""
    x = tl.maximum(x - peak, UNDERFLOW, propagate_nan=tl.PropagateNan.ALL)
    return _exp(x), x


@triton.jit
def _ordered(bits):
    """Integers that order as the float32 with these bits do; of those, the bits."""
    return bits ^ ((bits >> 31) & SIGN_OFF)


@triton.jit
def _pack(x, ids):
    """A logit and its id as one int64: the larger, the larger the logit, then the lower the id."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # -0.0 + 0.0 is 0.0
    return (_ordered(bits).to(tl.int64) << 32) | (ids ^ SIGN_OFF).to(tl.int64)


@triton.jit
def _logit(packed):
    return _ordered((packed >> 32).to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def _id(packed):
    return (packed & SIGN_OFF).to(tl.int32) ^ SIGN_OFF


@triton.jit
def _keep_top(best, x, ids, width):
    """The most probable of ``best`` and a block of logits, in any order."""
    packed = tl.where(ids < width, _pack(x, ids), NOTHING)
    found = tl.max(packed)
    while found > tl.min(best):
        best = tl.where(best == tl.min(best), found, best)
        found = tl.max(tl.where(packed < found, packed, NOTHING))
    return best


@triton.jit
def _read_row(logits, target_logit, width, tile):
    """The first pass over one side: online softmax.

    Returns the largest logit, Σ e^x and Σ x e^x for x = logit - largest (float64), how many logits
    are above the target's, and the packed best, of which those beyond KEPT are for nothing.
    """
    nothing = tl.zeros((GROUPS,), tl.float32)
    total, total_lost, moment, moment_lost = nothing, nothing, nothing, nothing
    above = tl.zeros((GROUPS,), tl.int32)
    slots = tl.arange(0, SLOTS)
    best = tl.where(slots < KEPT, slots.to(tl.int64) + NOTHING, EVERYTHING)
    peak = tl.full((), LOWEST, tl.float32)
    least = peak
    ahead = _load(logits, tile, width)
    for start in range(0, width, tile.numel):
        ids, x = start + tile, ahead
        # The next logits are on their way while threads wait for each other at the maximum.
        ahead = _load(logits, ids + tile.numel, width)
        largest = tl.max(x)
        if (start == 0) | (largest > least):
            best = _keep_top(best, x, ids, width)
            least = _logit(tl.min(best))
        if largest > peak:
            drop, fall = _weights(peak, largest)
            moment, moment_lost = (
                drop * (moment + fall * total),
                drop * (moment_lost + fall * total_lost),
            )
            total, total_lost = drop * total, drop * total_lost
            peak = largest
        weights, x_used = _weights(x, peak)
        total, total_lost = _add(total, total_lost, weights)
        moment, moment_lost = _add(moment, moment_lost, x_used * weights)
        above += tl.sum((x > target_logit).to(tl.int32), 1)
    return peak, _sum(total, total_lost), _sum(moment, moment_lost), tl.sum(above, 0), best


@triton.jit
def _padded(logits, peak, size, width, tile):
    """Σ e^(logit - peak) over the ids from ``size`` on."""
    total = tl.zeros((GROUPS,), tl.float32)
    lost = total
    for start in range(size, width, tile.numel):
        x = _load(logits, start + tile, width)
        total, lost = _add(total, lost, _weights(x, peak)[0])
    return _sum(total, lost)


@triton.jit
def _put(columns, place, known, value):
    """Write a number, NaN where it is not known."""
    tl.store(columns + place, tl.where(known, value, float("nan")))


@triton.jit
def _read_side(logits, target, size, width, columns, tile):
    """Write the columns of one side at one row.

    Returns its largest logit, ln Σ e^(logit - largest) (float64), whether the row is usable, and
    the best ids, of which those beyond COMPARED are -1.
    """
    target_logit = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
    peak, total, moment, above, best = _read_row(logits, target_logit, width, tile)
    padded = _padded(logits, peak, size, width, tile)
    usable = (peak < INFINITY) & (total > 0.0)  # NaN is above nothing
    known = usable & (target >= 0)
    log_total = tl.log(tl.where(usable, total, 1.0))
    nll = log_total - (target_logit.to(tl.float64) - peak.to(tl.float64))
    _put(columns, 0, known, nll)
    tl.store(columns + 1, tl.where(known, above, -1).to(tl.float64))
    _put(columns, 2, usable, tl.maximum(log_total - moment / total, 0.0))
    _put(columns, 3, usable, tl.exp(-log_total))
    _put(columns, 4, usable, padded / total)
    tl.store(columns + 5, usable.to(tl.float64))
    slots = tl.arange(0, SLOTS)
    kept = (slots < KEPT) & (slots < width)
    better = (best[None, :] > best[:, None]) & kept[None, :]
    log_p = _logit(best).to(tl.float64) - peak.to(tl.float64) - log_total
    place = tl.sum(better.to(tl.int32), 1)
    places = columns + 6 + place
    tl.store(places, tl.where(usable, _id(best), -1).to(tl.float64), mask=kept)
    tl.store(places + KEPT, tl.where(usable, tl.exp(log_p), 0.0), mask=kept)
    return peak, log_total, usable, tl.where(kept & (place < COMPARED), _id(best), -1)


@triton.jit
def _divergence_sums(p, q, p_shift, q_shift, p_sum, q_sum, centre, width, tile):
    """The second pass: the sums of ``cpu_rows._divergence_sums``, and the largest |δ|.

    ``p_sum`` and ``q_sum`` are ln Σ e^(logit - shift), ``centre`` their difference, all float64.
    """
    high, p_high, q_high = centre.to(tl.float32), p_sum.to(tl.float32), q_sum.to(tl.float32)
    low = (centre - high).to(tl.float32)
    p_low, q_low = (p_sum - p_high).to(tl.float32), (q_sum - q_high).to(tl.float32)
    nothing = tl.zeros((GROUPS,), tl.float32)
    kl, kl_reverse, jsd, above, below = nothing, nothing, nothing, nothing, nothing
    kl_lost, kl_reverse_lost, jsd_lost, above_lost, below_lost = kl, kl, kl, kl, kl
    farthest = nothing
    blocks = tl.cdiv(width, tile.numel)
    for block in range(blocks):
        ids = (blocks - 1 - block) * tile.numel + tile
        a = tl.maximum(_load(p, ids, width) - p_shift, FLOOR)
        b = tl.maximum(_load(q, ids, width) - q_shift, FLOOR)
        delta = _minus(a, b, high, low)
        more = delta >= 0.0
        x = tl.minimum(tl.abs(delta), FAR)
        log_weight = tl.where(more, (a - p_high) - p_low, (b - q_high) - q_low)
        weight = _exp(tl.minimum(tl.maximum(log_weight, UNDERFLOW), 0.0))
        e = _exp(tl.maximum(-x, UNDERFLOW))
        near = x < NEAR
        square = x * x
        phi = square * ((((x * PHI_4 + PHI_3) * x + PHI_2) * x + PHI_1) * x + PHI_0)
        psi = square * ((((x * PSI_4 + PSI_3) * x + PSI_2) * x + PSI_1) * x + PSI_0)
        log = (((((e * LOG_6 + LOG_5) * e + LOG_4) * e + LOG_3) * e + LOG_2) * e + LOG_1) * e
        log = (log + LOG_0) * e
        gap = tl.where(near, x - phi, 1.0 - e)
        other = tl.where(near, x * gap - phi, gap - e * x)
        psi = tl.where(near, psi, 0.5 * ((e + 1.0) * (-log + LN_2) - e * x))
        phi = tl.where(near, phi, x - gap)
        phi = tl.where(x < FAR, phi, 0.0)
        kl, kl_lost = _add(kl, kl_lost, weight * tl.where(more, phi, other))
        kl_reverse, kl_reverse_lost = _add(
            kl_reverse, kl_reverse_lost, weight * tl.where(more, other, phi)
        )
        jsd, jsd_lost = _add(jsd, jsd_lost, weight * psi)
        gap = weight * gap
        above, above_lost = _add(above, above_lost, tl.where(more, gap, 0.0))
        below, below_lost = _add(below, below_lost, tl.where(more, 0.0, gap))
        farthest = tl.maximum(farthest, tl.max(x, 1))
    return (
        _sum(kl, kl_lost),
        _sum(kl_reverse, kl_reverse_lost),
        _sum(jsd, jsd_lost),
        _sum(above, above_lost),
        _sum(below, below_lost),
        tl.max(farthest, 0),
    )


@triton.jit
def _far_sums(p, q, p_shift, q_shift, p_sum, q_sum, centre, width, tile):
    """What ``_divergence_sums`` left out: M (x - 1) where x >= FAR, for KL(P‖Q) and KL(Q‖P)."""
    high = centre.to(tl.float32)
    low = (centre - high).to(tl.float32)
    kl = tl.zeros((GROUPS,), tl.float64)
    kl_reverse = kl
    for start in range(0, width, tile.numel):
        ids = start + tile
        a, b = _load(p, ids, width) - p_shift, _load(q, ids, width) - q_shift
        far = tl.abs(_minus(tl.maximum(a, FLOOR), tl.maximum(b, FLOOR), high, low)) >= FAR
        log_p, log_q = a.to(tl.float64) - p_sum, b.to(tl.float64) - q_sum
        p_here, q_here = tl.exp(log_p), tl.exp(log_q)
        delta = log_p - log_q
        kl += tl.where(far & (delta > 0.0) & (p_here > 0.0), p_here * (delta - 1.0), 0.0)
        kl_reverse += tl.where(far & (delta < 0.0) & (q_here > 0.0), q_here * (-delta - 1.0), 0.0)
    return tl.sum(kl, 0), tl.sum(kl_reverse, 0)


@triton.jit
def _settled_sums(p, q, p_shift, q_shift, p_sum, q_sum, centre, width, tile):
    """The sums of ``_divergence_sums`` and a better ``centre``.

    The pass is made again until Σ(p-q), which must be 0, shows that ``centre`` is good enough; see
    ``cpu_rows._sum_fast``.
    """
    nothing = 0.0 * centre
    kl, kl_reverse, jsd, above, below = nothing, nothing, nothing, nothing, nothing
    farthest = tl.full((), 0.0, tl.float32)
    rounds = tl.full((), 0, tl.int32)
    unsettled = rounds < ROUNDS
    while unsettled:
        centre -= tl.log(1.0 - (above - below))
        kl, kl_reverse, jsd, above, below, farthest = _divergence_sums(
            p, q, p_shift, q_shift, p_sum, q_sum, centre, width, tile
        )
        rounds += 1
        excess = tl.abs(above - below)
        unsettled = (rounds < ROUNDS) & (excess > TOLERANCE * (above + below))
    if farthest >= FAR:
        kl_far, kl_reverse_far = _far_sums(
            p, q, p_shift, q_shift, p_sum, q_sum, centre, width, tl.arange(0, GROUPS)
        )
        kl += kl_far
        kl_reverse += kl_reverse_far
    return centre, kl, kl_reverse, jsd, (above + below) / 2


@triton.jit
def predict_row(
    logits, stride, targets, size, width, found, GROUP: tl.constexpr, ALIGNED: tl.constexpr
):
    """The columns of one model at one row."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    tile = _tile(GROUP, ALIGNED)
    _read_side(logits + row * stride, target, size, width, found + row * SIDE, tile)


@triton.jit
def compare_row(
    p,
    p_stride,
    q,
    q_stride,
    targets,
    size,
    width,
    found,
    GROUP: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The columns of two models at one row, and how they differ."""
    row = tl.program_id(0).to(tl.int64)
    p += row * p_stride
    q += row * q_stride
    target = tl.load(targets + row)
    tile = _tile(GROUP, ALIGNED)
    columns = found + row * PAIR
    p_peak, p_log_total, p_usable, p_ids = _read_side(p, target, size, width, columns, tile)
    q_peak, q_log_total, q_usable, q_ids = _read_side(q, target, size, width, columns + SIDE, tile)
    columns += 2 * SIDE
    usable = p_usable & q_usable
    shared = (p_ids[:, None] == q_ids[None, :]) & (p_ids >= 0)[:, None]
    overlap = tl.sum(tl.sum(shared.to(tl.int32), 1), 0).to(tl.float64) / tl.minimum(width, COMPARED)
    _put(columns, 6, usable, overlap)
    # Beyond LARGE, float64 has too few digits for a logit and ln Σ in one sum; but there a logit
    # less the largest is exact wherever it counts.
    p_shift = tl.where(tl.abs(p_peak) > LARGE, p_peak, 0.0)
    q_shift = tl.where(tl.abs(q_peak) > LARGE, q_peak, 0.0)
    p_peak, q_peak = (p_peak - p_shift).to(tl.float64), (q_peak - q_shift).to(tl.float64)
    p_sum, q_sum = p_peak + p_log_total, q_peak + q_log_total
    centre = (p_peak - q_peak) + (p_log_total - q_log_total)
    centre, kl, kl_reverse, jsd, tv = _settled_sums(
        p, q, p_shift, q_shift, p_sum, q_sum, centre, width, tile
    )
    place = tl.maximum(target, 0)
    p_target = tl.load(p + place).to(tl.float64) - p_shift.to(tl.float64)
    q_target = tl.load(q + place).to(tl.float64) - q_shift.to(tl.float64)
    delta = (p_target - q_target) - centre
    p_there, q_there = tl.exp(p_target - p_sum), tl.exp(q_target - q_sum)
    gain = tl.where(tl.abs(delta) < 1.0, p_there * (tl.exp(-delta) - 1.0), q_there - p_there)
    known = usable & (target >= 0)
    _put(columns, 0, usable, tl.maximum(kl, 0.0))
    _put(columns, 1, usable, tl.maximum(kl_reverse, 0.0))
    _put(columns, 2, usable, tl.minimum(jsd, LN_2))
    _put(columns, 3, usable, tl.minimum(tv, 1.0))
    _put(columns, 4, known, delta)
    _put(columns, 5, known, gain)
