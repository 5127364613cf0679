"""What a knowledge pack saves: a pack of 8,192 tokens on the Qwen2.5-0.5B shape, against the prefill of its text.

    python -m benches.packs

writes benches/results/packs.json. Weights and tokens are random: what they are plays no part. "first load" includes the
digest of the weights, which an engine makes once, and memory that the system gives for the first time. The other loads
find a cache whose memory is there.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from octavo import LLM, RequestOutput, SamplingParams, build_info

from benches.compare.shapes import SHAPES
from benches.random_checkpoint import write_checkpoint
from benches.result_file import save

RESULT = Path(__file__).resolve().parent / "results" / "packs.json"
SHAPE, TOKENS, REQUESTS, LOADS = "qwen2.5-0.5b", 8192, 64, 15
# Two packs and the longest request, a few times over.
CACHE = "512MiB"
WARM_LOADS = 5
PARAMS: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "logprobs": 0, "ignore_eos": True}


def complete(llm: LLM, tokens: list[int], **more: Any) -> tuple[float, RequestOutput]:
    """Seconds to the end of a request, and its output."""
    begin = time.perf_counter()
    output = asyncio.run(llm.submit(tokens, SamplingParams(**PARAMS, **more)).aresult())
    return time.perf_counter() - begin, output


def load(llm: LLM, path: str, block: int | None = None) -> float:
    """Seconds to load the pack. `block`: the one that is computed again; None: as the engine chooses."""
    fields = {"operation": "load", "name": "pack", "path": path, "check_block": block}
    begin = time.perf_counter()
    llm._engine.pack({name: value for name, value in fields.items() if value is not None})
    return time.perf_counter() - begin


def shared_blocks(llm: LLM, tokens: list[int]) -> int:
    """The most blocks that `REQUESTS` requests with the pack hold together, beside those of the pack."""
    params = SamplingParams(**{**PARAMS, "max_tokens": 32}, pack="pack")
    handles = [llm.submit(tokens, params) for _ in range(REQUESTS)]
    most = 0
    while not all(handle.done for handle in handles):
        for handle in handles:
            handle.poll()
        most = max(most, llm.stats()["blocks"]["live"])
        time.sleep(0.002)
    return most


def measure(model: Path, folder: Path) -> dict[str, Any]:
    """Makes, loads and uses one pack."""
    tokens = np.random.default_rng(0).integers(0, 150_000, TOKENS).tolist()
    prompt, path = [*tokens, 5, 6, 7], str(folder / "bench.pack")
    with LLM(model, max_model_len=TOKENS + 256, max_num_seqs=REQUESTS) as llm:
        begin = time.perf_counter()
        fields = {"operation": "make", "path": path, "form": "text", "text": "", "sources": [], "tokens": tokens}
        made = llm._engine.pack(fields)
        make_s = time.perf_counter() - begin
    with LLM(model, max_model_len=TOKENS + 256, max_num_seqs=REQUESTS, kv_cache_memory=CACHE) as llm:
        first_load, last = load(llm, path), made["blocks"] - 1
        for _ in range(WARM_LOADS):
            load(llm, path)
        # In turn: what else the machine does falls on all of them.
        loads = [[load(llm, path), load(llm, path, 0), load(llm, path, last)] for _ in range(LOADS)]
        load_s, block_0, block_n = (statistics.median(times) for times in zip(*loads, strict=True))
        pack_s, with_pack = complete(llm, prompt, pack="pack")
        live = shared_blocks(llm, prompt)
        pinned = llm.stats()["blocks"]["pinned"]
        llm.unload_pack("pack")
        full_s, full = complete(llm, prompt, cache_salt="full text")
    assert full.metrics.cached_prompt_tokens == 0
    bits = [(o.outputs[0].token_ids, o.outputs[0].cumulative_logprob) for o in (with_pack, full)]
    return {
        "tokens": made["tokens"], "bytes": made["bytes"], "make_s": make_s, "first_load_s": first_load,
        "load_s": load_s, "load_with_first_block_s": block_0, "load_with_last_block_s": block_n,
        "request_with_pack_s": pack_s, "request_with_full_text_s": full_s,
        "cached_tokens": with_pack.metrics.cached_prompt_tokens,
        "same_bits": bits[0] == bits[1],
        "requests_at_once": REQUESTS, "pack_blocks": pinned, "most_other_blocks": live,
    }  # fmt: skip


def main() -> None:
    """Measures, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="octavo-packs-") as folder:
        model = Path(folder) / "model"
        write_checkpoint(SHAPES[SHAPE], model)
        row = measure(model, Path(folder))
    report = {"date": datetime.date.today().isoformat(), "machine": build_info(), "shape": SHAPE, **row}
    save(arguments.output, report)
    print(arguments.output.read_text())


if __name__ == "__main__":
    main()
