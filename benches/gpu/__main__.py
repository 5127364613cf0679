"""Micro-benchmarks of the GPU kernels.

    python -m benches.gpu --out benches/results/gpu_kernels.json      on a GPU
    TRITON_INTERPRET=1 python -m benches.gpu --check                  without one: each bench once, small, no times

Each row has p20, p50 and p80 of the time (L2 flushed between runs), the bytes and operations needed per second, their
share of this device's measured copy rate and bf16 matmul rate, and the peer's time in the same process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import triton

from . import entries  # noqa: F401  registers the benches
from .registry import MAKERS, Bench


def times_ms(run: Any) -> list[float]:
    """p20, p50, p80."""
    return [float(t) for t in triton.testing.do_bench(run, warmup=20, rep=100, quantiles=[0.2, 0.5, 0.8])]


def limits(device: torch.device) -> dict[str, float]:
    """Measured rates of this device: a copy of 1 GiB (read and write), a bf16 matmul of 8192^3."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    copy = times_ms(lambda: target.copy_(source))[1]
    product = times_ms(lambda: a @ b)[1]
    return {"copy_gb_per_s": 2 * (1 << 30) / copy / 1e6, "bf16_tflop_per_s": 2 * 8192**3 / product / 1e9}


def row_of(bench: Bench, found: dict[str, float]) -> dict[str, Any]:
    p20, p50, p80 = times_ms(bench.run)
    gb, tops = bench.needed_bytes / p50 / 1e6, bench.operations / p50 / 1e9
    row: dict[str, Any] = {"op": bench.op, "case": bench.case, "p20_ms": p20, "p50_ms": p50, "p80_ms": p80}
    row |= {"gb_per_s": gb, "share_of_copy": gb / found["copy_gb_per_s"]}
    row |= {"tera_ops_per_s": tops, "share_of_bf16_matmul": tops / found["bf16_tflop_per_s"]}
    if bench.peer is not None:
        peer = times_ms(bench.peer[1])[1]
        row |= {"peer": bench.peer[0], "peer_p50_ms": peer, "speed_over_peer": peer / p50}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="run each bench once on small shapes, without times")
    parser.add_argument("--op", nargs="*", help="only these ops")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.check:
        print(
            "no CUDA device: nothing can be measured here (--check runs the benches in the interpreter)",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cuda" if on_gpu else "cpu")
    benches = (bench for maker in MAKERS for bench in maker(device, options.check))
    chosen = (bench for bench in benches if not options.op or bench.op in options.op)
    if options.check:
        for bench in chosen:
            bench.run()
            if bench.peer is not None:
                bench.peer[1]()
            print(f"ran {bench.op}: {bench.case}" + (f", beside {bench.peer[0]}" if bench.peer else ""))
        return 0
    found = limits(device)
    rows = []
    for bench in chosen:
        rows.append(row_of(bench, found))
        print(json.dumps(rows[-1]), flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    if options.out:
        text = json.dumps(result | {"commit": commit, "limits": found, "rows": rows}, indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
