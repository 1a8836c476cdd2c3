"""Numbers that the compiled kernels of CPU and GPU share: limits, and polynomials of float32."""

import math

import numpy as np

f32, i32 = np.float32, np.int32

TOP = 10
"""How many of the most probable tokens are kept."""
OVERLAP = 5
"""How many of them are compared (``overlap_5``)."""
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
