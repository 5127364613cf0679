"""Dynamic int8 quantisation of rows."""

from __future__ import annotations

import pytest
import torch
from octavo.triton_kernels import quantize
from octavo.triton_kernels.quantize import dequantize_ref, quantize_rows, quantize_rows_ref
from octavo.triton_kernels.rotation import rotate_back_ref, rotate_ref, signs


@pytest.mark.parametrize("group", [128, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (5, 320), (3, 1), (9, 200), (0, 64)])
def test_codes_and_scales_match_the_formula(
    rows: int, columns: int, dtype: torch.dtype, group: int | None, device: torch.device, generator: torch.Generator
) -> None:
    x = (torch.randn(rows, columns + 8, generator=generator) * 3).to(device, dtype)[:, :columns]
    codes, scales = quantize_rows(x, group)
    wanted, wanted_scales = quantize_rows_ref(x, group)
    torch.testing.assert_close(scales, wanted_scales, rtol=1e-6, atol=0)
    # Only what is halfway between two codes may round to either: products differ in their last bit.
    size = group or columns
    exact = x.double() / wanted_scales.double().repeat_interleave(size, dim=1)[:, :columns]
    differ = codes != wanted
    assert ((exact[differ].abs() % 1 - 0.5).abs() < 1e-4).all()
    assert ((codes.int() - wanted.int())[differ].abs() == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (5, 320), (9, 200), (0, 64)])
def test_rotated_groups_match_the_formula(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    x = torch.randn(rows, columns, generator=generator).to(device, dtype)
    codes, scales = quantize_rows(x, rotated=True)
    wanted, wanted_scales = quantize_rows_ref(x, rotated=True)
    assert codes.shape == (rows, -(-columns // 128) * 128)
    assert torch.equal(scales, wanted_scales)
    assert ((codes.int() - wanted.int()).abs() <= 1).all()
    assert (codes != wanted).float().mean().nan_to_num() < 1e-3
    back = rotate_back_ref(dequantize_ref(codes, scales) / 128, columns)
    torch.testing.assert_close(back, x.float(), rtol=0, atol=0.05)


def test_a_rotation_spreads_an_outlier(device: torch.device) -> None:
    """Against the definition, entry by entry of the Hadamard matrix."""
    bits = torch.tensor([[(i & j).bit_count() % 2 for j in range(128)] for i in range(128)], device=device)
    matrix = (1.0 - 2.0 * bits) * signs(device)
    assert torch.equal(rotate_ref(torch.eye(128, device=device)), matrix.t())
    assert 40 < int((signs(device) < 0).sum()) < 88
    with pytest.raises(ValueError, match="rotated"):
        quantize_rows(torch.ones(2, 128, device=device), None, rotated=True)


def test_the_error_is_at_most_half_a_step(device: torch.device, generator: torch.Generator) -> None:
    x = torch.randn(7, 384, generator=generator).to(device)
    codes, scales = quantize_rows(x)
    error = (dequantize_ref(codes, scales) - x).abs()
    assert (error <= scales.repeat_interleave(128, 1) * 0.5001).all()


@pytest.mark.parametrize("group", [128, None])
def test_zeros_and_broken_values(group: int | None, device: torch.device) -> None:
    x = torch.ones(4, 256, device=device)
    x[0] = 0
    x[1, 3] = float("nan")
    x[2, 200] = float("-inf")
    codes, scales = quantize_rows(x, group)
    wanted = quantize_rows_ref(x, group)
    torch.testing.assert_close(scales, wanted[1], equal_nan=True)
    assert scales[0].eq(0).all()
    assert codes[0].eq(0).all()
    assert scales[1, 0].isnan()
    assert scales[2, -1].isnan()
    assert codes[3].eq(127).all()


def test_many_rows_take_the_wide_form(
    device: torch.device, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "MANY_GROUPS", 64)
    x = torch.randn(41, 130, generator=generator).to(device)
    assert torch.equal(quantize_rows(x)[1], quantize_rows_ref(x)[1])


def test_faults_are_named(device: torch.device) -> None:
    with pytest.raises(ValueError, match="group is 64"):
        quantize_rows(torch.ones(2, 128, device=device), 64)
    with pytest.raises(TypeError, match="x has dtype int32"):
        quantize_rows(torch.ones(2, 128, device=device, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"x has shape \[128\]"):
        quantize_rows(torch.ones(128, device=device))
    with pytest.raises(ValueError, match="last dimension of x has stride"):
        quantize_rows(torch.ones(128, 128, device=device).t()[:, ::2])
    with pytest.raises(ValueError, match="no columns"):
        quantize_rows(torch.ones(2, 0, device=device))
