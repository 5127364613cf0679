"""From a model folder to a running engine over the torch executor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from octavo import _core
from octavo.attention import from_fields
from octavo.errors import DeviceMemoryError
from octavo.gpu.batch import BLOCK_SIZE, Batch
from octavo.gpu.checkpoint import Checkpoint
from octavo.gpu.device_adapters import DeviceAdapters
from octavo.gpu.dynamic import Dynamic, score_bytes
from octavo.gpu.graphs import DecodeGraphs, capture
from octavo.gpu.graphs import sizes as graph_sizes
from octavo.gpu.kv import KvFormat, KvPool, block_bytes, open_block_bytes
from octavo.gpu.model import Model
from octavo.gpu.ops import Ops, kernel_ops
from octavo.gpu.runner import Runner
from octavo.gpu.sites import projections
from octavo.gpu.spec import Heads, Mlp, Spec, read_spec
from octavo.gpu.weights import Format, Weights, load_weights

_INT8 = {"auto": None, "int8": True, "none": False}
"""`Format.int8` of a quantisation option."""


@dataclass(frozen=True)
class Backend:
    """Where the executor computes and with which ops. Users get `gpu()`; tests also run the torch ops on the CPU."""

    device: torch.device
    ops: Ops
    graphs: bool = True


def gpu() -> Backend:
    """The current CUDA device with the Triton kernels."""
    return Backend(torch.device("cuda", torch.cuda.current_device()), kernel_ops())


def start(folder: Path, config: Mapping[str, Any], backend: Backend) -> _core.Engine:
    """Loads the model of `folder` and starts its engine. `config`: as `EngineConfig.for_engine` returns it.

    Raises:
        ModelNotFoundError, UnsupportedModelError, CorruptModelError: the model.
        InvalidRequestError: options that do not fit.
        DeviceMemoryError: weights, one step and the KV cache of one sequence do not fit on the device.
    """
    begin = time.perf_counter()
    with _memory_faults():
        runner, facts = _load(folder, config, backend)
    facts["load_seconds"] = time.perf_counter() - begin
    return _core.Engine.over(str(folder), config, runner, facts)


@contextmanager
def _memory_faults() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise DeviceMemoryError(
            "the GPU's memory does not hold the model and its largest step: use quantization='int8', a smaller dtype, "
            f"lower max_num_batched_tokens or max_num_seqs, or stop what else uses this GPU "
            f"({str(error).splitlines()[0]})"
        ) from error


def _load(folder: Path, config: Mapping[str, Any], backend: Backend) -> tuple[Runner, dict[str, Any]]:
    """The executor, and its facts for `Engine.over`."""
    resolved = _core.resolve(str(folder), config)
    wanted = resolved["limits"]["max_model_len"]
    facts = _core.read_model(str(folder), context=wanted)
    spec = read_spec(facts)
    dtype = getattr(torch, resolved["dtype"])
    kv_format = KvFormat(dtype, resolved["kv_cache_dtype"] == "int8")
    dynamic = from_fields(config["attention"])
    deterministic = config["deterministic"]
    with torch.inference_mode():
        checkpoint = Checkpoint(folder, backend.device)
        form = Format(dtype, _INT8[resolved["quantization"]], deterministic, backend.ops)
        weights = load_weights(spec, facts["names"], checkpoint, form)
        warnings = checkpoint.warnings()
        model = Model(spec, weights, dtype, backend.ops, deterministic, _frequencies(spec, backend.device))
        lora = partial(_adapters, model, facts["names"])
        adapters = None
        if config["max_lora_memory"] is not None:
            adapters = lora(resolved["limits"] | {"max_lora_memory": config["max_lora_memory"]})
            adapters.reserve()
        memory = _measure_memory(model, kv_format, resolved["limits"], dynamic is not None, backend)
        limits = _core.resolve(str(folder), config, memory)["limits"]
        context, num_blocks, seqs = limits["max_model_len"], limits["num_blocks"], limits["max_num_seqs"]
        if context != wanted:
            # Some ropes depend on the longest context that is served.
            spec = read_spec(_core.read_model(str(folder), context=context))
            model = Model(spec, weights, dtype, backend.ops, deterministic, _frequencies(spec, backend.device))
        kv = KvPool(spec, num_blocks, kv_format, backend.device, resolved["max_open_blocks"])
        if dynamic is not None:
            rows = max(seqs, graph_sizes(seqs)[-1])
            kv.policy = Dynamic(spec, dynamic, num_blocks, rows, backend.device)
        graphs = _graphs(model, kv, seqs, context, limits["max_loras"]) if backend.graphs else None
    runner = Runner(model, kv, graphs, adapters or lora(limits))
    return runner, {**_facts(runner, backend), "warnings": warnings, "memory": memory}


def _frequencies(spec: Spec, device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(rope.inverse_frequencies, device=device) for rope in spec.ropes)


def _measure_memory(
    model: Model, kv_format: KvFormat, limits: Mapping[str, int], dynamic: bool, backend: Backend
) -> dict[str, int]:
    """Memory figures for the engine's plan, in bytes. On a GPU the largest step runs once."""
    step = 0
    if backend.device.type == "cuda":
        step = _measure_step(model, kv_format, limits, backend.device)
        free, total = torch.cuda.mem_get_info(backend.device)
    else:
        free = total = _core.build_info()["memory_bytes"] // 4
    return {
        "total_bytes": total,
        "free_bytes": max(0, free - step),
        "block_bytes": block_bytes(model.spec, kv_format),
        "open_block_bytes": open_block_bytes(model.spec, kv_format),
        "score_bytes": score_bytes(model.spec) if dynamic else 0,
        "weight_bytes": _weight_bytes(model.weights),
        "step_bytes": step,
    }


def _measure_step(model: Model, kv_format: KvFormat, limits: Mapping[str, int], device: torch.device) -> int:
    """Bytes that the largest step takes at its peak, beside weights and KV."""
    seqs, tokens = limits["max_num_seqs"], limits["max_num_batched_tokens"]
    blocks = -(-tokens // BLOCK_SIZE)
    kv = KvPool(model.spec, blocks, kv_format, device, num_open_blocks=blocks)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)

    def ints(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    rows = torch.arange(tokens, dtype=torch.int32, device=device)
    tables = torch.arange(blocks, dtype=torch.int32, device=device)[None]
    filled = ints(*range(tokens // BLOCK_SIZE)) if kv_format.int8 else ints()
    if kv_format.int8:
        kv.open_block_of.copy_(tables[0])
    batch = Batch(rows * 0, rows, rows, ints(0, tokens), ints(tokens), tables, filled, 0, tokens, tokens)
    hidden = model.forward(batch, kv)
    logits = model.logits(hidden[:seqs])
    logits.sort(-1)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del kv, hidden, logits, batch, rows, tables
    torch.cuda.empty_cache()
    return peak


def _adapters(model: Model, names: Mapping[str, Any], limits: Mapping[str, int]) -> DeviceAdapters:
    found = list(projections(model.spec, names, model.weights))
    return DeviceAdapters(found, model.dtype, limits["max_lora_memory"], limits["max_lora_rank"])


def _graphs(model: Model, kv: KvPool, max_num_seqs: int, max_model_len: int, max_loras: int) -> DecodeGraphs | None:
    """None for models with a layer that waits for the device, or that has no kernel."""
    plain = all(isinstance(la.attention, Heads) and isinstance(la.mlp, Mlp) for la in model.spec.layers)
    return capture(model, kv, max_num_seqs, max_model_len, max_loras) if plain else None


def _weight_bytes(weights: Weights) -> int:
    seen: set[int] = set()

    def count(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            fresh = value.data_ptr() not in seen
            seen.add(value.data_ptr())
            return value.numel() * value.element_size() if fresh else 0
        if isinstance(value, tuple):
            return sum(map(count, value))
        return sum(map(count, vars(value).values())) if hasattr(value, "__dataclass_fields__") else 0

    return count(weights)


def _facts(runner: Runner, backend: Backend) -> dict[str, Any]:
    """The executor's part of `Engine.info`."""
    model = runner.model
    int8 = any(hasattr(w.attention.o, "codes") for w in model.weights.layers)
    dtype = str(model.dtype).removeprefix("torch.")
    graphs = "none" if runner.graphs is None else ", ".join(str(g.size) for g in runner.graphs.graphs)
    kind = "Triton kernels" if backend.ops.kernels else "plain torch"
    on_gpu = backend.device.type == "cuda"
    return {
        "checkpoint_dtype": model.spec.checkpoint_dtype,
        "quantization": "int8" if int8 else "none",
        "kernels": {
            "device": torch.cuda.get_device_name(backend.device) if on_gpu else "torch on the CPU",
            "matmul": f"int8 weights and activations, {kind}" if int8 else f"{dtype}, torch",
            "attention": f"{runner.kv.policy.name}paged, {runner.kv.format.name} KV, {kind}",
            "decode graphs": graphs if on_gpu else f"{graphs} (not captured on the CPU)",
            "deterministic": model.deterministic,
        },
    }
