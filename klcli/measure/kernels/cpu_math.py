"""Arithmetic of float32, compiled by Numba into the passes of ``cpu_rows``."""

# mypy: ignore-errors

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from klcli.measure.kernels.constants import (
    EXP,
    LN_2_HIGH,
    LN_2_LOW,
    LOG2_E,
    ONE,
    ONE_BITS,
    SIGN_OFF,
    TO_INTEGER,
    ZERO,
    i32,
)


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


@intrinsic
def value_of(context, x):
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
def bits_of(context, x):
    """The bits of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def from_bits(context, x):
    """The float32 of some bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@inlined(fastmath=False)
def key_of(x):
    """An integer that orders as x does, so that a maximum is vectorised in spite of NaN."""
    bits = bits_of(x + ZERO)  # -0.0 + 0.0 is 0.0
    return i32(bits ^ i32(i32(bits >> 31) & SIGN_OFF))


@inlined(fastmath=False)
def from_key(key):
    return from_bits(i32(key ^ i32(i32(key >> 31) & SIGN_OFF)))


@inlined(fastmath={"contract"})
def fast_exp(x):
    """e^x for -88 <= x <= 0, to 8e-8 of itself; 0 below -87.7, NaN of NaN.

    e^x = 2^n e^r with n = round(x / ln 2): Cody and Waite.
    """
    rounded = x * LOG2_E + TO_INTEGER  # which leaves n in its lowest bits
    n = rounded - TO_INTEGER
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW
    tail = (((EXP[0] * r + EXP[1]) * r + EXP[2]) * r + EXP[3]) * r + EXP[4]
    return from_bits(i32(i32(bits_of(rounded) << 23) + ONE_BITS)) * (r * r * tail + r + ONE)


@inlined(fastmath=False)
def apart(a, b):
    """``a - b``, which no sum that it is a term of can take apart."""
    return a - b


@inlined(fastmath=False)
def minus(a, b, high, low):
    """``a - b - (high + low)`` with one rounding, at the size of the result: Knuth's two-sum."""
    difference = a - b
    b_part = difference - a
    rounding = (a - (difference - b_part)) - (b + b_part)
    return (difference - high) + (rounding - low)
