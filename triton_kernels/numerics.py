"""Device functions that several kernels share. All compute in f32."""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(128)
"""Columns that share a scale, as in octavo's CPU kernels."""


@triton.jit
def round_even(x):
    """The nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def divide(a, b):
    """a / b rounded to nearest, as the references divide; Triton's `/` is off by up to two units in the last place."""
    return tl.div_rn(tl.zeros_like(b) + a, b)


@triton.jit
def tanh(x):
    """1 - 2 / (e^2x + 1): right at both ends, where e^2x is infinite or zero. (libdevice is not in the interpreter.)"""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def quantize_last(x):
    """int8 codes and scale along the last of two dimensions: scale = max |x| / 127, code = round(x / scale).

    Zeros (below 1e-35, where 127 / max would overflow) get the scale 0. A group with NaN or an infinity gets the scale
    NaN: its results are NaN.
    """
    magnitude = tl.abs(x)
    finite = magnitude <= 3.4028234663852886e38
    largest = tl.max(tl.where(finite, magnitude, 0.0), 1)
    broken = tl.max(tl.where(finite, 0, 1), 1) > 0
    empty = largest < 1e-35
    inverse = divide(127.0, tl.where(empty, 1.0, largest))
    codes = round_even(tl.where(finite, x, 0.0) * tl.where(empty | broken, 0.0, inverse)[:, None])
    scale = tl.where(broken, float("nan"), tl.where(empty, 0.0, divide(largest, tl.zeros_like(largest) + 127.0)))
    return codes.to(tl.int8), scale


@triton.jit
def to_bfloat_below(x):
    """The largest bfloat16 that is at most x."""
    bits = x.to(tl.int32, bitcast=True)
    # Cutting the lower half off rounds towards zero: below zero what is cut must count as one more.
    return (tl.where(x < 0.0, bits + 0xFFFF, bits) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def to_bfloat_above(x):
    """The smallest bfloat16 that is at least x."""
    bits = x.to(tl.int32, bitcast=True)
    return (tl.where(x > 0.0, bits + 0xFFFF, bits) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
