"""Whole models with random weights on a GPU: a decode step against the memory that it must read, and against
transformers. Writes benches/results/gpu_model.json and, with matplotlib, gpu_model.svg.

    python benches/gpu_model.py                            # Llama-3.2-1B and Llama-3.1-8B shapes on the GPU
    python benches/gpu_model.py --device cpu --shapes tiny # does the benchmark itself work? Its figures mean nothing

No weights are read: they are drawn on the device, so that nothing need be downloaded or written.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_folder import SHAPES, RandomCheckpoint, write_folder
from octavo import LLM, SamplingParams, __version__
from octavo.config import EngineConfig
from octavo.gpu import load
from octavo.gpu.kv import block_bytes
from octavo.gpu.ops import torch_ops

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt, and tokens over which decode steps are timed."""

    prompt: int
    decoded: int

    @property
    def middle(self) -> int:
        """The context half way through the decodes."""
        return self.prompt + self.decoded // 2


def start(folder: Path, backend: load.Backend, quantization: str | None, seqs: int, lengths: Lengths) -> LLM:
    context = lengths.prompt + lengths.decoded + 2
    config = EngineConfig(
        quantization=quantization,
        max_model_len=context,
        max_num_seqs=seqs,
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
    )
    return LLM._over(load.start(folder, config.for_engine(), backend), folder)


def seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def copy_rate(device: torch.device) -> float:
    """Bytes per second that a device copy reads and writes, the best of ten."""
    size = (1 << 30) if device.type == "cuda" else (1 << 26)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        _synchronize(device)
        best = min(best, seconds(lambda: (target.copy_(source), _synchronize(device))))
    return 2 * size / best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prompts(count: int, vocab: int, length: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(count)
    return torch.randint(vocab, (count, length), generator=draw).tolist()


def decode_step(llm: LLM, batch: int, vocab: int, rounds: int, lengths: Lengths) -> tuple[list[float], float]:
    """Seconds of a decode step, one figure a round: what further tokens take, over their number. Then the least time of
    the whole, prompts included."""
    asked = prompts(batch, vocab, lengths.prompt)

    def run(tokens: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        return seconds(lambda: llm.generate(asked, params, use_tqdm=False))

    run(4)
    whole = [run(lengths.decoded + 1) for _ in range(rounds)]
    return [(seconds - run(1)) / lengths.decoded for seconds in whole], min(whole)


@torch.inference_mode()
def graph_seconds(runner: Any, batch: int, device: torch.device, context: int) -> float | None:
    """What the device alone takes for a step of this size: the captured graph, again and again."""
    graphs = runner.graphs.graphs if runner.graphs is not None else []
    graph = next((g for g in graphs if g.size >= batch), None)
    if graph is None or device.type != "cuda":
        return None
    graph.batch.context_lens.fill_(context)
    graph.batch.slots.fill_(-1)
    graph.batch.positions.fill_(context - 1)
    # Blocks of their own for each sequence, so that nothing comes from a cache that a real step would not have.
    tables = graph.batch.block_tables
    tables.copy_((torch.arange(tables.numel(), device=device) % runner.kv.num_blocks).view_as(tables))
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    first.record()
    for _ in range(20):
        graph.replay()
    last.record()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last)) / 1e3 / 20


def measure(
    name: str, backend: load.Backend, quantization: str | None, batches: Sequence[int], rounds: int, lengths: Lengths
) -> list[Any]:
    device = backend.device
    rate = copy_rate(device)
    rows = []
    made: list[Any] = []
    runner_class = load.Runner
    load.Checkpoint = RandomCheckpoint  # type: ignore[misc, assignment]
    load.Runner = lambda *a: made.append(runner_class(*a)) or made[-1]  # type: ignore[misc, assignment]
    with tempfile.TemporaryDirectory() as folder:
        write_folder(SHAPES[name], Path(folder))
        with start(Path(folder), backend, quantization, max(batches), lengths) as llm:
            spec = made[0].model.spec
            weights = next(p["bytes"] for p in llm.info()["memory"] if p["name"] == "weights")
            if not spec.tied_embeddings:
                weights -= spec.vocab * spec.hidden * (1 if quantization else 2)
            kv_token = block_bytes(spec, made[0].kv.format) // 32
            for batch in batches:
                steps, whole = decode_step(llm, batch, spec.vocab, rounds, lengths)
                step = statistics.median(steps)
                device_step = graph_seconds(made[0], batch, device, lengths.middle)
                read = weights + batch * kv_token * lengths.middle
                rows.append(
                    {
                        "model": name,
                        "quantization": quantization or "none",
                        "batch": batch,
                        "step_ms": {"p50": 1e3 * step, "all": [1e3 * s for s in steps]},
                        "tokens_per_second": batch / step,
                        "tokens_per_second_with_prompts": batch * (lengths.decoded + 1) / whole,
                        "bytes_read": read,
                        "copy_bytes_per_second": rate,
                        "step_over_bytes": step / (read / rate),
                        "device_step_ms": None if device_step is None else 1e3 * device_step,
                        "device_idle_share": None if device_step is None else max(0.0, 1 - device_step / step),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    load.Runner = runner_class  # type: ignore[misc]
    return rows


ATTENTIONS = ("flash_attention_3", "flash_attention_2", "sdpa")
"""Of transformers, the best first; the first that this machine has is taken."""


def transformers_model(name: str, device: torch.device) -> tuple[Any, str]:
    """The model and its attention."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(SHAPES[name], Path(folder))
        config = transformers.AutoConfig.from_pretrained(folder)
    torch.set_default_device(device)
    try:
        for attention in ATTENTIONS if device.type == "cuda" else ATTENTIONS[-1:]:
            try:
                model = transformers.AutoModelForCausalLM.from_config(
                    config, dtype=torch.bfloat16, attn_implementation=attention
                )
                return model.eval(), attention
            except (ImportError, ValueError):
                if attention == ATTENTIONS[-1]:
                    raise
    finally:
        torch.set_default_device(None)
    raise AssertionError


def continuous_rows(name: str, device: torch.device, batch: int, lengths: Lengths) -> list[Any]:
    """Tokens per second of transformers' continuous batching, prompts included, the better of two runs."""
    import transformers

    model, attention = transformers_model(name, device)
    vocab, count = model.config.vocab_size, lengths.decoded + 1
    # No token ends a sequence: both engines make the same number.
    rules = transformers.GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0)
    asked = prompts(batch, vocab, lengths.prompt)

    def run() -> float:
        made: list[Any] = []
        taken = seconds(lambda: made.append(model.generate_batch(asked, generation_config=rules)))
        tokens = sum(len(o.generated_tokens) for o in made[0].values())
        if tokens != batch * count:
            raise RuntimeError(f"{tokens} tokens were generated, {batch * count} were asked for")
        return batch * count / taken

    row = {"model": name, "batch": batch, "attention": attention, "tokens_per_second_with_prompts": max(run(), run())}
    print(json.dumps({"transformers continuous batching": row}), flush=True)
    return [row]


def transformers_rows(name: str, device: torch.device, batches: Sequence[int], lengths: Lengths) -> list[Any]:
    """The same figures of transformers' `generate`, with its best attention."""
    model, attention = transformers_model(name, device)
    config = model.config
    rows = []
    for batch in batches:
        ids = torch.tensor(prompts(batch, config.vocab_size, lengths.prompt), device=device)

        def run(tokens: int, ids: torch.Tensor = ids) -> float:
            options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
            with torch.inference_mode():
                return seconds(lambda: (model.generate(ids, **options), _synchronize(device)))

        run(4)
        step = (run(lengths.decoded + 1) - run(1)) / lengths.decoded
        row = {"model": name, "batch": batch, "attention": attention}
        rows.append({**row, "step_ms": 1e3 * step, "tokens_per_second": batch / step})
        print(json.dumps({"transformers": rows[-1]}), flush=True)
    return rows


def machine(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "octavo": __version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    else:
        facts["gpu"] = None
    return facts


def plot(document: dict[str, Any], file: Path) -> None:
    """Step time over what reading its memory takes: 1 is the limit."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = document["octavo"]
    names = [f"{r['model']}\n{r['quantization']}, {r['batch']}" for r in rows]
    figure, axes = pyplot.subplots(figsize=(1.2 * len(rows) + 2, 4))
    axes.bar(names, [r["step_over_bytes"] for r in rows])
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_ylabel("decode step / time to read its bytes")
    axes.tick_params(axis="x", labelsize=7)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llama-3.2-1b", "llama-3.1-8b"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 64])
    parser.add_argument("--continuous", type=int, default=64, help="sequences of the peer's continuous batching")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128, help="tokens over which decode steps are timed")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    backend = load.gpu() if options.device == "cuda" else load.Backend(torch.device("cpu"), torch_ops())
    lengths = Lengths(options.prompt_tokens, options.tokens)
    document: dict[str, Any] = {
        "machine": machine(backend.device),
        "prompt_tokens": lengths.prompt,
        "decoded_tokens": lengths.decoded,
        "octavo": [],
        "transformers": [],
        "continuous_batching": [],
        "faults": [],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "gpu_model.json"
    jobs: list[tuple[str, str, Callable[[], list[Any]]]] = []
    last: list[tuple[str, str, Callable[[], list[Any]]]] = []
    for name in options.shapes:
        for form in (None, "int8"):
            jobs.append(
                (
                    name,
                    "octavo",
                    lambda n=name, f=form: measure(n, backend, f, options.batches, options.rounds, lengths),
                )
            )
        if not options.no_peer:
            # Its `generate` on few sequences, its continuous batching on many.
            few = [b for b in options.batches if b <= 32]
            jobs.append((name, "transformers", lambda n=name, b=few: transformers_rows(n, backend.device, b, lengths)))
            # It does not end on tensors of the CPU, so nothing here has run: what it might cost comes last.
            if backend.device.type == "cuda":
                run = lambda n=name: continuous_rows(n, backend.device, options.continuous, lengths)  # noqa: E731
                last.append((name, "continuous_batching", run))
    for name, key, job in jobs + last:
        try:
            document[key] += job()
        except Exception as error:
            # One measurement that fails must not cost the others.
            document["faults"].append({"model": name, "of": key, "error": f"{type(error).__name__}: {error}"})
            print(json.dumps(document["faults"][-1]), flush=True)
        if backend.device.type == "cuda":
            torch.cuda.empty_cache()
        file.write_text(json.dumps(document, indent=1) + "\n")
    plot(document, options.out / "gpu_model.svg")
    if document["faults"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
