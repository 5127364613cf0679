"""Dynamic attention of decodes: reads all keys, only the values that matter, and bounds the error.

For each query and KV head, the exact scores of all keys give the softmax mass of each block. The lightest blocks are
left out, as many as every query head of the group allows within `error_bound`. R: blocks read, S: blocks left out,
Z: sum of e^score over either.

    omitted mass  mu = Z_S / (Z_R + Z_S)       total variation distance between the weights used and the exact weights
    |out - exact| <= mu (largest |value| in S + |out|)

Both are relative to dense attention over the int8 cache. The comparison with `error_bound` includes the rounding errors
of scores, exponentials and sums. The rule is that of octavo's CPU kernels (docs/dynamic-attention.md) except for groups
of query heads. On the CPU a head does not count blocks that an earlier head of the group reads. Here every head counts
its own, and reads slightly more.

    qk_kernel -> scores, mass [blocks] -> select_blocks_kernel -> selected, omitted -> pv_kernel -> combine_kernel

Shapes are fixed and counts stay on the device: calls can be captured in a CUDA graph. Scores go through a workspace,
each key is read once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from .dynamic_kernels import REPORT_FIELDS, combine_kernel, pv_kernel, qk_kernel
from .dynamic_select import BUCKETS, DENSE_ABOVE, select_blocks_kernel
from .kv_cache import BLOCK_SIZE, Int8KV, gather_keys_values
from .launch import FLOATS, Options, ceil_div, check, check_device, check_tensor, launch, power_of_two, processors

FIELDS: int = REPORT_FIELDS.value
"""Columns of a report, f32: calls that left blocks out, blocks left out, bytes of their values, maximum bound on the
omitted mass of a call, sum of these bounds, maximum bound on the error of an output. One call: one query head."""

MAX_SPLITS = 64
MIN_BLOCKS_PER_SPLIT = 8
CHUNK = 512
"""Blocks per step of the selection."""

_SUM_SLACK = 1e-3


@dataclass(frozen=True)
class SelectionParams:
    """Limits of the blocks that a query leaves out.

    Attributes:
        error_bound: maximum softmax mass that a query head leaves out.
        sink_blocks: first blocks of the sequence that are always read.
        local_blocks: blocks before the current one that are always read.
    """

    error_bound: float
    sink_blocks: int = 1
    local_blocks: int = 2


@dataclass(frozen=True)
class Workspace:
    """Scores f32 `[blocks, heads, 32]` and masses f32 `[blocks, heads]`, flat. Layers and sequences share them."""

    scores: torch.Tensor
    mass: torch.Tensor

    @classmethod
    def empty(cls, blocks: int, heads: int, device: torch.device | str) -> Workspace:
        """For layers of up to `heads` query heads."""
        scores = torch.empty(blocks * heads * BLOCK_SIZE, dtype=torch.float32, device=device)
        return cls(scores, torch.empty(blocks * heads, dtype=torch.float32, device=device))

    @staticmethod
    def block_bytes(heads: int) -> int:
        """Bytes of one block."""
        return 4 * heads * (BLOCK_SIZE + 1)

    def blocks(self, heads: int) -> int:
        """Number of blocks that fit in a layer of `heads` query heads."""
        return self.mass.shape[0] // heads


def assign_workspace(context_lens: torch.Tensor, min_context: int, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(context length or 0, first block in the workspace), int32 `[S]` each; 0: the sequence reads all blocks.

    Sequences of at least `min_context` tokens select blocks, in order, until `blocks` blocks are assigned.
    """
    lens = torch.where(context_lens >= min_context, context_lens, 0)
    needed = (lens + BLOCK_SIZE - 1) // BLOCK_SIZE
    ends = needed.cumsum(0)
    lens = torch.where(ends <= blocks, lens, 0)
    return lens.to(torch.int32), (ends - needed).to(torch.int32)


def dynamic_attention(
    q: torch.Tensor,
    kv: Int8KV,
    block_tables: torch.Tensor,
    lens: torch.Tensor,
    starts: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    selection: SelectionParams,
    workspace: Workspace,
    report: torch.Tensor,
    softcap: float | None = None,
    max_context_len: int | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """Attention of one query a sequence, `q` `[S, H, D]` in the cache's dtype, into the same rows of `out`.

    `block_tables` int32 `[S, blocks]`; `lens` and `starts` int32 `[S]` of `assign_workspace`. Rows of sequences with
    length 0 keep their content. Adds to `report` f32 `[S, KV heads or more, FIELDS]`. `max_context_len` (host) selects
    the configuration. Nothing is read on the host.
    """
    check_device(q=q, v=kv.v, block_tables=block_tables, lens=lens, starts=starts, out=out, report=report)
    _check(q, kv, block_tables, lens, starts, out, workspace, report)
    longest = block_tables.shape[1] if max_context_len is None else ceil_div(max_context_len, BLOCK_SIZE)
    splits = num_splits or _splits(q, kv, longest)
    check(1 <= splits <= MAX_SPLITS, f"num_splits is {num_splits}, wanted 1 to {MAX_SPLITS}")
    log2e = math.log2(math.e)
    arguments: dict[str, object] = {
        **kv.arguments(),
        **_intermediates(q, kv, block_tables.shape[1], splits),
        **_errors(q.dtype, kv.head_dim, scale, softcap),
        **asdict(selection),
        **{"q_ptr": q, "out_ptr": out, "report_ptr": report, "k_reach_ptr": kv.k_reach, "v_norm_ptr": kv.v_norm},
        **{"block_tables_ptr": block_tables, "lens_ptr": lens, "starts_ptr": starts},
        **{"scores_ptr": workspace.scores, "mass_ptr": workspace.mass},
        **{"factor": scale / softcap if softcap else scale * log2e, "cap": (softcap or 0.0) * log2e},
        **{"splits": splits, "capacity": block_tables.shape[1], "table_stride": block_tables.stride(0)},
        **{"q_token_stride": q.stride(0), "q_head_stride": q.stride(1)},
        **{"out_token_stride": out.stride(0), "out_head_stride": out.stride(1), "report_stride": report.stride(0)},
    }
    _launch(q, kv, arguments, splits, longest, softcap is not None)
    return out


def _launch(
    q: torch.Tensor, kv: Int8KV, arguments: Mapping[str, object], splits: int, longest: int, capped: bool
) -> None:
    """Launches the four kernels. `longest`: maximum number of blocks of a sequence, known on the host."""
    sequences, heads, head_dim = q.shape
    cells, group = (sequences, kv.kv_heads), heads // kv.kv_heads
    exact = q.dtype == torch.float32
    common = {"GROUP": group, "KV_HEADS": kv.kv_heads, "HEAD_DIM": head_dim, "BLOCK_SIZE": BLOCK_SIZE}
    width, rows = max(16, power_of_two(head_dim)), max(16, power_of_two(group))
    precision = "ieee" if exact else "tf32"

    def run(kernel: object, grid: tuple[int, ...], constants: dict[str, object], options: Options) -> None:
        names = set(kernel.arg_names)  # type: ignore[attr-defined]
        mine = {name: value for name, value in arguments.items() if name in names}
        launch(kernel, grid, mine, common | constants, options)

    run(
        qk_kernel,
        (*cells, splits),
        {
            "HALF_WIDTH": max(16, power_of_two(head_dim // 2)),
            "BLOCK_M": rows,
            "CAPPED": capped,
            "EXACT": exact,
            "PRECISION": precision,
        },
        Options(8, 2) if head_dim > 128 else Options(4, 3),
    )
    padded = max(2, power_of_two(group))  # Triton 3.6 fails to compile sums over one row.
    chunk = min(CHUNK, max(16, power_of_two(longest)))
    run(select_blocks_kernel, cells, {"GROUP_PADDED": padded, "WIDTH": width, "CHUNK": chunk}, Options(8, 1))
    pages = 1 if exact or head_dim > 128 else 2
    constants = {"WIDTH": width, "BLOCK_M": rows, "PAGES": pages, "PRECISION": precision}
    run(pv_kernel, (*cells, splits), constants, Options(4, 3 if head_dim <= 64 else 2))
    value_bytes = Int8KV.value_bytes(1, head_dim)
    run(combine_kernel, cells, {"GROUP_PADDED": padded, "WIDTH": width, "VALUE_BYTES": value_bytes}, Options(4, 1))


def _intermediates(q: torch.Tensor, kv: Int8KV, capacity: int, splits: int) -> dict[str, torch.Tensor]:
    """Tensors between the kernels. `capacity`: maximum number of selected blocks."""
    sequences, heads, head_dim = q.shape

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    return {
        "open_reach_ptr": empty(sequences, kv.kv_heads),
        "selected_ptr": empty(sequences, kv.kv_heads, capacity, dtype=torch.int32),
        "selected_counts_ptr": empty(sequences, kv.kv_heads, dtype=torch.int32),
        "highest_ptr": empty(sequences, heads),
        "omitted_ptr": empty(sequences, heads),
        "max_v_norm_ptr": empty(sequences, kv.kv_heads),
        "partial_ptr": empty(sequences, heads, splits, head_dim),
        "partial_sum_ptr": empty(sequences, heads, splits),
    }


def _splits(q: torch.Tensor, kv: Int8KV, longest: int) -> int:
    """Enough parts to fill the device twice, none shorter than MIN_BLOCKS_PER_SPLIT."""
    wanted = ceil_div(2 * processors(q.device), max(1, q.shape[0] * kv.kv_heads))
    return max(1, min(wanted, longest // MIN_BLOCKS_PER_SPLIT, MAX_SPLITS))


def _errors(dtype: torch.dtype, head_dim: int, scale: float, softcap: float | None) -> dict[str, float]:
    """Error bound of a score in nats: error_factor * reach * |q| + cap_error."""
    # A chain over the channels, one of q . lo, a fold, the rounding of q step; tensor cores cut instead of rounding.
    roundings = 1.1 * head_dim + 16.0
    relative = roundings * 6e-8
    if dtype != torch.float32:
        # Two bfloat16 parts hold x to 2^-17.
        relative = roundings * 1.2e-7 + 2.0**-16
    return {"error_factor": relative * scale, "cap_error": 1e-6 * (softcap or 0.0)}


def dynamic_attention_ref(
    q: torch.Tensor,
    kv: Int8KV,
    block_tables: torch.Tensor,
    lens: torch.Tensor,
    starts: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    selection: SelectionParams,
    workspace: Workspace,
    report: torch.Tensor,
    softcap: float | None = None,
    max_context_len: int | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """The same rule in plain torch, sequence by sequence and head by head."""
    group = q.shape[1] // kv.kv_heads
    errors = _errors(q.dtype, q.shape[2], scale, softcap)
    for s, context in enumerate(lens.tolist()):
        if context == 0:
            continue
        current_block = (context - 1) // BLOCK_SIZE
        blocks = block_tables[s, :current_block].long()
        k, v = gather_keys_values(kv, block_tables[s], context, current_block * BLOCK_SIZE)
        number = torch.arange(current_block, device=q.device)
        fixed = (number < selection.sink_blocks) | (number >= current_block - selection.local_blocks)
        for h in range(kv.kv_heads):
            rows = q[s, h * group : (h + 1) * group].float()
            scores = rows @ k[:, h].t() * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = (scores - scores.amax(1, keepdim=True)).exp()
            reach = torch.cat(
                [kv.k_reach[blocks, h], k[current_block * BLOCK_SIZE :, h].abs().amax(0).norm()[None]]
            ).amax()
            error = errors["error_factor"] * reach * rows.norm(dim=1).amax() + errors["cap_error"]
            slack = (1 + _SUM_SLACK) * (2 * error).exp()
            shares = weights[:, : current_block * BLOCK_SIZE].reshape(group, current_block, BLOCK_SIZE).sum(-1)
            total = weights.sum(1)
            read = fixed | ~omitted_blocks(shares, total, fixed, selection.error_bound / slack).all(0)
            if not total.isfinite().all() or read.sum() > DENSE_ABOVE.value * current_block:
                read = torch.ones_like(read)
            visible = torch.ones(context, dtype=torch.bool, device=q.device)
            visible[: current_block * BLOCK_SIZE] = read.repeat_interleave(BLOCK_SIZE)
            kept = torch.where(visible, weights, 0.0)
            row_out = kept @ v[:, h].masked_fill(~visible[:, None], 0.0) / kept.sum(1, keepdim=True)
            out[s, h * group : (h + 1) * group] = row_out.to(out.dtype)
            left = int((~read).sum())
            if left:
                omitted = (torch.where(read, 0.0, shares).sum(1) / total * slack).clamp(max=1.0)
                worst = omitted * (kv.v_norm[blocks, h][~read].amax() + row_out.norm(dim=1)) * (1 + _SUM_SLACK)
                cell = report[s, h]
                cell[:3] += torch.tensor([group, left, left * Int8KV.value_bytes(1, q.shape[2])], device=q.device)
                cell[3] = torch.maximum(cell[3], omitted.amax())
                cell[4] += omitted.sum()
                cell[5] = torch.maximum(cell[5], worst.amax())
    return out


def omitted_blocks(shares: torch.Tensor, total: torch.Tensor, fixed: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Blocks that each row may leave out, bool `[rows, blocks]`: its lightest buckets, whose mass is at most `bound`
    of `total` `[rows]`. Blocks in `fixed` are read and do not count."""

    def bits(x: torch.Tensor) -> torch.Tensor:
        return x.float().contiguous().view(torch.int32) >> 21

    bucket = (bits(total)[:, None] - bits(shares)).clamp(0, BUCKETS.value - 1)
    free = torch.where(fixed, 0.0, shares)
    of_bucket = torch.zeros(shares.shape[0], BUCKETS.value, device=shares.device).scatter_add(1, bucket.long(), free)
    lightest = of_bucket.flip(1).cumsum(1).flip(1)
    return (lightest <= (bound * total)[:, None]).gather(1, bucket.long())


def _check(
    q: torch.Tensor,
    kv: Int8KV,
    block_tables: torch.Tensor,
    lens: torch.Tensor,
    starts: torch.Tensor,
    out: torch.Tensor,
    workspace: Workspace,
    report: torch.Tensor,
) -> None:
    check_tensor("q", q, dtypes=FLOATS, shape=(None, None, kv.head_dim))
    check(q.dtype == kv.dtype, f"q is {q.dtype}, the cache's floats are {kv.dtype}: cast q")
    sequences, heads = q.shape[:2]
    check(heads > 0 and heads % kv.kv_heads == 0, f"{heads} query heads over {kv.kv_heads} KV heads: wanted a multiple")
    check(heads // kv.kv_heads <= 64, f"{heads // kv.kv_heads} query heads share a KV head, wanted at most 64")
    index = (torch.int32,)
    check_tensor("lens", lens, dtypes=index, shape=(sequences,), contiguous=True)
    check_tensor("starts", starts, dtypes=index, shape=(sequences,), contiguous=True)
    check_tensor("block_tables", block_tables, dtypes=index, shape=(sequences, None))
    check_tensor("out", out, dtypes=(q.dtype,), shape=tuple(q.shape))
    check_tensor("report", report, dtypes=(torch.float32,), shape=(sequences, None, FIELDS), contiguous=True)
    check(report.shape[1] >= kv.kv_heads, f"report has room for {report.shape[1]} KV heads of {kv.kv_heads}")
    check_tensor("workspace.scores", workspace.scores, dtypes=(torch.float32,), shape=(None,), contiguous=True)
    check_tensor("workspace.mass", workspace.mass, dtypes=(torch.float32,), shape=(None,), contiguous=True)
