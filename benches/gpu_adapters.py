"""What adapters cost a decode step on a GPU: the captured step with 0, 1, 8 and 32 of them, rank 16 everywhere.

    python benches/gpu_adapters.py                            # Llama-3.1-8B's shape, int8, 64 sequences
    python benches/gpu_adapters.py --device cpu --shape tiny  # does the benchmark itself work? Its figures mean nothing

Writes benches/results/gpu_adapters.json. Graphs are timed in turn, round after round: a change of the clock reaches all
of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_folder import SHAPES, RandomCheckpoint, write_folder
from octavo import LLM, __version__
from octavo.config import EngineConfig
from octavo.gpu import load
from octavo.gpu.batch import HostBatch
from octavo.gpu.device_adapters import DeviceAdapters
from octavo.gpu.graphs import DecodeGraph
from octavo.gpu.lora import Module, Resident, host_adapters
from octavo.gpu.ops import torch_ops
from octavo.gpu.runner import Runner

RESULTS = Path(__file__).parent / "results"
RANK = 16
CONTEXT = 600


def start(shape: str, backend: load.Backend, seqs: int, distinct: int) -> tuple[LLM, Runner]:
    """A model with random weights and memory for the adapters."""
    made: list[Runner] = []
    load.Checkpoint, checkpoint = RandomCheckpoint, load.Checkpoint  # type: ignore[misc, assignment]
    load.Runner = lambda *a: made.append(Runner(*a)) or made[-1]  # type: ignore[misc, assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_folder(SHAPES[shape], Path(folder))
            config = EngineConfig(
                quantization="int8",
                max_model_len=2 * CONTEXT,
                max_num_seqs=seqs,
                max_num_batched_tokens=2048,
                max_loras=distinct,
                max_lora_memory="8GiB" if backend.device.type == "cuda" else "64MiB",
            )
            return LLM._over(load.start(Path(folder), config.for_engine(), backend), Path(folder)), made[0]
    finally:
        load.Checkpoint, load.Runner = checkpoint, Runner  # type: ignore[misc]


def random_modules(adapters: DeviceAdapters, device: torch.device) -> list[Module]:
    """An adapter of every projection."""

    def of(name: str, rows: int, columns: int) -> Module:
        a = torch.randn(RANK, columns, device=device) / columns**0.5
        return Module(name, 0.01, a, torch.randn(rows, RANK, device=device))

    return [
        of(name, rows, p.linear.shape[1])
        for p in adapters.projections
        for name, rows in zip(p.modules, p.widths, strict=True)
    ]


def graph_of(runner: Runner, seqs: int, residents: list[Resident]) -> DecodeGraph:
    """The captured step of `seqs` decodes, with these adapters in turn."""
    assert runner.graphs is not None
    none = np.empty(0, np.int32)
    ones = np.ones(seqs, np.int32)
    host_batch = HostBatch(none, none, none, none, ones, none, seqs, none)
    ids = np.arange(seqs) % max(1, len(residents)) if residents else np.full(seqs, 0xFFFFFFFF)
    host = host_adapters(ids, ones, dict(enumerate(residents)), runner.model.deterministic)
    device = runner.model.weights.norm.device
    step = host.on_device(*(torch.from_numpy(t).to(device) for t in (host.rows, host.slots)), runner.model.ops)
    graph = runner.graphs.fitting(host_batch, step)
    assert graph is not None
    batch = graph.batch
    batch.context_lens.fill_(CONTEXT)
    batch.positions.fill_(CONTEXT - 1)
    batch.slots.fill_(-1)
    tables = batch.block_tables
    tables.copy_((torch.arange(tables.numel(), device=device) % runner.kv.num_blocks).view_as(tables))
    if batch.adapters is not None and step is not None:
        batch.adapters.copy_(step)
    return graph


def seconds(run: Callable[[], None], device: torch.device, count: int) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(count):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / count


@torch.inference_mode()
def measure(runner: Runner, seqs: int, counts: list[int], rounds: int, write: Callable[[Any], None]) -> None:
    device = runner.model.weights.norm.device
    pool = runner.adapters.reserve()
    residents = [pool.pack(random_modules(runner.adapters, device)) for _ in range(max(counts))]
    times: dict[int, list[float]] = {n: [] for n in [0, *counts]}
    repeats = 20 if device.type == "cuda" else 1
    for _ in range(rounds):
        for n, found in times.items():
            # The tables of a graph are those of the step before: each count sets its own.
            graph = graph_of(runner, seqs, residents[:n])
            graph.replay()
            found.append(seconds(graph.replay, device, repeats))
    base = statistics.median(times[0])
    for n, found in times.items():
        step = statistics.median(found)
        all_ms = [1e3 * s for s in found]
        write({"adapters": n, "sequences": seqs, "step_ms": 1e3 * step, "all_ms": all_ms, "over_none": step / base})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    backend = load.gpu() if on_gpu else load.Backend(torch.device("cpu"), torch_ops())
    name = torch.cuda.get_device_name() if on_gpu else "CPU: the figures mean nothing"
    head = {"device": name, "torch": torch.__version__, "octavo": __version__, "shape": options.shape, "rank": RANK}
    rows: list[Any] = []

    def write(row: Any) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        (options.out / "gpu_adapters.json").write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")

    llm, runner = start(options.shape, backend, options.sequences, max(options.adapters))
    with llm:
        measure(runner, options.sequences, options.adapters, options.rounds, write)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
