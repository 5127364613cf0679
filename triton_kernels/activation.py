"""The gated activation of a feed-forward block, alone and with int8 quantisation after it.

    y = f(gate) * up          f: silu(x) = x / (1 + e^-x), gelu(x) = x/2 (1 + erf(x / sqrt 2)), or gelu in its tanh form

gate is the first half of each row of `gate_up`, up the second. f32 inside, rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import FLOATS, Options, ceil_div, check, check_device, check_tensor, launch, power_of_two
from .numerics import quantize_last, tanh
from .quantize import GROUP, quantize_rows_ref

KINDS = ("silu", "gelu", "gelu_tanh")
BLOCK = 1024


@triton.jit
def activate(x, KIND: tl.constexpr):
    """f(x) in f32."""
    if KIND == "silu":
        return x / (1.0 + tl.exp(-x))
    if KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def act_and_mul_kernel(gate_up_ptr, y_ptr, inner, gate_up_stride, y_stride, KIND: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < inner
    gate = tl.load(gate_up_ptr + row * gate_up_stride + column, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * gate_up_stride + inner + column, mask=live, other=0.0).to(tl.float32)
    y = activate(gate, KIND) * up
    tl.store(y_ptr + row * y_stride + column, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def act_and_mul_quantize_kernel(
    gate_up_ptr,
    codes_ptr,
    scales_ptr,
    inner,
    groups,
    gate_up_stride,
    KIND: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A program takes GROUPS groups of a row."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    live = column < inner
    gate = tl.load(gate_up_ptr + row * gate_up_stride + column, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * gate_up_stride + inner + column, mask=live, other=0.0).to(tl.float32)
    codes, scale = quantize_last(activate(gate, KIND) * up)
    tl.store(codes_ptr + row * inner + column, codes, mask=live)
    tl.store(scales_ptr + row * groups + group, scale, mask=group < groups)


def act_and_mul(gate_up: torch.Tensor, kind: str, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """f(gate) * up of `gate_up` `[T, 2 * I]` as `[T, I]`, in its dtype. `kind`: "silu", "gelu" or "gelu_tanh"."""
    check_device(gate_up=gate_up, out=out)
    rows, inner = _check(gate_up, kind)
    if out is None:
        out = torch.empty(rows, inner, dtype=gate_up.dtype, device=gate_up.device)
    check_tensor("out", out, dtypes=FLOATS, shape=(rows, inner))
    arguments = {
        "gate_up_ptr": gate_up,
        "y_ptr": out,
        "inner": inner,
        "gate_up_stride": gate_up.stride(0),
        "y_stride": out.stride(0),
    }
    block = min(BLOCK, power_of_two(inner))
    launch(act_and_mul_kernel, (rows, ceil_div(inner, block)), arguments, {"KIND": kind, "BLOCK": block}, Options(4, 1))
    return out


def act_and_mul_quantize(gate_up: torch.Tensor, kind: str, group: int = GROUP) -> tuple[torch.Tensor, torch.Tensor]:
    """`act_and_mul`, then `quantize_rows` of the unrounded result in groups of 128: (codes, scales)."""
    check_device(gate_up=gate_up)
    rows, inner = _check(gate_up, kind)
    check(group == GROUP, f"group is {group}, wanted {GROUP}")
    groups = ceil_div(inner, GROUP)
    codes = torch.empty(rows, inner, dtype=torch.int8, device=gate_up.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=gate_up.device)
    arguments = {
        "gate_up_ptr": gate_up,
        "codes_ptr": codes,
        "scales_ptr": scales,
        "inner": inner,
        "groups": groups,
        "gate_up_stride": gate_up.stride(0),
    }
    together = min(8, power_of_two(groups))
    constants = {"KIND": kind, "GROUPS": together, "GROUP": GROUP}
    launch(act_and_mul_quantize_kernel, (rows, ceil_div(groups, together)), arguments, constants, Options(4, 1))
    return codes, scales


def act_and_mul_ref(gate_up: torch.Tensor, kind: str) -> torch.Tensor:
    """The formula of the module in f32, rounded once."""
    return _gated(gate_up, kind).to(gate_up.dtype)


def act_and_mul_quantize_ref(gate_up: torch.Tensor, kind: str, group: int = GROUP) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula of the module in f32, then quantised."""
    return quantize_rows_ref(_gated(gate_up, kind), group)


def _gated(gate_up: torch.Tensor, kind: str) -> torch.Tensor:
    gate, up = gate_up.float().chunk(2, -1)
    if kind == "silu":
        return torch.nn.functional.silu(gate) * up
    return torch.nn.functional.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none") * up


def _check(gate_up: torch.Tensor, kind: str) -> tuple[int, int]:
    check_tensor("gate_up", gate_up, dtypes=FLOATS, shape=(None, None))
    check(kind in KINDS, f"kind is {kind!r}, wanted one of {', '.join(KINDS)}")
    rows, both = gate_up.shape
    check(both > 0 and both % 2 == 0, f"gate_up has {both} columns, wanted an even number: gate, then up")
    return rows, both // 2
