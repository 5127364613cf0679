"""RMS norm with its residual and quantised forms."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from octavo.triton_kernels.quantize import dequantize_ref
from octavo.triton_kernels.rms_norm import rms_norm, rms_norm_quantize, rms_norm_quantize_ref, rms_norm_ref

SHAPES = [(1, 64), (7, 96), (3, 1000), (2, 2048), (0, 128)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_norm(rows: int, columns: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> None:
    x = torch.randn(rows, columns, generator=generator).to(device, dtype)
    weight = torch.rand(columns, generator=generator).to(device, dtype)
    for offset in (0.0, 1.0):
        y = rms_norm(x, weight, 1e-5, offset=offset)
        assert_close("y", y, rms_norm_ref(x, weight, 1e-5, offset=offset))


@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16])
def test_residual_is_updated_in_place(
    residual_dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    x = torch.randn(5, 320, generator=generator).to(device, torch.bfloat16)
    residual = torch.randn(5, 400, generator=generator).to(device, residual_dtype)[:, :320]
    weight = torch.rand(320, generator=generator).to(device, torch.bfloat16)
    y_ref, sum_ref = rms_norm_ref(x, weight, 1e-6, residual=residual)
    y, total = rms_norm(x, weight, 1e-6, residual=residual)
    assert total.data_ptr() == residual.data_ptr()
    assert_close("y", y, y_ref)
    assert_close("residual", residual, sum_ref)


def test_heads_of_a_fused_projection_in_place(device: torch.device, generator: torch.Generator) -> None:
    qkv = torch.randn(6, 5 * 80, generator=generator).to(device)
    weight = torch.rand(80, generator=generator).to(device)
    before = qkv.clone()
    keys = qkv.view(6, 5, 80)[:, 1:4]
    wanted = rms_norm_ref(keys, weight, 1e-6)
    assert rms_norm(keys, weight, 1e-6, out=keys) is keys
    assert_close("keys", keys, wanted)
    assert torch.equal(qkv[:, :80], before[:, :80])
    assert torch.equal(qkv[:, 320:], before[:, 320:])


@pytest.mark.parametrize("group", [128, None])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_norm_and_quantise(
    rows: int, columns: int, with_residual: bool, group: int | None, device: torch.device, generator: torch.Generator
) -> None:
    x = torch.randn(rows, columns, generator=generator).to(device, torch.bfloat16)
    weight = torch.rand(columns, generator=generator).to(device)
    residual = torch.randn(rows, columns, generator=generator).to(device) if with_residual else None
    wanted = rms_norm_quantize_ref(x, weight, 1e-6, residual=residual, group=group)
    found = rms_norm_quantize(x, weight, 1e-6, residual=residual, group=group)
    assert len(found) == len(wanted) == 2 + with_residual
    assert_close("scales", found[1], wanted[1])
    # The norm's last bit may carry a value over a rounding boundary.
    assert_close("values", dequantize_ref(*found[:2]), dequantize_ref(*wanted[:2]), 2e-3)
    if with_residual:
        assert_close("residual", found[2], wanted[2])


def test_faults_are_named(device: torch.device) -> None:
    x, weight = torch.ones(2, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(ValueError, match=r"weight has shape \[8\], wanted \[9\]"):
        rms_norm(torch.ones(2, 9, device=device), weight, 1e-6)
    with pytest.raises(ValueError, match="4 dimensions"):
        rms_norm(x[None, None], weight, 1e-6)
    with pytest.raises(ValueError, match="residual needs x with 2"):
        rms_norm(x[None], weight, 1e-6, residual=x[None])
    with pytest.raises(TypeError, match="weight has dtype int8"):
        rms_norm(x, weight.to(torch.int8), 1e-6)
    with pytest.raises(ValueError, match="40000 columns"):
        rms_norm(torch.ones(1, 40000, device=device), torch.ones(40000, device=device), 1e-6)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        rms_norm(x.to("meta"), weight.to("meta"), 1e-6)
    with pytest.raises(ValueError, match="move them to one device"):
        rms_norm(x, weight.to("meta"), 1e-6)
