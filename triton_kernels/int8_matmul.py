"""Matmul with int8 weights, and int8 (W8A8) or float (W8A16) activations.

    out[m, n] = bias[n] + sum over groups g: x_scale[m, g] w_scale[n, g] sum over k in g: x_q[m, k] w_q[n, k]

Groups have 128 columns, or there is one per row. Products of int8 are exact in i32 inside a group and summed in f32
across groups. W8A16 multiplies by the codes as floats (exact in bf16 and f16) and has no x_scale.

Few rows are bound by memory: tiles have 16 rows, and the depth is split over programs until the device is full. A
second kernel adds the parts in a fixed order. Many rows are bound by the tensor cores: large tiles, on Hopper
persistent programs that load through tensor descriptors (TMA).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import (
    FLOATS,
    Options,
    capability,
    ceil_div,
    check,
    check_device,
    check_tensor,
    launch,
    power_of_two,
    processors,
)
from .matmul_kernels import add_splits_kernel, int8_matmul_kernel
from .quantize import GROUP, dequantize_ref
from .tuned import lookup

MAX_SPLITS = 16
MIN_STEPS_PER_SPLIT = 4
GROUP_M = 8


class Config(NamedTuple):
    """Tile (rows x columns, `depth` columns of x per step), warps, stages; `split`: over parts of the depth."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    split: bool = False
    persistent: bool = False
    descriptors: bool = False


# Chosen by the compile check (registers, shared memory, instructions) and by reasoning; not yet measured on a GPU.
# Keys: (kind, compute capability from, rows of x up to). float32 activations have one entry: they are for tests.
MANY = 1 << 30
CONFIGS: dict[str, dict[int, list[tuple[int, Config]]]] = {
    "w8a8": {
        8: [
            (16, Config(16, 32, 128, 4, 4, split=True)),
            (64, Config(64, 64, 128, 4, 3, split=True)),
            (256, Config(64, 128, 128, 4, 3)),
            (MANY, Config(128, 128, 128, 8, 3)),
        ],
        9: [
            (16, Config(16, 32, 128, 4, 5, split=True)),
            (64, Config(64, 64, 128, 4, 4, split=True)),
            (256, Config(64, 128, 128, 4, 4)),
            (MANY, Config(128, 128, 128, 8, 4, persistent=True, descriptors=True)),
        ],
        10: [
            (16, Config(16, 32, 128, 4, 5, split=True)),
            (64, Config(64, 64, 128, 4, 4, split=True)),
            (256, Config(64, 128, 128, 4, 4)),
            (MANY, Config(128, 64, 128, 8, 4)),
        ],
    },
    "w8a16": {
        8: [
            (16, Config(16, 32, 128, 4, 4, split=True)),
            (64, Config(64, 64, 64, 4, 3, split=True)),
            (MANY, Config(128, 64, 64, 8, 3)),
        ],
        9: [
            (16, Config(16, 32, 128, 4, 4, split=True)),
            (64, Config(64, 64, 64, 4, 4, split=True)),
            (MANY, Config(128, 64, 64, 8, 4)),
        ],
    },
    "float32": {8: [(MANY, Config(16, 64, 64, 4, 2, split=True))]},
}
DETERMINISTIC = {
    "w8a8": Config(64, 64, 128, 4, 3),
    "w8a16": Config(64, 64, 64, 4, 3),
    "float32": Config(16, 64, 64, 4, 2),
}
"""One configuration for every number of rows, with the depth whole: a row has the same bits in any batch."""


def config_for(kind: str, rows: int, major: int, deterministic: bool = False) -> Config:
    """The configuration for a number of rows on a device of compute capability `major`."""
    if deterministic:
        return DETERMINISTIC[kind]
    table = CONFIGS[kind]
    newest = max(version for version in table if version <= max(major, 8))
    return next(config for limit, config in table[newest] if rows <= limit)


def tuned_key(kind: str, rows: int) -> str:
    """The key of a number of rows in a table of tuned configurations."""
    limit = next(limit for limit in (16, 64, 256, MANY) if rows <= limit)
    return f"{kind} {'many' if limit == MANY else limit}"


def _config(kind: str, rows: int, device: torch.device, deterministic: bool) -> Config:
    """What was measured on this device, or the default."""
    found = None if deterministic else lookup("int8_matmul", tuned_key(kind, rows), device)
    if found is None or len(found) != len(Config._fields):
        return config_for(kind, rows, capability(device)[0], deterministic)
    rows, columns, depth, warps, stages, *flags = found
    return Config(rows, columns, depth, warps, stages, *map(bool, flags))


def int8_matmul(
    x_q: torch.Tensor,
    x_scale: torch.Tensor,
    w_q: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    out: torch.Tensor | None = None,
    deterministic: bool = False,
) -> torch.Tensor:
    """`[M, N]` of codes `x_q` `[M, K]` and `w_q` `[N, K]` int8, rows of x_q at any distance, w_q contiguous.

    `x_scale` f32 and `w_scale` (bf16, f16 or f32) are `[M, G]` and `[N, G]`: G = ceil(K / 128), or 1 for one scale per
    row. `bias` `[N]` of any float dtype. `deterministic`: a row's bits do not depend on the number of rows.
    """
    check_device(x_q=x_q, x_scale=x_scale, w_q=w_q, w_scale=w_scale, bias=bias, out=out)
    check_tensor("x_q", x_q, dtypes=(torch.int8,), shape=(None, None))
    groups = _check_weight(x_q, "x_q", w_q, w_scale, bias)
    check_tensor("x_scale", x_scale, dtypes=(torch.float32,), shape=(x_q.shape[0], groups), contiguous=True)
    out = _out(out, out_dtype, x_q, w_q)
    return _run("w8a8", x_q, x_scale, w_q, w_scale, bias, out, deterministic)


def int8_weight_matmul(
    x: torch.Tensor,
    w_q: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    deterministic: bool = False,
) -> torch.Tensor:
    """`[M, N]` in x's dtype of `x` `[M, K]` bf16, f16 or f32 and int8 weights; the rest as for `int8_matmul`."""
    check_device(x=x, w_q=w_q, w_scale=w_scale, bias=bias, out=out)
    check_tensor("x", x, dtypes=FLOATS, shape=(None, None))
    _check_weight(x, "x", w_q, w_scale, bias)
    kind = "float32" if x.dtype == torch.float32 else "w8a16"
    return _run(kind, x, None, w_q, w_scale, bias, _out(out, x.dtype, x, w_q), deterministic)


def _run(
    kind: str,
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    w_q: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    deterministic: bool,
) -> torch.Tensor:
    (rows, depth), columns, groups = x.shape, w_q.shape[0], w_scale.shape[1]
    config = _config(kind, rows, x.device, deterministic)
    grouped = groups > 1
    step = min(config.depth, GROUP) if grouped else config.depth
    tiles = ceil_div(rows, config.rows) * ceil_div(columns, config.columns)
    splits = 1
    if config.split:
        wanted = ceil_div(4 * processors(x.device), max(1, tiles))
        splits = max(1, min(wanted, ceil_div(depth, step) // MIN_STEPS_PER_SPLIT, MAX_SPLITS))
        splits = power_of_two(splits + 1) // 2  # Few compiled variants: powers of two only.
    # A descriptor wants 16-byte aligned rows; a group must not be cut by a step.
    aligned = depth % 16 == 0 and x.stride(0) % 16 == 0 and x.storage_offset() % 16 == 0
    descriptors = config.descriptors and aligned and rows > 0
    target = torch.empty(splits, rows, columns, dtype=torch.float32, device=x.device) if splits > 1 else out
    arguments = {
        "x_ptr": TensorDescriptor.from_tensor(x, [config.rows, step]) if descriptors else x,
        "w_ptr": TensorDescriptor.from_tensor(w_q, [config.columns, step]) if descriptors else w_q,
        "x_scale_ptr": x_scale,
        "w_scale_ptr": w_scale,
        "bias_ptr": bias,
        "out_ptr": target,
        "M": rows,
        "N": columns,
        "K": depth,
        "groups": groups,
        "x_stride": x.stride(0),
        "out_stride": out.stride(0),
    }
    constants = {
        "INT8": x_scale is not None,
        "GROUPED": grouped,
        "BIAS": bias is not None,
        "SPLIT_K": splits,
        "WHOLE_DEPTH": depth % step == 0,
        "DESCRIPTORS": descriptors,
        "PERSISTENT": config.persistent,
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "BLOCK_M": config.rows,
        "BLOCK_N": config.columns,
        "BLOCK_K": step,
        "GROUP_M": GROUP_M,
    }
    programs = tiles * splits
    if config.persistent:
        programs = min(programs, processors(x.device))
    launch(int8_matmul_kernel, (programs,), arguments, constants, Options(config.warps, config.stages))
    if splits > 1:
        _add_splits(target, bias, out)
    return out


def _add_splits(partial: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Adds the parts f32 `[splits, M, N]` in order, and the bias, into `out` `[M, N]`."""
    splits, rows, columns = partial.shape
    block = min(1024, power_of_two(columns))
    arguments = {
        "partial_ptr": partial,
        "bias_ptr": bias,
        "out_ptr": out,
        "M": rows,
        "N": columns,
        "out_stride": out.stride(0),
    }
    constants = {"SPLIT_K": splits, "BIAS": bias is not None, "BLOCK": block}
    launch(add_splits_kernel, (rows, ceil_div(columns, block)), arguments, constants, Options(4, 1))


def int8_matmul_ref(
    x_q: torch.Tensor,
    x_scale: torch.Tensor,
    w_q: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """The formula of the module in f64, rounded once."""
    return _product(dequantize_ref(x_q, x_scale), w_q, w_scale, bias).to(out_dtype)


def int8_weight_matmul_ref(
    x: torch.Tensor, w_q: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The formula of the module in f64, rounded once."""
    return _product(x, w_q, w_scale, bias).to(x.dtype)


def _product(x: torch.Tensor, w_q: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = x.double() @ dequantize_ref(w_q, w_scale).double().t()
    return y if bias is None else y + bias.double()


def _check_weight(
    x: torch.Tensor, name: str, w_q: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None
) -> int:
    depth = x.shape[1]
    check(depth > 0, f"{name} has no columns")
    check_tensor("w_q", w_q, dtypes=(torch.int8,), shape=(None, depth), contiguous=True)
    check_tensor("w_scale", w_scale, dtypes=FLOATS, shape=(w_q.shape[0], None), contiguous=True)
    groups = w_scale.shape[1]
    wanted = ceil_div(depth, GROUP)
    check(groups in (1, wanted), f"w_scale has {groups} columns, wanted {wanted} (groups of {GROUP}) or 1 (per row)")
    if bias is not None:
        check_tensor("bias", bias, dtypes=FLOATS, shape=(w_q.shape[0],))
    return groups


def _out(out: torch.Tensor | None, dtype: torch.dtype, x: torch.Tensor, w_q: torch.Tensor) -> torch.Tensor:
    check(dtype in FLOATS, f"out_dtype is {dtype}, wanted bfloat16, float16 or float32")
    shape = (x.shape[0], w_q.shape[0])
    if out is None:
        return torch.empty(shape, dtype=dtype, device=x.device)
    check_tensor("out", out, dtypes=FLOATS, shape=shape)
    return out
