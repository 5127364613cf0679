"""CUDA graphs of steps that contain decodes only: the host launches one graph instead of hundreds of kernels.

Each batch size of `sizes` has a graph; a step uses the smallest graph that holds it. Rows beyond its sequences are
padding: slot -1 (nothing is cached), context length 0 (attention reads nothing), any token. Padding changes no request:
each row of every op depends on its own sequence only.

Steps with adapters have graphs of their own, which hold the adapters' kernels too. They are captured when a step first
needs one of that size and of that many pages of ranks. Slots, pages and ranks are data in tables: adapters come and go
without a capture. Steps without adapters run the plain graphs, at no cost.

On CPU tensors the same padded step runs without capture: tests cover all but the capture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.gpu.batch import BLOCK_SIZE, Batch, HostBatch
from octavo.gpu.kv import KvPool
from octavo.gpu.lora import StepAdapters
from octavo.gpu.model import Model
from octavo.gpu.sampler import best
from octavo.triton_kernels.launch import power_of_two
from octavo.triton_kernels.lora_slots import PAGE

LARGEST = 256
_WARMUPS = 2


def sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, ... up to the first that holds `max_num_seqs`, at most 256."""
    out = [1]
    while out[-1] < min(max_num_seqs, LARGEST):
        out.append(2 * out[-1])
    return out


@dataclass(frozen=True)
class DecodeGraph:
    """A step of `size` decodes with memory of its own."""

    batch: Batch
    hidden: torch.Tensor
    logits: torch.Tensor
    """f32 `[size, vocab]`."""
    best: torch.Tensor
    """int32 `[size]`: the best token of each row; -1 where its logits are not numbers."""
    replay: Callable[[], None]

    @property
    def size(self) -> int:
        return int(self.batch.tokens.shape[0])

    def run(self, new: Batch) -> None:
        """Runs a step of decodes alone, at most `size` of them."""
        n, width = new.block_tables.shape
        b = self.batch
        for name in ("tokens", "positions", "slots", "context_lens"):
            getattr(b, name)[:n].copy_(getattr(new, name))
        b.block_tables[:n, :width].copy_(new.block_tables)
        if n < self.size:
            b.slots[n:].fill_(-1)
            b.context_lens[n:].zero_()
        if len(b.sealed):
            b.sealed[: len(new.sealed)].copy_(new.sealed)
            b.sealed[len(new.sealed) :].fill_(-1)
        if b.adapters is not None and new.adapters is not None:
            b.adapters.copy_(new.adapters)
        self.replay()


class DecodeGraphs:
    """The graphs of a model, smallest first. `max_loras`: distinct adapters that a step may have."""

    def __init__(self, capture: _Capture, max_num_seqs: int, max_loras: int) -> None:
        self._capture, self._max_loras = capture, max_loras
        # The largest first: smaller graphs reuse the memory of its pool.
        self.graphs = [capture.graph(size) for size in reversed(sizes(max_num_seqs))][::-1]
        self.with_adapters: dict[tuple[int, int], DecodeGraph] = {}
        """By size and pages of ranks."""

    def fitting(self, host_batch: HostBatch, adapters: StepAdapters | None = None) -> DecodeGraph | None:
        """The smallest graph that holds a step of decodes alone."""
        if not host_batch.all_decodes:
            return None
        graph = next((g for g in self.graphs if g.size >= host_batch.num_decodes), None)
        if graph is None or adapters is None:
            return graph
        key = graph.size, power_of_two(adapters.tiles.chunks)
        if key not in self.with_adapters:
            rank = min(PAGE * key[1], adapters.pool.max_rank)
            blank = StepAdapters.blank(
                adapters.pool, adapters.ops, graph.size, self._max_loras, rank, adapters.tiles.deterministic
            )
            with adapters.pool.lock:
                self.with_adapters[key] = self._capture.graph(graph.size, blank)
        found = self.with_adapters[key]
        assert found.batch.adapters is not None
        return found if found.batch.adapters.holds(adapters) else None


def capture(model: Model, kv: KvPool, max_num_seqs: int, max_model_len: int, max_loras: int) -> DecodeGraphs:
    """Captures all sizes without adapters."""
    device = model.weights.norm.device
    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    return DecodeGraphs(_Capture(model, kv, max_model_len, device, pool), max_num_seqs, max_loras)


@dataclass(frozen=True)
class _Capture:
    """What all graphs of a model have in common."""

    model: Model
    kv: KvPool
    max_model_len: int
    device: torch.device
    pool: object | None

    def graph(self, size: int, adapters: StepAdapters | None = None) -> DecodeGraph:
        """A step of `size` decodes."""
        return _capture(self.model, self.kv, size, self.max_model_len, self.device, self.pool, adapters)


def _capture(
    model: Model,
    kv: KvPool,
    size: int,
    max_model_len: int,
    device: torch.device,
    pool: object | None,
    adapters: StepAdapters | None,
) -> DecodeGraph:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=device)

    batch = Batch(
        tokens=zeros(size),
        positions=zeros(size),
        slots=torch.full((size,), -1, dtype=torch.int32, device=device),
        query_start=torch.arange(size + 1, dtype=torch.int32, device=device),
        context_lens=zeros(size),
        block_tables=zeros(size, -(-max_model_len // BLOCK_SIZE)),
        sealed=torch.full((size if kv.format.int8 else 0,), -1, dtype=torch.int32, device=device),
        num_decodes=size,
        max_query_len=1,
        max_context_len=max_model_len,
        adapters=adapters,
    )
    hidden = torch.zeros(size, model.spec.hidden, device=device)
    logits = torch.zeros(size, model.spec.vocab, device=device)
    tokens = zeros(size)

    def step() -> None:
        hidden.copy_(model.forward(batch, kv))
        logits.copy_(model.logits(hidden))
        tokens.copy_(best(logits))

    if pool is None:
        return DecodeGraph(batch, hidden, logits, tokens, step)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(_WARMUPS):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate meanwhile: another engine, or the copy of an adapter.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
        step()
    return DecodeGraph(batch, hidden, logits, tokens, graph.replay)
