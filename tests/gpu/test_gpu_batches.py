"""The scheduler's features over the torch executor: what runs beside a request does not change it."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
from backends import BLOCK_BYTES, torch_llm
from octavo import LLM, SamplingParams
from octavo.gpu import load

PARAMS = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=3)


def prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(199) for _ in range(n)] for n in lengths]


def expected(folder: Path, asked: list[list[int]], params: SamplingParams = PARAMS) -> list[list[int]]:
    """Tokens of the CPU executor, one request after the other."""
    with LLM(folder, device="cpu", dtype="float32", quantization=None) as llm:
        return [llm.generate(p, params)[0].outputs[0].token_ids for p in asked]


def tokens(llm: LLM, asked: list[list[int]], params: SamplingParams = PARAMS) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in llm.generate(asked, params, use_tqdm=False)]


def test_ragged_batches(backend: load.Backend, tiny: Path) -> None:
    asked = prompts(1, 75, 3, 40, 33, 32, 64, 5, 90, 31)
    with torch_llm(tiny, backend) as llm:
        assert tokens(llm, asked) == expected(tiny, asked)
        assert llm.stats()["max_batch"] > 4


def test_chunked_prefill_beside_decodes(backend: load.Backend, tiny: Path) -> None:
    asked = prompts(120, 7, 61, 33)
    with torch_llm(tiny, backend, max_num_batched_tokens=16) as llm:
        assert tokens(llm, asked) == expected(tiny, asked)
        assert llm.stats()["mixed_steps"] > 0


def test_prefix_hits(backend: load.Backend, tiny: Path) -> None:
    shared = prompts(70)[0]
    asked = [[*shared, *tail] for tail in prompts(4, 9, 30, seed=2)]
    with torch_llm(tiny, backend) as llm:
        first = llm.generate(asked[0], PARAMS)[0]
        rest = llm.generate(asked[1:], PARAMS, use_tqdm=False)
        assert all(o.metrics is not None and o.metrics.cached_prompt_tokens == 64 for o in rest)
        assert [o.outputs[0].token_ids for o in (first, *rest)] == expected(tiny, asked)


def test_preemption_in_a_tiny_pool(backend: load.Backend, tiny: Path) -> None:
    asked = prompts(30, 31, 29, 28)
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    with torch_llm(tiny, backend, kv_cache_bytes=6 * BLOCK_BYTES, max_model_len=96, enable_prefix_caching=False) as llm:
        assert llm.info()["limits"]["num_blocks"] == 6
        assert tokens(llm, asked, params) == expected(tiny, asked, params)
        assert llm.stats()["preemptions"] > 0


def test_forks_copy_their_last_block(backend: load.Backend, tiny: Path) -> None:
    prompt = prompts(45)[0]
    params = SamplingParams(n=5, temperature=1.0, seed=11, max_tokens=40, ignore_eos=True)
    with LLM(tiny, device="cpu", dtype="float32", quantization=None) as llm:
        want = [o.token_ids for o in llm.generate(prompt, params)[0].outputs]
    with torch_llm(tiny, backend) as llm:
        assert [o.token_ids for o in llm.generate(prompt, params)[0].outputs] == want
    assert len({tuple(t) for t in want}) == 5


def test_cancelling_frees_everything(backend: load.Backend, tiny: Path) -> None:
    with torch_llm(tiny, backend) as llm:
        stream = llm.stream(prompts(50)[0], SamplingParams(max_tokens=400, ignore_eos=True))
        next(stream)
        stream.close()
        other = tokens(llm, prompts(20))
        deadline = time.monotonic() + 10
        while llm.stats()["blocks"]["live"] and time.monotonic() < deadline:
            time.sleep(0.01)
        blocks = llm.stats()["blocks"]
        assert blocks["live"] == 0
        assert blocks["free"] + blocks["cached"] == blocks["total"]
    assert other == expected(tiny, prompts(20))


def test_many_threads(backend: load.Backend, tiny: Path) -> None:
    asked = prompts(*range(3, 15))
    want = expected(tiny, asked)
    got: dict[int, list[int]] = {}
    with torch_llm(tiny, backend) as llm:

        def ask(i: int) -> None:
            got[i] = tokens(llm, [asked[i]])[0]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [got[i] for i in range(len(asked))] == want


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_deterministic_gives_the_same_bits_in_any_batch(dtype: str, backend: load.Backend, tiny: Path) -> None:
    asked = prompts(75, 3, 40, 33, 1)
    with torch_llm(tiny, backend, dtype=dtype, deterministic=True, enable_prefix_caching=False) as llm:
        alone = [llm.generate(p, PARAMS)[0].outputs[0] for p in asked]
        together = [o.outputs[0] for o in llm.generate(asked, PARAMS, use_tqdm=False)]
    assert together == alone
