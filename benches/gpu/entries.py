"""The ops of octavo.triton_kernels on the shapes of Llama 3 models, beside torch's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from octavo import triton_kernels as kernels
from octavo.triton_kernels.dynamic_attention import FIELDS
from octavo.triton_kernels.lora_slots import LoraSite, tile_rows, tiles_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from .registry import Bench, entry, nbytes

BF16 = torch.bfloat16
BACK_ENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def best_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> tuple[str, Callable[[], object]]:
    """torch's scaled dot product attention in its fastest back end for these shapes, by one trial of each.

    `MATH` holds all scores: it is tried for short contexts only.
    """

    def call(back_end: SDPBackend) -> torch.Tensor:
        with sdpa_kernel(back_end):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    found: list[tuple[float, SDPBackend]] = []
    for back_end in BACK_ENDS:
        if back_end == SDPBackend.MATH and q.shape[-2] * k.shape[-2] > 1 << 22:
            continue
        try:
            call(back_end)
            found.append((_trial_seconds(partial(call, back_end), q.device), back_end))
        except RuntimeError:
            continue  # This back end does not take these shapes here.
    best = min(found, key=lambda f: f[0])[1] if found else SDPBackend.MATH
    return f"SDPA {best.name.removesuffix('_ATTENTION').lower()}", partial(call, best)


def _trial_seconds(run: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    begin = time.perf_counter()
    for _ in range(3):
        run()
    wait()
    return time.perf_counter() - begin


def random(*shape: int, device: torch.device, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=torch.float32).to(dtype)


@entry
def norms(device: torch.device, small: bool) -> Iterator[Bench]:
    for rows, width in [(4, 256)] if small else [(1, 4096), (64, 4096), (8192, 4096)]:
        x, residual = random(rows, width, device=device), random(rows, width, device=device, dtype=torch.float32)
        weight = random(width, device=device)
        moved = 2 * nbytes(x) + 2 * nbytes(residual)
        case = f"[{rows}, {width}] bf16, residual f32"

        def peer(x: torch.Tensor = x, r: torch.Tensor = residual, w: torch.Tensor = weight) -> object:
            return F.rms_norm((x + r).to(BF16), w.shape, w, 1e-5)

        yield Bench(
            "rms_norm",
            case,
            lambda x=x, w=weight, r=residual: kernels.rms_norm(x, w, 1e-5, residual=r),
            moved,
            peer=("torch, two kernels", peer),
        )
        yield Bench(
            "rms_norm_quantize",
            case,
            lambda x=x, w=weight, r=residual: kernels.rms_norm_quantize(x, w, 1e-5, residual=r),
            moved - nbytes(x) // 2,
        )
        yield Bench("quantize_rows", case, lambda x=x: kernels.quantize_rows(x), nbytes(x) * 3 // 2)


@entry
def activations(device: torch.device, small: bool) -> Iterator[Bench]:
    for rows, inner in [(4, 256)] if small else [(1, 14336), (64, 14336), (8192, 14336)]:
        gate_up = random(rows, 2 * inner, device=device)

        def peer(x: torch.Tensor = gate_up) -> object:
            gate, up = x.chunk(2, -1)
            return F.silu(gate) * up

        case = f"[{rows}, 2 x {inner}] bf16"
        run = lambda x=gate_up: kernels.act_and_mul(x, "silu")  # noqa: E731
        yield Bench("act_and_mul", case, run, nbytes(gate_up) * 3 // 2, peer=("torch, two kernels", peer))
        run = lambda x=gate_up: kernels.act_and_mul_quantize(x, "silu")  # noqa: E731
        yield Bench("act_and_mul_quantize", case, run, nbytes(gate_up) * 5 // 4)


@entry
def rope(device: torch.device, small: bool) -> Iterator[Bench]:
    heads, kv_heads, dim = (4, 1, 64) if small else (32, 8, 128)
    for tokens in [3] if small else [1, 64, 8192]:
        qkv = random(tokens, (heads + 2 * kv_heads) * dim, device=device)
        angle = torch.rand(tokens, dim // 2, device=device)
        slots = torch.arange(tokens, dtype=torch.int32, device=device)
        kv = kernels.FloatKV.empty(tokens // 32 + 1, kv_heads, dim, BF16, device)
        moved = nbytes(qkv) * (2 * heads + 5 * kv_heads) // (heads + 2 * kv_heads)
        yield Bench(
            "rope_and_cache",
            f"{tokens} tokens, {heads} + 2 x {kv_heads} heads of {dim}",
            lambda a=(qkv, angle, angle, slots, kv), h=heads: kernels.rope_and_cache(*a, heads=h),
            moved + nbytes(angle, angle),
        )


@entry
def adapters(device: torch.device, small: bool) -> Iterator[Bench]:
    """Shrink and expand together, beside a loop over the adapters and beside the projection itself."""
    rank, depth, widths = (16, 256, (64,)) if small else (16, 4096, (14336, 14336))
    counts = [(3, 2)] if small else [(1, 1), (64, 1), (64, 8), (64, 32), (8192, 1)]
    for rows, distinct in counts:
        pages = torch.arange(distinct, dtype=torch.int32, device=device)[:, None].contiguous()
        site = LoraSite.empty(pages, distinct, depth, widths, BF16)
        site.a.copy_(random(*site.a.shape, device=device))
        site.b.copy_(random(*site.b.shape, device=device))
        site.ranks.fill_(rank)
        site.scales.fill_(0.01)
        columns = sum(widths)
        slots = [i % distinct for i in range(rows)]
        tiles = tiles_of(slots, tile_rows(rows), rank, device)
        x, y, w = (random(*shape, device=device) for shape in ((rows, depth), (rows, columns), (columns, depth)))
        own = [torch.tensor([i for i in range(rows) if slots[i] == s], device=device) for s in range(distinct)]

        def loop(
            x: torch.Tensor = x, y: torch.Tensor = y, site: LoraSite = site, own: list[torch.Tensor] = own
        ) -> None:
            for s, mine in enumerate(own):
                start = 0
                for p, n in enumerate(site.widths):
                    here = slice(start, start + n)
                    y[mine, here] += x[mine] @ site.a[s, p].t() @ site.b[s, here].t() * 0.01
                    start += n

        run = lambda a=(x, site, tiles, y): kernels.lora_expand(kernels.lora_shrink(*a[:3]), *a[1:])  # noqa: E731
        case = f"{rows} x {columns} x {depth}, rank {rank}, {distinct} adapters"
        moved, operations = nbytes(site.a, site.b, x, y, y), 2 * rank * rows * (len(widths) * depth + columns)
        for peer in (
            ("torch, one adapter at a time", loop),
            ("cuBLAS bf16, the projection", lambda x=x, w=w: x @ w.t()),
        ):
            yield Bench("lora", case, run, moved, operations, peer)


@entry
def matmul(device: torch.device, small: bool) -> Iterator[Bench]:
    shapes = [(64, 256)] if small else [(4096, 4096), (28672, 4096), (4096, 14336)]
    for columns, depth in shapes:
        w = random(columns, depth, device=device)
        w_q, w_scale = kernels.quantize_rows_ref(w) if small else kernels.quantize_weight(w)
        w_scale = w_scale.to(BF16)
        for rows in [3] if small else [1, 16, 64, 256, 2048, 8192]:
            x = random(rows, depth, device=device)
            x_q, x_scale = kernels.quantize_rows_ref(x) if small else kernels.quantize_rows(x)
            operations = 2 * rows * columns * depth
            case = f"{rows} x {columns} x {depth}, groups of 128"
            out = 2 * rows * columns
            peers = [("cuBLAS bf16", lambda x=x, w=w: x @ w.t())]
            if device.type == "cuda" and rows > 16:
                peers.append(("torch._int_mm, no scales", lambda x=x_q, w=w_q: torch._int_mm(x, w.t())))
            run = lambda a=(x_q, x_scale, w_q, w_scale): kernels.int8_matmul(*a)  # noqa: E731
            for peer in peers:
                yield Bench("int8_matmul", case, run, nbytes(x_q, x_scale, w_q, w_scale) + out, operations, peer)
            run = lambda a=(x, w_q, w_scale): kernels.int8_weight_matmul(*a)  # noqa: E731
            yield Bench("int8_weight_matmul", case, run, nbytes(x, w_q, w_scale) + out, operations, peers[0])


@entry
def attention_decode(device: torch.device, small: bool) -> Iterator[Bench]:
    heads, kv_heads, dim = (4, 1, 64) if small else (32, 8, 128)
    for sequences, context in [(2, 70)] if small else [(1, 8192), (32, 8192), (1, 131072), (8, 32768)]:
        blocks = -(-context // 32)
        tables = torch.randperm(sequences * blocks).view(sequences, blocks).to(device, torch.int32)
        starts = torch.arange(sequences + 1, dtype=torch.int32, device=device)
        contexts = torch.full((sequences,), context, dtype=torch.int32, device=device)
        q = random(sequences, heads, dim, device=device)
        open_block_of = torch.full((sequences * blocks,), -1, dtype=torch.int32, device=device)
        open_block_of[tables[:, -1].long()] = torch.arange(sequences, dtype=torch.int32, device=device)
        dense_k, dense_v = (random(sequences, kv_heads, context, dim, device=device) for _ in range(2))
        name, run = best_sdpa(q[:, :, None], dense_k, dense_v, causal=False)
        peer = (f"{name}, contiguous KV", run)
        caches = (
            kernels.FloatKV.empty(sequences * blocks, kv_heads, dim, BF16, device),
            kernels.Int8KV.empty(sequences * blocks, sequences, kv_heads, dim, BF16, device, open_block_of),
        )
        for kv in caches:
            form = "int8" if isinstance(kv, kernels.Int8KV) else "bf16"
            bytes_of = kernels.Int8KV.block_bytes(kv_heads, dim)
            if form == "bf16":
                bytes_of = kernels.FloatKV.block_bytes(kv_heads, dim, BF16)
            yield Bench(
                "paged_attention",
                f"decode, {sequences} x {context}, {heads}:{kv_heads} heads of {dim}, {form}",
                lambda a=(q, kv, tables, starts, contexts), n=sequences: kernels.paged_attention(
                    *a, scale=0.1, num_decodes=n
                ),
                sequences * blocks * bytes_of,
                4 * sequences * heads * context * dim,
                peer,
            )


@entry
def attention_dynamic(device: torch.device, small: bool) -> Iterator[Bench]:
    """Beside dense attention over the same int8 blocks: every tenth block holds the mass, or all alike."""
    heads, kv_heads, dim = (4, 1, 64) if small else (32, 8, 128)
    for sequences, context in [(1, 200)] if small else [(8, 32768), (1, 131072)]:
        blocks = -(-context // 32)
        index = {"dtype": torch.int32, "device": device}
        tables = torch.randperm(sequences * blocks).view(sequences, blocks).to(device, torch.int32)
        starts = torch.arange(sequences + 1, **index)
        contexts = torch.full((sequences,), context, **index)
        open_block_of = torch.full((sequences * blocks,), -1, **index)
        open_block_of[tables[:, -1].long()] = torch.arange(sequences, **index)
        kv = kernels.Int8KV.empty(sequences * blocks, sequences, kv_heads, dim, BF16, device, open_block_of)
        q = random(sequences, heads, dim, device=device).abs()
        out = torch.empty_like(q)
        workspace = kernels.Workspace.empty(sequences * blocks, heads, device)
        lens, first = kernels.assign_workspace(contexts, 1, sequences * blocks)
        report = torch.zeros(sequences, kv_heads, FIELDS, device=device)
        for name in ("concentrated", "diffuse"):
            # Queries are positive: a positive step makes a heavy block.
            heavy = (torch.arange(sequences * blocks, device=device) % 10 == 0) & (name == "concentrated")
            kv.k_step.copy_(torch.where(heavy, 0.01, 0.0)[:, None, None].expand(kv.k_step.shape))
            kv.k_high.fill_(0xFF)
            yield Bench(
                "dynamic_attention",
                f"{sequences} x {context}, {heads}:{kv_heads} heads of {dim}, {name}",
                lambda a=(q, kv, tables, lens, first, out), w=workspace, r=report: kernels.dynamic_attention(
                    *a, scale=0.1, selection=kernels.SelectionParams(0.01), workspace=w, report=r
                ),
                sequences * blocks * kernels.Int8KV.block_bytes(kv_heads, dim),
                4 * sequences * heads * context * dim,
                (
                    "dense paged_attention, int8",
                    lambda a=(q, kv, tables, starts, contexts), n=sequences: kernels.paged_attention(
                        *a, scale=0.1, num_decodes=n
                    ),
                ),
            )


@entry
def attention_prefill(device: torch.device, small: bool) -> Iterator[Bench]:
    heads, kv_heads, dim = (4, 1, 64) if small else (32, 8, 128)
    for length in [40] if small else [4096, 16384, 32768]:
        blocks = -(-length // 32)
        kv = kernels.FloatKV.empty(blocks, kv_heads, dim, BF16, device)
        q = random(length, heads, dim, device=device)
        index = {"dtype": torch.int32, "device": device}
        batch = (
            torch.arange(blocks, **index)[None],
            torch.tensor([0, length], **index),
            torch.tensor([length], **index),
        )
        k, v = (random(1, kv_heads, length, dim, device=device) for _ in range(2))
        rows = q.transpose(0, 1)[None]
        peer = best_sdpa(rows, k, v, causal=True)
        yield Bench(
            "paged_attention",
            f"prefill, {length} causal, {heads}:{kv_heads} heads of {dim}, bf16",
            lambda a=(q, kv, *batch): kernels.paged_attention(*a, scale=0.1),
            2 * nbytes(q) + nbytes(kv.k, kv.v),
            2 * heads * length * length * dim,
            peer,
        )


@entry
def samplers(device: torch.device, small: bool) -> Iterator[Bench]:
    vocab = 512 if small else 128256
    for rows in [2] if small else [1, 64]:
        logits = random(rows, vocab, device=device, dtype=torch.float32)
        zeros = torch.zeros(rows, dtype=torch.int32, device=device)
        ones = torch.ones(rows, device=device)
        plain = kernels.SamplingBatch(ones, zeros.long(), zeros, zeros)
        cut = kernels.SamplingBatch(ones, zeros.long(), zeros, zeros, top_k=zeros + 50, top_p=ones * 0.9)
        for name, rules in (("plain", plain), ("top-k 50, top-p 0.9", cut)):
            run = lambda a=(logits, rules): kernels.sample(*a)  # noqa: E731
            peer = ("torch softmax + multinomial", lambda x=logits: torch.multinomial(x.softmax(-1), 1))
            yield Bench("sample", f"{rows} x {vocab}, {name}", run, nbytes(logits), peer=peer)
