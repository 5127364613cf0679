"""`kv_cache_dtype="int8"` over the torch executor: the CPU executor's blocks and tokens, however steps are cut."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from backends import torch_llm
from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.gpu import load, runner
from octavo.gpu.batch import HostBatch
from octavo.gpu.tails import Tails, most_tails

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
def runners(monkeypatch: pytest.MonkeyPatch) -> list[runner.Runner]:
    made: list[runner.Runner] = []
    monkeypatch.setattr(load, "Runner", lambda *a: made.append(runner.Runner(*a)) or made[-1])
    return made


def test_ragged_batches_and_prefix_hits(backend: load.Backend, tiny: Path, runners: list[runner.Runner]) -> None:
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
        assert memory["kv_tails"] == 2 * 2 * 32 * 16 * 2 * 4 * (3 * 8 + 256 // 32)
    tails = runners[0].kv.tails
    assert tails is not None
    assert len(tails.blocks()) <= 1, "blocks of requests that ended keep no tail"


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


def test_preemption_and_cancelled_requests(backend: load.Backend, tiny: Path, runners: list[runner.Runner]) -> None:
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
    tails = runners[0].kv.tails
    assert tails is not None
    assert len(tails.blocks()) <= 4


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


def test_a_step_that_fails_leaves_the_tails_right(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, runners: list[runner.Runner]
) -> None:
    from octavo.errors import ExecutionError

    asked = prompts(40, 20)
    want = expected(tiny, asked)
    with torch_llm(tiny, kv_cache_dtype="int8", enable_prefix_caching=False) as llm:
        with monkeypatch.context() as patch:
            patch.setattr(runner.KvPool, "set_tails", lambda *a: (_ for _ in ()).throw(ValueError("planted")))
            with pytest.raises(ExecutionError, match="planted"):
                llm.generate(asked[0], GREEDY)
        assert tokens(llm, asked) == want


def layout(*sequences: tuple[int, int, list[int]]) -> HostBatch:
    """Of sequences (queries, context, blocks)."""
    lens, contexts, tables = zip(*sequences, strict=True)
    width = max(map(len, tables))
    empty = np.empty(0, np.int32)
    return HostBatch(
        empty,
        empty,
        empty,
        np.cumsum([0, *lens]).astype(np.int32),
        np.array(contexts, np.int32),
        np.array([[*t, *[0] * (width - len(t))] for t in tables], np.int32),
        0,
        empty,
    )


NO_COPIES = np.empty((0, 2), np.int32)


def test_a_block_has_a_tail_from_its_first_token_to_the_step_that_fills_it() -> None:
    tails = Tails(10, 3)
    step = tails.begin(layout((70, 70, [4, 9, 2])), NO_COPIES)
    assert step.filled.tolist() == [4, 9]
    assert sorted(step.changes[:, 0].tolist()) == [2, 4, 9]
    assert len(set(step.changes[:, 1].tolist())) == 3
    assert tails.begin(layout((70, 70, [4, 9, 2])), NO_COPIES).changes.tolist() == step.changes.tolist(), (
        "a step that did not end is told again"
    )
    tails.end(step)
    assert tails.blocks().tolist() == [2]
    step = tails.begin(layout((28, 98, [4, 9, 2, 7])), NO_COPIES)
    assert step.filled.tolist() == [2]
    assert {4: -1, 9: -1}.items() <= dict(step.changes.tolist()).items()
    tails.end(step)
    tails.release([7, 3])
    assert tails.blocks().tolist() == []


def test_copies_take_tails_along() -> None:
    tails = Tails(8, 4)
    tails.end(tails.begin(layout((5, 5, [1])), NO_COPIES))
    step = tails.begin(layout((1, 6, [3]), (1, 6, [1])), np.array([[1, 3], [6, 7]], np.int32))
    assert tails.get(3) not in (-1, tails.get(1))
    assert tails.get(7) == -1
    assert step.filled.tolist() == []


@pytest.mark.parametrize(
    ("before", "then"),
    [
        # Every sequence fills its block and begins another.
        ([(31, [s]) for s in range(4)], [(2, 33, [s, 10 + s]) for s in range(4)]),
        # Every sequence has ended, and others begin with just more than one block each.
        ([(3, [s]) for s in range(4)], [(33, 33, [10 + 2 * s, 11 + 2 * s]) for s in range(4)]),
    ],
    ids=["continued", "replaced"],
)
def test_tails_suffice_for_the_worst_steps(
    before: list[tuple[int, list[int]]], then: list[tuple[int, int, list[int]]]
) -> None:
    tails = Tails(100, most_tails(100, 4, sum(queries for queries, _, _ in then)))
    tails.end(tails.begin(layout(*[(context, context, blocks) for context, blocks in before]), NO_COPIES))
    tails.end(tails.begin(layout(*then), NO_COPIES))
    assert most_tails(5, 4, 132) == 5


def test_what_cannot_be_had_is_refused(tiny: Path, tmp_path: Path) -> None:
    from random_models import CASES, write_model

    with pytest.raises(InvalidRequestError, match=r"kv_cache_dtype is 'int4'.*\"int8\""):
        torch_llm(tiny, kv_cache_dtype="int4")
    write_model(next(c for c in CASES if c.name == "deepseek-v3"), tmp_path)
    with pytest.raises(InvalidRequestError, match="latent attention"):
        torch_llm(tmp_path, kv_cache_dtype="int8")
