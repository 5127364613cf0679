"""bfloat16 in Triton's interpreter is what hardware computes. Fails first when a new Triton changes its internals."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from closeness import assert_close


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


@triton.jit
def convert_kernel(x_ptr, y_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(y_ptr.dtype.element_ty))


@triton.jit
def arithmetic_kernel(a_ptr, b_ptr, y_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    a, b = tl.load(a_ptr + at), tl.load(b_ptr + at)
    tl.store(y_ptr + at, (a + b) * (a - b))


def test_dot(device: torch.device, generator: torch.Generator) -> None:
    a, b = (torch.randn(32, 32, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    c = torch.empty(32, 32, device=device)
    dot_kernel[(1,)](a, b, c, N=32)
    assert_close("dot", c, a.float() @ b.float())


@pytest.mark.parametrize("source", [torch.float32, torch.int8, torch.uint8, torch.int32])
def test_conversion_rounds_to_nearest_even(
    source: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    if source == torch.float32:
        x = torch.randn(256, generator=generator) * 100
        x[:6] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, float("inf"), float("-inf"), float("nan"), 3.4e38])
    else:
        x = torch.arange(256) if source != torch.int8 else torch.arange(-128, 128)
    x = x.to(device, source)
    y = torch.empty(256, dtype=torch.bfloat16, device=device)
    convert_kernel[(1,)](x, y, N=256)
    torch.testing.assert_close(y, x.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


def test_arithmetic(device: torch.device, generator: torch.Generator) -> None:
    a, b = (torch.randn(64, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    y = torch.empty_like(a)
    arithmetic_kernel[(1,)](a, b, y, N=64)
    assert_close("(a + b)(a - b)", y, (a + b) * (a - b))
