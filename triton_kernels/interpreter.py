"""Makes bfloat16 right in Triton's interpreter, and the bits of a dot independent of the machine.

Triton 3.6 to 3.9 hold bfloat16 as raw 16-bit integers there: dots, arithmetic and conversions from integers compute on
the bits, and a conversion from float32 truncates where hardware rounds. This replaces those builder functions by ones
that widen to float32, compute, and round to nearest even. Reductions stay wrong: kernels reduce in float32.

The interpreter's dots are numpy's. For some processors its BLAS adds the last rows of a tile in another order than the
first ones, which no GPU does. Here dots are summed in float64, then rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from .launch import INTERPRETED

_done = False


def _is_bfloat16(dtype: Any) -> bool:
    return bool(dtype.scalar == tl.bfloat16)


def _widen(handle: Any) -> Any:
    if not _is_bfloat16(handle.dtype):
        return handle
    bits = handle.data.view(np.uint16).astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _round(data: np.ndarray) -> np.ndarray:
    """float32 to the bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)


def make_bfloat16_right() -> None:
    """Patches the interpreter once. Does nothing where kernels are compiled."""
    global _done
    if _done or not INTERPRETED:
        return
    _done = True
    builder = interpreter.InterpreterBuilder
    handle = interpreter.TensorHandle
    dot, truncate = builder.create_dot, builder.create_fp_trunc

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        a, b = _widen(a), _widen(b)
        floats = (np.float16, np.float32)
        if d.data.dtype != np.float32 or not all(x.data.dtype in floats for x in (a, b)):
            return dot(self, a, b, d, *rest)
        total = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)).astype(np.float32)
        return handle(total + d.data, d.dtype.scalar)

    def create_fp_trunc(self: Any, source: Any, dtype: Any) -> Any:
        if _is_bfloat16(dtype) and source.dtype.scalar == tl.float32:
            return handle(_round(source.data), tl.bfloat16)
        return truncate(self, source, dtype)

    builder.create_dot = create_dot
    builder.create_fp_trunc = create_fp_trunc
    for name in ("create_si_to_fp", "create_ui_to_fp"):
        setattr(builder, name, _converted(getattr(builder, name)))
    for name in ("create_fadd", "create_fsub", "create_fmul", "create_fdiv"):
        setattr(builder, name, _computed(getattr(builder, name)))


def _converted(convert: Any) -> Any:
    def through_float32(self: Any, source: Any, dtype: Any) -> Any:
        if not _is_bfloat16(dtype):
            return convert(self, source, dtype)
        return interpreter.TensorHandle(_round(source.data.astype(np.float32)), tl.bfloat16)

    return through_float32


def _computed(operation: Any) -> Any:
    def in_float32(self: Any, a: Any, b: Any) -> Any:
        if not (_is_bfloat16(a.dtype) and _is_bfloat16(b.dtype)):
            return operation(self, a, b)
        return interpreter.TensorHandle(_round(operation(self, _widen(a), _widen(b)).data), tl.bfloat16)

    return in_float32
