"""`kv_cache_dtype="int8"` over the torch executor: the CPU executor's blocks and tokens, however steps are cut."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backends import torch_llm
from octavo import LLM, SamplingParams, _core
from octavo.errors import InvalidRequestError
from octavo.gpu import load, runner
from octavo.gpu.batch import open_pairs
from octavo.gpu.kv import KvFormat, KvPool
from octavo.gpu.plan import SAMPLE_SPEC, SEQUENCE, Plan
from octavo.gpu.spec import read_spec

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
BLOCK_BYTES = 2 * 2 * (2 * 32 * 16 + 4 * 16 + 2 * 32 + 8)
"""A block of the fixture `tiny`: 2 layers, 2 heads of 16 channels."""


def prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(199) for _ in range(n)] for n in lengths]


def expected(folder: Path, asked: list[list[int]], params: SamplingParams = GREEDY) -> list[list[list[int]]]:
    """Tokens of the CPU executor over int8 blocks, one request after the other."""
    with LLM(folder, device="cpu", dtype="float32", quantization=None, kv_cache_dtype="int8") as llm:
        return [[o.token_ids for o in llm.generate(p, params)[0].outputs] for p in asked]


def tokens(llm: LLM, asked: list[list[int]], params: SamplingParams = GREEDY) -> list[list[list[int]]]:
    return [[o.token_ids for o in out.outputs] for out in llm.generate(asked, params, use_tqdm=False)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The open blocks of every step."""
    seen: list[list[int]] = []

    class Recording(runner.Runner):
        def _run(self, plan: Plan) -> Any:
            seen.append(plan.open_blocks.tolist())
            return super()._run(plan)

    monkeypatch.setattr(load, "Runner", Recording)
    return seen


def assert_open_blocks_are_distinct_and_reused(opened: list[list[int]], count: int) -> None:
    """Requests that ended give theirs back: all steps together use fewer than `count`."""
    assert len(opened) > count
    assert all(blocks and len(set(blocks)) == len(blocks) for blocks in opened)
    assert max(map(max, opened)) < count


def test_ragged_batches_and_prefix_hits(backend: load.Backend, tiny: Path, opened: list[list[int]]) -> None:
    shared = prompts(70)[0]
    asked = [*prompts(1, 75, 31, 32, 33, 64), *([*shared, *tail] for tail in prompts(4, 30, seed=2))]
    want = expected(tiny, asked)
    with torch_llm(tiny, backend, kv_cache_dtype="int8") as llm:
        assert tokens(llm, asked) == want
        again = llm.generate(asked[-1], GREEDY)[0]
        assert again.metrics is not None
        assert again.metrics.cached_prompt_tokens == 96
        assert [o.token_ids for o in again.outputs] == want[-1]
        info = llm.info()
        assert info["model"]["kv_cache_dtype"] == "int8"
        memory = {part["name"]: part["bytes"] for part in info["memory"]}
        assert memory["kv_cache"] == info["limits"]["num_blocks"] * BLOCK_BYTES
        assert memory["kv_open_blocks"] == 2 * 2 * 32 * 16 * 2 * 4 * (3 * 8 + 256 // 32)
    assert_open_blocks_are_distinct_and_reused(opened, 3 * 8 + 256 // 32)


def test_log_probabilities_are_those_of_the_cpu_and_not_those_of_floats(backend: load.Backend, tiny: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=2)

    def rows(llm: LLM) -> list[float]:
        with llm:
            found = llm.generate(prompts(80)[0], params)[0].outputs[0].logprobs or []
        return [c.logprob for row in found for c in row.values()]

    int8 = rows(torch_llm(tiny, backend, kv_cache_dtype="int8"))
    cpu = rows(LLM(tiny, device="cpu", dtype="float32", quantization=None, kv_cache_dtype="int8"))
    # Against int8 keys the CPU rounds queries to 16 bits.
    assert int8 == pytest.approx(cpu, abs=5e-4)
    assert int8 != pytest.approx(rows(torch_llm(tiny, backend)), abs=1e-3)


def test_chunks_beside_decodes(backend: load.Backend, tiny: Path) -> None:
    asked = prompts(120, 7, 61, 33)
    with torch_llm(tiny, backend, kv_cache_dtype="int8", max_num_batched_tokens=16) as llm:
        assert tokens(llm, asked) == expected(tiny, asked)
        assert llm.stats()["mixed_steps"] > 0


def test_preemption_and_cancelled_requests(backend: load.Backend, tiny: Path, opened: list[list[int]]) -> None:
    """Blocks are given up half full, and handed out again."""
    asked = prompts(30, 31, 29, 28)
    with torch_llm(
        tiny,
        backend,
        kv_cache_dtype="int8",
        kv_cache_bytes=6 * BLOCK_BYTES,
        max_model_len=96,
        enable_prefix_caching=False,
    ) as llm:
        assert llm.info()["limits"]["num_blocks"] == 6
        want = expected(tiny, asked)
        assert tokens(llm, asked) == want
        assert llm.stats()["preemptions"] > 0
        for prompt in prompts(5, 40, seed=4):
            stream = llm.stream(prompt, SamplingParams(max_tokens=50, ignore_eos=True))
            next(stream)
            stream.close()
        assert tokens(llm, asked) == want
    assert_open_blocks_are_distinct_and_reused(opened, 3 * 8 + 256 // 32)


def test_forks_copy_the_floats_of_their_last_block(backend: load.Backend, tiny: Path) -> None:
    params = SamplingParams(n=5, temperature=1.0, seed=11, max_tokens=40, ignore_eos=True)
    asked = prompts(45, 64)
    with torch_llm(tiny, backend, kv_cache_dtype="int8") as llm:
        found = tokens(llm, asked, params)
    pairs = zip(found, expected(tiny, asked, params), strict=True)
    same = [a[:10] == b[:10] for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True)]
    # A draw on the edge between two tokens may fall to either, since the CPU rounds queries to 16 bits.
    assert sum(same) >= 8, same
    assert len({tuple(t) for t in found[0]}) == 5


def test_padded_steps_are_those_of_eager_ones(backend: load.Backend, tiny: Path) -> None:
    asked = prompts(3, 40, 31)
    found = []
    for graphs in (False, True):
        where = load.Backend(backend.device, backend.ops, graphs=graphs)
        with torch_llm(tiny, where, kv_cache_dtype="int8") as llm:
            found.append(tokens(llm, asked))
    assert found[0] == found[1]


def test_a_step_that_fails_leaves_the_open_blocks_right(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.errors import ExecutionError

    asked = prompts(40, 20)
    want = expected(tiny, asked)
    with torch_llm(tiny, kv_cache_dtype="int8", enable_prefix_caching=False) as llm:
        with monkeypatch.context() as patch:
            patch.setattr(KvPool, "set_open_blocks", lambda *a: (_ for _ in ()).throw(ValueError("planted")))
            with pytest.raises(ExecutionError, match="planted"):
                llm.generate(asked[0], GREEDY)
        assert tokens(llm, asked) == want


def plan(*sequences: tuple[int, int, list[int], list[int]]) -> Plan:
    """Of sequences (queries, context, blocks, open blocks)."""
    seqs = np.zeros(len(sequences), SEQUENCE)
    lens, contexts, tables, opened = zip(*sequences, strict=True)
    seqs["query_len"], seqs["context_len"] = lens, contexts
    seqs["block_table_start"] = np.cumsum([0, *map(len, tables)])[:-1]
    seqs["open_block_start"] = np.cumsum([0, *map(len, opened)])[:-1]
    none, pairs = np.empty(0, np.int32), np.empty((0, 2), np.int32)
    flat, flat_open = (np.concatenate(lists).astype(np.int32) for lists in (tables, opened))
    return Plan(1, none, pairs, none, none, seqs, flat, pairs, flat_open, pairs, pairs, np.zeros(0, SAMPLE_SPEC))


def test_open_blocks_are_those_of_blocks_that_get_a_token() -> None:
    step = plan((70, 70, [4, 9, 2], [0, 1, 2]), (1, 64, [3, 5], [7]), (1, 65, [3, 5, 6], [8]))
    assert open_pairs(step).tolist() == [[4, 0], [9, 1], [2, 2], [5, 7], [6, 8]]


def test_the_device_gets_what_changed(tiny: Path) -> None:
    pool = KvPool(read_spec(_core.read_model(str(tiny))), 10, KvFormat(torch.float32, True), torch.device("cpu"), 4)
    pairs = np.array([[4, 0], [9, 3]], np.int32)
    assert pool.changed(pairs).tolist() == pairs.tolist()
    pool.set_open_blocks(pairs, torch.from_numpy(pairs))
    assert pool.changed(np.array([[4, 0], [9, 1], [2, 3]], np.int32)).tolist() == [[9, 1], [2, 3]]
    assert pool.open_block_of.tolist() == [-1, -1, -1, -1, 0, -1, -1, -1, -1, 3]


def test_what_cannot_be_had_is_refused(tiny: Path, tmp_path: Path) -> None:
    from random_models import CASES, write_model

    with pytest.raises(InvalidRequestError, match=r"kv_cache_dtype is 'int4'.*\"int8\""):
        torch_llm(tiny, kv_cache_dtype="int4")
    write_model(next(c for c in CASES if c.name == "deepseek-v3"), tmp_path)
    with pytest.raises(InvalidRequestError, match="latent attention"):
        torch_llm(tmp_path, kv_cache_dtype="int8")
