"""Gated activations."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from octavo.triton_kernels.activation import (
    KINDS,
    act_and_mul,
    act_and_mul_quantize,
    act_and_mul_quantize_ref,
    act_and_mul_ref,
)
from octavo.triton_kernels.quantize import dequantize_ref


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "inner"), [(1, 64), (5, 333), (2, 2048), (0, 16)])
def test_activation(
    rows: int, inner: int, dtype: torch.dtype, kind: str, device: torch.device, generator: torch.Generator
) -> None:
    gate_up = (torch.randn(rows, 2 * inner, generator=generator) * 4).to(device, dtype)
    assert_close(kind, act_and_mul(gate_up, kind), act_and_mul_ref(gate_up, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_far_ends_are_finite(kind: str, device: torch.device) -> None:
    gate = torch.tensor([[-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]], device=device)
    y = act_and_mul(torch.cat([gate, torch.ones_like(gate)], 1), kind)
    assert_close(kind, y, gate.clamp(min=0.0), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "inner"), [(1, 128), (4, 200), (3, 1500)])
def test_activation_and_quantise(
    rows: int, inner: int, kind: str, device: torch.device, generator: torch.Generator
) -> None:
    gate_up = torch.randn(rows, 2 * inner, generator=generator).to(device, torch.bfloat16)
    found, wanted = act_and_mul_quantize(gate_up, kind), act_and_mul_quantize_ref(gate_up, kind)
    assert_close("scales", found[1], wanted[1])
    assert_close("values", dequantize_ref(*found), dequantize_ref(*wanted), 2e-3)


def test_faults_are_named(device: torch.device) -> None:
    with pytest.raises(ValueError, match="kind is 'relu'"):
        act_and_mul(torch.ones(1, 4, device=device), "relu")
    with pytest.raises(ValueError, match="5 columns, wanted an even number"):
        act_and_mul(torch.ones(1, 5, device=device), "silu")
    with pytest.raises(ValueError, match=r"out has shape \[1, 3\]"):
        act_and_mul(torch.ones(1, 4, device=device), "silu", out=torch.ones(1, 3, device=device))
