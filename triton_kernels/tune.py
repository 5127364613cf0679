"""Measures configurations on this GPU and writes the table that launchers read.

    python -m octavo.triton_kernels.tune [--op OP ...] [--seconds 600] [--out FILE]

For each key of an op every configuration of its space runs on one shape. The fastest is kept if it beats the default by
more than `MARGIN` and gives the default's result. Configurations that the device rejects are skipped. The table is
written after each key: an interrupted run keeps its results.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import triton

from . import tuned
from .int8_matmul import MANY as MANY_ROWS
from .int8_matmul import Config as MatmulConfig
from .int8_matmul import config_for as matmul_config
from .int8_matmul import int8_matmul, int8_weight_matmul, tuned_key
from .kv_cache import BLOCK_SIZE, FloatKV, Int8KV, PagedKV
from .launch import INTERPRETED, capability
from .lora_expand import config_for as expand_config
from .lora_expand import lora_expand
from .lora_shrink import config_for as shrink_config
from .lora_shrink import lora_shrink
from .lora_slots import FEW, MANY, PAGE, LoraSite, LoraTiles, tiles_of
from .paged_attention import Config as AttentionConfig
from .paged_attention import config_for as attention_config
from .paged_attention import paged_attention

MARGIN = 0.02
"""A gain below this is noise."""

Timer = Callable[[Callable[[], object]], float]
"""Milliseconds of a call."""


@dataclass(frozen=True)
class Job:
    """One key of an op: its default and the configurations to try, and the call that is measured."""

    op: str
    key: str
    default: tuple[int, ...]
    space: tuple[tuple[int, ...], ...]
    run: Callable[[], torch.Tensor]


def jobs(device: torch.device, small: bool = False) -> Iterator[Job]:
    """Every key. `small`: shapes for the interpreter."""
    yield from _matmul_jobs(device, small)
    yield from _attention_jobs(device, small)
    yield from _adapter_jobs(device, small)


def _matmul_jobs(device: torch.device, small: bool) -> Iterator[Job]:
    columns, depth = (64, 256) if small else (4096, 4096)
    for kind in ("w8a8", "w8a16"):
        for rows, limit in ((16, 16), (64, 64), (256, 256), (8192, MANY_ROWS)):
            if kind == "w8a16" and limit == 256:
                continue
            count = min(rows, 3) if small else rows
            default = matmul_config(kind, rows, capability(device)[0])
            space = {default._replace(stages=stages) for stages in (2, 3, 4, 5)}
            space |= {c._replace(columns=n) for c in set(space) for n in (32, 64, 128, 256)}
            space |= {c._replace(rows=m, warps=w) for c in set(space) for m in (64, 128) for w in (4, 8) if rows > 64}
            x = torch.randn(count, depth, device=device).to(torch.bfloat16)
            w_q = torch.randint(-127, 128, (columns, depth), device=device, dtype=torch.int8)
            w_scale = torch.rand(columns, depth // 128, device=device).to(torch.bfloat16)
            x_q = torch.randint(-127, 128, (count, depth), device=device, dtype=torch.int8)
            x_scale = torch.rand(count, depth // 128, device=device)

            def run(
                kind: str = kind,
                x: torch.Tensor = x,
                x_q: torch.Tensor = x_q,
                x_scale: torch.Tensor = x_scale,
                w_q: torch.Tensor = w_q,
                w_scale: torch.Tensor = w_scale,
            ) -> torch.Tensor:
                if kind == "w8a16":
                    return int8_weight_matmul(x, w_q, w_scale)
                return int8_matmul(x_q, x_scale, w_q, w_scale)

            key = tuned_key(kind, count)
            yield Job("int8_matmul", key, _plain(default), tuple(sorted(_plain(c) for c in space)), run)


def _attention_jobs(device: torch.device, small: bool) -> Iterator[Job]:
    for int8 in (False, True):
        for head_dim in (64, 128, 256):
            for phase in ("decode", "prefill"):
                kv_heads, sequences, context = (1, 1, 70) if small else (8, 16, 8192 if phase == "decode" else 4096)
                sequences = sequences if phase == "decode" else 1
                queries = sequences if phase == "decode" else context
                blocks = -(-context // BLOCK_SIZE)
                kv: PagedKV
                if int8:
                    open_block_of = torch.arange(sequences * blocks, dtype=torch.int32, device=device) % 8
                    kv = Int8KV.empty(sequences * blocks, 8, kv_heads, head_dim, torch.bfloat16, device, open_block_of)
                else:
                    kv = FloatKV.empty(sequences * blocks, kv_heads, head_dim, torch.bfloat16, device)
                integers = torch.int32
                tables = torch.arange(sequences * blocks, dtype=integers, device=device).view(sequences, blocks)
                starts = torch.tensor(
                    [0, *range(1, sequences + 1)] if phase == "decode" else [0, queries], dtype=integers, device=device
                )
                contexts = torch.full((sequences,), context, dtype=integers, device=device)
                q = torch.randn(queries, 4 * kv_heads, head_dim, device=device).to(torch.bfloat16)
                default, key = attention_config(kv, phase)
                space = {default._replace(stages=s, warps=w) for s in (1, 2, 3, 4) for w in (4, 8)}
                space |= {c._replace(pages=p) for c in set(space) for p in (1, 2, 4)}
                if phase == "prefill":
                    space |= {c._replace(rows=r) for c in set(space) for r in (64, 128)}

                def run(
                    q: torch.Tensor = q,
                    kv: PagedKV = kv,
                    tables: torch.Tensor = tables,
                    starts: torch.Tensor = starts,
                    contexts: torch.Tensor = contexts,
                    decodes: int = sequences if phase == "decode" else 0,
                ) -> torch.Tensor:
                    return paged_attention(q, kv, tables, starts, contexts, scale=0.1, num_decodes=decodes)

                yield Job("paged_attention", key, tuple(default), tuple(sorted(map(tuple, space))), run)


def _adapter_jobs(device: torch.device, small: bool) -> Iterator[Job]:
    columns, depth = (64, 256) if small else (28672, 4096)
    for width, rows in ((FEW, 64), (MANY, 4096)):
        count = 3 if small else rows
        site = LoraSite.empty(torch.zeros(1, 1, dtype=torch.int32, device=device), 1, depth, [columns], torch.bfloat16)
        site.a.copy_(torch.randn(site.a.shape, device=device) / 64)
        site.b.copy_(torch.randn(site.b.shape, device=device))
        site.ranks.fill_(PAGE)
        site.scales.fill_(1.0)
        tiles = tiles_of([0] * count, width, PAGE, device)
        x = torch.randn(count, depth, device=device).to(torch.bfloat16)
        y = torch.zeros(count, columns, device=device, dtype=torch.bfloat16)
        major = capability(device)[0]

        def shrink(x: torch.Tensor = x, site: LoraSite = site, tiles: LoraTiles = tiles) -> torch.Tensor:
            return lora_shrink(x, site, tiles).sum(0)[: len(x)]

        def expand(
            h: torch.Tensor, y: torch.Tensor = y, site: LoraSite = site, tiles: LoraTiles = tiles
        ) -> torch.Tensor:
            return lora_expand(h, site, tiles, y.zero_())

        narrow = shrink_config(width, major)
        space = {narrow._replace(depth=k, stages=s) for k in (64, 128, 256) for s in (2, 3, 4, 5)}
        yield Job("lora_shrink", str(width), tuple(narrow), tuple(sorted(map(tuple, space))), shrink)
        wide = expand_config(width, major)
        options = {wide._replace(columns=n, warps=w) for n in (32, 64, 128, 256) for w in (4, 8)}
        run = partial(expand, lora_shrink(x, site, tiles))
        yield Job("lora_expand", str(width), tuple(wide), tuple(sorted(map(tuple, options))), run)


def _plain(config: MatmulConfig | AttentionConfig) -> tuple[int, ...]:
    return tuple(int(field) for field in config)


def best_of(job: Job, timer: Timer) -> tuple[tuple[int, ...], float, float]:
    """The configuration to use, its time and the default's, in milliseconds."""

    def timed(fields: tuple[int, ...]) -> float:
        with tuned.forced(job.op, job.key, fields):
            return timer(job.run)

    with tuned.forced(job.op, job.key, job.default):
        wanted = job.run().float()
    default = timed(job.default)
    best, fastest = job.default, default
    for fields in job.space:
        if fields == job.default:
            continue
        try:
            with tuned.forced(job.op, job.key, fields):
                found = job.run().float()
            if not torch.allclose(found, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max())):
                continue
            taken = timed(fields)
        except Exception as error:
            if "CUDA error" in str(error):
                raise
            continue  # Too much shared memory, too many registers: not for this device.
        if taken < fastest:
            best, fastest = fields, taken
    return (best, fastest, default) if fastest < (1 - MARGIN) * default else (job.default, default, default)


def tune(found: Iterator[Job], timer: Timer, file: Path, facts: dict[str, str], seconds: float) -> int:
    """Measures job after job until `seconds` have passed; the number of those measured."""
    end = time.monotonic() + seconds
    count = 0
    for job in found:
        if time.monotonic() > end:
            print("no time left: what has been measured is kept", file=sys.stderr)
            break
        fields, taken, default = best_of(job, timer)
        count += 1
        print(f"{job.op:<18}{job.key:<24}{fields!s:<44}{taken:9.4f} ms, default {default:9.4f} ms", flush=True)
        if fields != job.default:
            tuned.write(file, {job.op: {job.key: fields}}, facts)
    tuned.forget()
    return count


def bench_timer(run: Callable[[], object]) -> float:
    """The median of many calls on the GPU, its cache flushed between them."""
    return float(triton.testing.do_bench(run, warmup=10, rep=40, quantiles=[0.5])[0])


def main(arguments: list[str] | None = None) -> int:
    """Tunes on the current GPU; 2 if there is none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--op", nargs="*", help="only these ops")
    parser.add_argument("--seconds", type=float, default=600.0, help="stop after this time")
    parser.add_argument("--out", type=Path, help="the table's file; by default in the user's cache folder")
    options = parser.parse_args(arguments)
    if INTERPRETED or not torch.cuda.is_available():
        print("no CUDA device, or TRITON_INTERPRET is set: there is nothing to tune for here", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    file = options.out or tuned.user_folder() / f"{tuned.device_name(device)}.json"
    facts = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "triton": triton.__version__}
    chosen = (job for job in jobs(device) if not options.op or job.op in options.op)
    tune(chosen, bench_timer, file, facts, options.seconds)
    print(f"table: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
