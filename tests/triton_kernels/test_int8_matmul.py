"""int8 matmul in every committed configuration."""

from __future__ import annotations

import sys

import pytest
import torch
from closeness import assert_close
from octavo.triton_kernels.int8_matmul import (
    CONFIGS,
    DETERMINISTIC,
    Config,
    config_for,
    int8_matmul,
    int8_matmul_ref,
    int8_weight_matmul,
    int8_weight_matmul_ref,
)
from octavo.triton_kernels.quantize import quantize_rows_ref

# The package's attribute of this name is the function.
module = sys.modules[int8_matmul.__module__]

Quantised = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def operands(
    rows: int, columns: int, depth: int, group: int | None, device: torch.device, generator: torch.Generator
) -> Quantised:
    x = torch.randn(rows, depth, generator=generator).to(device)
    w = torch.randn(columns, depth, generator=generator).to(device)
    return *quantize_rows_ref(x, group), *quantize_rows_ref(w, group)


def every(kind: str) -> list[Config]:
    found = [config for table in CONFIGS[kind].values() for _, config in table] + [DETERMINISTIC[kind]]
    return sorted(set(found))


def force(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_config", lambda *_: config)


@pytest.mark.parametrize("group", [128, None])
@pytest.mark.parametrize("config", every("w8a8"), ids=lambda c: "-".join(map(str, map(int, c))))
def test_every_configuration(
    config: Config,
    group: int | None,
    device: torch.device,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    force(config, monkeypatch)
    # Deep enough for a split where the configuration has one; then a depth that no step divides.
    for rows, columns, depth in [(config.rows + 5, config.columns + 20, 1024 if config.split else 256), (3, 150, 336)]:
        quantised = operands(rows, columns, depth, group, device, generator)
        bias = torch.randn(columns, generator=generator).to(device)
        y = int8_matmul(*quantised, bias, torch.float32)
        assert_close("y", y, int8_matmul_ref(*quantised, bias, torch.float32), 2e-6)


@pytest.mark.parametrize(("group", "dtype"), [(128, torch.bfloat16), (None, torch.float16)])
@pytest.mark.parametrize("config", every("w8a16"), ids=lambda c: "-".join(map(str, map(int, c))))
def test_every_configuration_with_float_activations(
    config: Config,
    dtype: torch.dtype,
    group: int | None,
    device: torch.device,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    force(config, monkeypatch)
    x = torch.randn(config.rows + 3, 272, generator=generator).to(device, dtype)
    weight = quantize_rows_ref(torch.randn(config.columns + 7, 272, generator=generator).to(device), group)
    assert_close("y", int8_weight_matmul(x, *weight), int8_weight_matmul_ref(x, *weight))


@pytest.mark.parametrize("rows", [1, 16, 17])
@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_bias_and_strides(
    rows: int, scale_dtype: torch.dtype, out_dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    x_q, x_scale, w_q, w_scale = operands(rows, 72, 300, 128, device, generator)
    wide = torch.zeros(rows, 400, dtype=torch.int8, device=device)
    wide[:, :300] = x_q
    bias = torch.randn(72, generator=generator).to(device, torch.bfloat16)
    quantised = (wide[:, :300], x_scale, w_q, w_scale.to(scale_dtype))
    out = torch.zeros(rows, 100, dtype=out_dtype, device=device)[:, :72]
    y = int8_matmul(*quantised, bias, out_dtype, out=out)
    assert y is out
    assert_close("y", y, int8_matmul_ref(*quantised, bias, out_dtype))


def test_float32_activations(device: torch.device, generator: torch.Generator) -> None:
    x = torch.randn(19, 260, generator=generator).to(device)
    weight = quantize_rows_ref(torch.randn(70, 260, generator=generator).to(device))
    for deterministic in (False, True):
        y = int8_weight_matmul(x, *weight, deterministic=deterministic)
        assert_close("y", y, int8_weight_matmul_ref(x, *weight))


def test_int8_products_are_exact(device: torch.device) -> None:
    """Largest codes over a long row: sums beyond 2^24, which floats cannot count."""
    ones = torch.ones(1, 1, device=device)
    x_q = torch.full((1, 4096), 127, dtype=torch.int8, device=device)
    w_q = torch.full((32, 4096), -127, dtype=torch.int8, device=device)
    y = int8_matmul(x_q, ones, w_q, ones.expand(32, 1).contiguous(), None, torch.float32, deterministic=True)
    assert y.eq(-127.0 * 127 * 4096).all()


def test_deterministic_rows_do_not_depend_on_the_batch(device: torch.device, generator: torch.Generator) -> None:
    x_q, x_scale, w_q, w_scale = operands(90, 64, 512, 128, device, generator)
    whole = int8_matmul(x_q, x_scale, w_q, w_scale, None, torch.float32, deterministic=True)
    for begin, end in [(0, 1), (30, 47), (20, 90)]:
        part = int8_matmul(x_q[begin:end], x_scale[begin:end], w_q, w_scale, None, torch.float32, deterministic=True)
        assert torch.equal(part, whole[begin:end])


def test_no_rows(device: torch.device, generator: torch.Generator) -> None:
    x_q, x_scale, w_q, w_scale = operands(2, 32, 128, 128, device, generator)
    assert int8_matmul(x_q[:0], x_scale[:0], w_q, w_scale).shape == (0, 32)


def test_a_configuration_for_every_device_and_size() -> None:
    assert config_for("w8a8", 1, 8).rows == 16
    assert config_for("w8a8", 5000, 9).descriptors
    assert config_for("w8a8", 5000, 12) == config_for("w8a8", 5000, 10)
    assert config_for("w8a16", 5000, 10) == config_for("w8a16", 5000, 9)
    assert config_for("w8a8", 1, 9, True) == config_for("w8a8", 5000, 9, True)


def test_faults_are_named(device: torch.device, generator: torch.Generator) -> None:
    x_q, x_scale, w_q, w_scale = operands(2, 32, 300, 128, device, generator)
    with pytest.raises(TypeError, match="x_q has dtype float32, wanted int8"):
        int8_matmul(x_q.float(), x_scale, w_q, w_scale)
    with pytest.raises(ValueError, match=r"w_q has shape \[32, 300\], wanted \[any, 299\]"):
        int8_matmul(x_q[:, :299], x_scale, w_q, w_scale)
    with pytest.raises(ValueError, match=r"w_scale has 2 columns, wanted 3 \(groups of 128\) or 1"):
        int8_matmul(x_q, x_scale, w_q, w_scale[:, :2].contiguous())
    with pytest.raises(ValueError, match=r"x_scale has shape \[2, 1\], wanted \[2, 3\]"):
        int8_matmul(x_q, x_scale[:, :1].contiguous(), w_q, w_scale)
    with pytest.raises(ValueError, match=r"w_q has strides .* pass w_q.contiguous"):
        int8_matmul(x_q, x_scale, w_q.t().contiguous().t(), w_scale)
    with pytest.raises(ValueError, match=r"out_dtype is torch.int32"):
        int8_matmul(x_q, x_scale, w_q, w_scale, out_dtype=torch.int32)
    with pytest.raises(ValueError, match=r"bias has shape \[31\]"):
        int8_weight_matmul(x_q.float(), w_q, w_scale, torch.ones(31, device=device))
