"""From a model folder to a running engine over the torch executor."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from octavo import _core
from octavo.attention import DynamicAttention
from octavo.errors import DeviceMemoryError, InvalidRequestError
from octavo.gpu import sizes
from octavo.gpu.batch import BLOCK_SIZE, Batch
from octavo.gpu.checkpoint import Checkpoint
from octavo.gpu.dynamic import Dynamic, max_query_heads
from octavo.gpu.graphs import DecodeGraphs, capture
from octavo.gpu.graphs import sizes as graph_sizes
from octavo.gpu.kv import KvFormat, KvPool, block_bytes, check_format, max_open_blocks, open_block_bytes
from octavo.gpu.model import Model
from octavo.gpu.ops import Ops, kernel_ops
from octavo.gpu.runner import Runner
from octavo.gpu.sizes import Wishes as Wishes
from octavo.gpu.spec import Heads, Mlp, Spec, read_spec
from octavo.gpu.weights import Format, Weights, load_weights
from octavo.triton_kernels.dynamic_attention import Workspace

_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """Arguments of `LLM` that an engine on a GPU takes."""

    dtype: str = "auto"
    quantization: str | None = "auto"
    kv_cache_dtype: str = "auto"
    attention: DynamicAttention | None = None
    wishes: sizes.Wishes = field(default_factory=sizes.Wishes)
    enable_prefix_caching: bool = True
    deterministic: bool = False
    seed: int = 0
    tokenizer: str | None = None
    chat_template: str | None = None
    prefill_chunk: int | None = None
    """Tokens of one sequence's prefill chunk at most; for tests."""


@dataclass(frozen=True)
class Backend:
    """Where the executor computes and with which ops. Users get `gpu()`; tests also run the torch ops on the CPU."""

    device: torch.device
    ops: Ops
    graphs: bool = True


def gpu() -> Backend:
    """The current CUDA device with the Triton kernels."""
    return Backend(torch.device("cuda", torch.cuda.current_device()), kernel_ops())


def start(folder: Path, options: Options, backend: Backend) -> _core.Engine:
    """Loads the model of `folder` and starts its engine.

    Raises:
        ModelNotFoundError, UnsupportedModelError, CorruptModelError: the model.
        InvalidRequestError: options that do not fit.
        DeviceMemoryError: weights, one step and the KV cache of one sequence do not fit on the device.
    """
    begin = time.perf_counter()
    with _memory_faults():
        runner, limits, info = _load(folder, options, backend)
    info["model"]["load_seconds"] = time.perf_counter() - begin
    return _core.Engine.over(
        str(folder),
        runner,
        vocab=runner.model.spec.vocab,
        info=json.dumps(info),
        **asdict(limits),
        enable_prefix_caching=options.enable_prefix_caching,
        prefill_chunk=options.prefill_chunk,
        seed=options.seed,
        tokenizer=options.tokenizer,
        chat_template=options.chat_template,
    )


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


def _load(folder: Path, options: Options, backend: Backend) -> tuple[Runner, sizes.Limits, dict[str, Any]]:
    facts = _core.read_model(str(folder))
    wanted = sizes.context(options.wishes, facts["spec"]["max_position"], facts["longest_context"])
    spec = read_spec(_core.read_model(str(folder), context=wanted))
    dtype = _float_dtype("dtype", options.dtype, spec.checkpoint_dtype or "bfloat16")
    dynamic = options.attention is not None
    kv_format = KvFormat(dtype, options.kv_cache_dtype == "int8" or (dynamic and options.kv_cache_dtype == "auto"))
    if options.kv_cache_dtype not in ("auto", kv_format.name):
        raise InvalidRequestError(
            f"kv_cache_dtype is {options.kv_cache_dtype!r}: on a GPU keys and values are cached in the model's dtype "
            f'({KvFormat(dtype).name}) or in int8; give "auto", that dtype, or "int8"'
        )
    check_format(spec, kv_format)
    if dynamic and not kv_format.int8:
        raise InvalidRequestError(
            f'attention is dynamic and kv_cache_dtype {options.kv_cache_dtype!r}: give "auto" or "int8"'
        )
    if options.attention is not None and (options.attention.mode != "certified" or options.attention.audit):
        raise InvalidRequestError(
            f"attention has mode {options.attention.mode!r} and audit {options.attention.audit}: on a GPU the mode is "
            "'certified' and nothing is audited; leave these two out"
        )
    if dynamic and options.deterministic:
        raise InvalidRequestError(
            "attention is dynamic and deterministic True: on a GPU decodes then choose what they read and prompts do "
            "not, so that a request's bits depend on its chunks. Give one of the two up"
        )
    with torch.inference_mode():
        checkpoint = Checkpoint(folder, backend.device)
        form = Format(dtype, _int8(options.quantization), options.deterministic, backend.ops)
        weights = load_weights(spec, facts["names"], checkpoint, form)
        warnings = checkpoint.warnings()
        frequencies = _frequencies(spec, backend.device)
        model = Model(spec, weights, dtype, backend.ops, options.deterministic, frequencies)
        limits, memory = _plan_memory(model, kv_format, options, wanted, backend)
        if limits.max_model_len != wanted:
            # Some ropes depend on the longest context that is served.
            spec = read_spec(_core.read_model(str(folder), context=limits.max_model_len))
            frequencies = _frequencies(spec, backend.device)
            model = Model(spec, weights, dtype, backend.ops, options.deterministic, frequencies)
        open_blocks = max_open_blocks(limits.max_num_seqs, limits.max_num_batched_tokens)
        kv = KvPool(spec, limits.num_blocks, kv_format, backend.device, open_blocks)
        if options.attention is not None:
            rows = max(limits.max_num_seqs, graph_sizes(limits.max_num_seqs)[-1])
            kv.policy = Dynamic(spec, options.attention, limits.num_blocks, rows, backend.device)
        graphs = _graphs(model, kv, limits) if backend.graphs else None
    runner = Runner(model, kv, graphs)
    return runner, limits, _info(folder, runner, facts, warnings, memory, backend)


def _float_dtype(name: str, value: str, auto: str) -> torch.dtype:
    found = _FLOATS.get(auto if value == "auto" else value)
    if found is None:
        known = ", ".join(f'"{n}"' for n in ("auto", *_FLOATS))
        raise InvalidRequestError(f"{name} is {value!r}: on a GPU one of {known} is expected")
    return found


def _int8(quantization: str | None) -> bool | None:
    """As `Format.int8`."""
    known: dict[str | None, bool | None] = {"auto": None, "int8": True, None: False}
    if quantization not in known:
        raise InvalidRequestError(f"quantization is {quantization!r}: 'auto', 'int8' or None is expected")
    return known[quantization]


def _frequencies(spec: Spec, device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(rope.inverse_frequencies, device=device) for rope in spec.ropes)


def _plan_memory(
    model: Model, kv_format: KvFormat, options: Options, wanted: int, backend: Backend
) -> tuple[sizes.Limits, list[dict[str, Any]]]:
    """Runs the largest step to see what it takes, and sizes the KV pool."""
    wishes = options.wishes
    scores = Workspace.block_bytes(max_query_heads(model.spec)) if options.attention is not None else 0
    block, open_block = block_bytes(model.spec, kv_format), open_block_bytes(model.spec, kv_format)
    step = 0
    if backend.device.type == "cuda":
        step = _measure_step(model, kv_format, wishes, backend.device)
        free, total = torch.cuda.mem_get_info(backend.device)
        free = max(0, free - step)
    else:
        free = total = _core.build_info()["memory_bytes"] // 4
    seqs, tokens = sizes.most_tokens(wishes)
    open_bytes = max_open_blocks(seqs, tokens) * open_block
    free = max(0, free - open_bytes) * block // (block + scores)
    limits, reason = sizes.limits(wishes, wanted, block, free, total)
    weights = _weight_bytes(model.weights)

    def part(name: str, count: int, why: str) -> dict[str, Any]:
        return {"name": name, "bytes": count, "reason": why}

    parts = [
        part("weights", weights, f"held as {str(model.dtype).removeprefix('torch.')}, or int8 where quantised"),
        part("kv_cache", limits.num_blocks * block, reason),
        part("step_buffers", step, f"measured: a step of {limits.max_num_batched_tokens} tokens at its peak"),
    ]
    if open_bytes:
        dtype = KvFormat(model.dtype).name
        why = f"{dtype} values of blocks that are not full yet, three a sequence and those of a step at most"
        parts.append(part("kv_tails", open_bytes, why))
    if scores:
        why = "f32 scores of the keys that decodes see, of one layer at a time"
        parts.append(part("attention_scores", scores * limits.num_blocks, why))
    return limits, parts


def _measure_step(model: Model, kv_format: KvFormat, wishes: sizes.Wishes, device: torch.device) -> int:
    """Bytes that the largest step takes at its peak, beside weights and KV."""
    seqs, tokens = sizes.most_tokens(wishes)
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


def _graphs(model: Model, kv: KvPool, limits: sizes.Limits) -> DecodeGraphs | None:
    """None for models with a layer that waits for the device, or that has no kernel."""
    plain = all(isinstance(la.attention, Heads) and isinstance(la.mlp, Mlp) for la in model.spec.layers)
    return capture(model, kv, limits.max_num_seqs, limits.max_model_len) if plain else None


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


def _info(
    folder: Path,
    runner: Runner,
    facts: dict[str, Any],
    warnings: list[str],
    memory: list[dict[str, Any]],
    backend: Backend,
) -> dict[str, Any]:
    model, spec = runner.model, runner.model.spec
    dtype = str(model.dtype).removeprefix("torch.")
    int8 = any(hasattr(w.attention.o, "codes") for w in model.weights.layers)
    graphs = "none" if runner.graphs is None else ", ".join(str(g.size) for g in runner.graphs.graphs)
    kind = "Triton kernels" if backend.ops.kernels else "plain torch"
    name = torch.cuda.get_device_name(backend.device) if backend.device.type == "cuda" else "torch on the CPU"
    return {
        "model": {
            "path": str(folder),
            "architecture": spec.architecture,
            "parameters": facts["parameters"],
            "layers": len(spec.layers),
            "hidden": spec.hidden,
            "vocab": spec.vocab,
            "checkpoint_dtype": spec.checkpoint_dtype,
            "dtype": dtype,
            "quantization": "int8" if int8 else "none",
            "kept_in_bf16": [],
            "kv_cache_dtype": runner.kv.format.name,
        },
        "warnings": warnings,
        "memory": memory,
        "kernels": {
            "device": name,
            "matmul": f"int8 weights and activations, {kind}" if int8 else f"{dtype}, torch",
            "attention": f"{runner.kv.policy.name}paged, {runner.kv.format.name} KV, {kind}",
            "decode graphs": graphs if backend.device.type == "cuda" else f"{graphs} (not captured on the CPU)",
            "deterministic": model.deterministic,
        },
    }
