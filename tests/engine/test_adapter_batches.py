"""A request with an adapter has the same bits whatever runs beside it; one without has those of no adapters."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import octavo
import pytest
from octavo import LLM, SamplingParams
from random_adapter import PREFIX, SHAPES, random_tensors, write_random

MEMORY = 1 << 26
RANKS = {"one": 1, "three": 3, "sixteen": 16, "seventeen": 17, "part": 8, "dora": 5}
COUNT = 28


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of several ranks; one of some projections, one with magnitudes."""
    root = tmp_path_factory.mktemp("adapters")
    made = {name: write_random(root / name, i, rank) for i, (name, rank) in enumerate(RANKS.items())}
    write_random(root / "part", 9, 8, random_tensors(9, 8, ["self_attn.v_proj", "mlp.up_proj"], [1, 4]))
    tensors = random_tensors(11, 5, ["self_attn.q_proj", "mlp.down_proj"])
    draw = np.random.default_rng(3)
    for layer in range(6):
        for module in ("self_attn.q_proj", "mlp.down_proj"):
            name = f"{PREFIX}{layer}.{module}.lora_magnitude_vector"
            tensors[name] = draw.uniform(0.5, 1.5, SHAPES[module][0]).astype(np.float32)
    write_random(root / "dora", 11, 5, tensors, use_dora=True)
    return made


def load(llm: LLM, folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        llm.load_adapter(name, folder)


def prompts() -> list[list[int]]:
    draw = random.Random(5)
    sizes = [draw.choice((1, 7, 31, 32, 33, 64, 90)) for _ in range(COUNT)]
    # Every third shares its beginning with others, of other adapters too.
    shared = [draw.randrange(3, 1000) for _ in range(70)]
    return [
        [*shared[: 40 + i], i] if i % 3 == 0 else [draw.randrange(3, 1000) for _ in range(size)]
        for i, size in enumerate(sizes)
    ]


def params() -> list[SamplingParams]:
    names = [None, *RANKS]
    return [
        SamplingParams(
            max_tokens=4 + 3 * (i % 4),
            temperature=0.0 if i % 2 else 0.8,
            logprobs=2,
            seed=i,
            ignore_eos=True,
            n=2 if i % 5 == 4 else 1,
            lora=names[i % len(names)],
        )
        for i in range(COUNT)
    ]


PROMPTS, PARAMS = prompts(), params()
ROOM = {"max_lora_memory": MEMORY, "max_loras": 8}


def essence(outputs: list[Any]) -> list[Any]:
    return [(o.prompt_token_ids, o.outputs) for o in outputs]


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> list[Any]:
    """Each request with nothing beside it and no cached prefix."""
    with LLM(enable_prefix_caching=False, **ROOM) as llm:
        load(llm, folders)
        return essence([llm.generate(p, q)[0] for p, q in zip(PROMPTS, PARAMS, strict=True)])


def assert_same(want: list[Any], got: list[Any]) -> None:
    bad = [(i, PARAMS[i].lora) for i, (w, g) in enumerate(zip(want, got, strict=True)) if w != g]
    assert not bad, f"requests changed: {bad}"


def test_adapters_change_what_is_said(folders: dict[str, Path]) -> None:
    """Otherwise the other tests would show nothing."""
    with LLM(**ROOM) as llm:
        load(llm, folders)
        said = [
            llm.generate([5, 6, 7], SamplingParams(max_tokens=12, temperature=0, logprobs=1, lora=n))[0].outputs[0]
            for n in (None, *RANKS)
        ]
    likely = [o.cumulative_logprob or 0.0 for o in said]
    assert all(abs(a - b) > 0.1 for i, a in enumerate(likely) for b in likely[:i]), likely


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as-it-is"),
        pytest.param({"max_num_batched_tokens": 16, "max_num_seqs": 16}, id="small-chunks"),
        pytest.param({"max_num_batched_tokens": 7, "max_num_seqs": 5}, id="odd-chunks"),
        pytest.param({"threads": 1, "enable_prefix_caching": False}, id="one-thread"),
        pytest.param({"threads": 3}, id="three-threads"),
        pytest.param({"max_loras": 2}, id="two-adapters-at-once"),
        pytest.param({"max_loras": 1, "max_num_seqs": 4}, id="one-adapter-at-once"),
    ],
)
def test_settings_change_nothing(options: dict[str, Any], folders: dict[str, Path], alone: list[Any]) -> None:
    with LLM(**{**ROOM, **options}) as llm:
        load(llm, folders)
        got = essence(llm.generate(PROMPTS, PARAMS))
        again = essence(llm.generate(PROMPTS, PARAMS))
        blocks = llm.stats()["blocks"]
    assert_same(alone, got)
    assert_same(alone, again)
    assert blocks["live"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_int8(dtype: str, folders: dict[str, Path]) -> None:
    some = range(0, COUNT, 2)
    prompts, wanted = [PROMPTS[i] for i in some], [PARAMS[i] for i in some]
    with LLM(dtype=dtype, quantization=None, enable_prefix_caching=False, max_num_batched_tokens=48, **ROOM) as llm:
        load(llm, folders)
        together = essence(llm.generate(prompts, wanted))
        alone = essence([llm.generate(p, q)[0] for p, q in zip(prompts, wanted, strict=True)])
    assert together == alone


def test_memory_for_two_adapters_changes_nothing(folders: dict[str, Path], alone: list[Any]) -> None:
    """Adapters are packed and dropped while requests wait for them."""
    with LLM(**ROOM) as probe:
        load(probe, folders)
        room = 2 * max(a.bytes for a in probe.adapters())
    with LLM(max_lora_memory=room, max_loras=8) as llm:
        load(llm, folders)
        assert_same(alone, essence(llm.generate(PROMPTS, PARAMS)))


@pytest.mark.parametrize("isa", octavo.build_info()["isa_available"])
def test_every_instruction_set_gives_the_same_bits(
    isa: str, folders: dict[str, Path], alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_ISA", isa)
    with LLM(**ROOM) as llm:
        assert isa in llm.info()["kernels"]["matmul"]
        load(llm, folders)
        assert_same(alone, essence(llm.generate(PROMPTS, PARAMS)))


def test_preemption_changes_nothing(folders: dict[str, Path]) -> None:
    """A KV cache too small for what runs: requests lose their blocks and are computed again, with their adapters."""
    names = [None, "one", "sixteen", "dora"] * 2
    texts = [[100 + i] * (5 + i) for i in range(8)]
    wanted = [
        SamplingParams(max_tokens=100, ignore_eos=True, seed=i, temperature=0.8, logprobs=1, lora=name)
        for i, name in enumerate(names)
    ]
    with LLM(**ROOM) as llm:
        load(llm, folders)
        info = llm.info()
        part = next(p for p in info["memory"] if p["name"] == "kv_cache")
        block_bytes = part["bytes"] // info["limits"]["num_blocks"]
        want = essence([llm.generate(p, q)[0] for p, q in zip(texts, wanted, strict=True)])
    with LLM(kv_cache_memory=9 * block_bytes, max_model_len=256, **ROOM) as tight:
        load(tight, folders)
        got = essence(tight.generate(texts, wanted))
        stats = tight.stats()
    assert got == want
    assert stats["preemptions"] > 0, f"nothing was preempted: the test shows nothing ({stats})"


def test_requests_without_an_adapter_keep_every_bit(folders: dict[str, Path], alone: list[Any]) -> None:
    """Beside adapters they say what an engine says that has none."""
    free = [i for i, q in enumerate(PARAMS) if q.lora is None]
    assert free
    with LLM() as plain:
        want = essence(plain.generate([PROMPTS[i] for i in free], [PARAMS[i] for i in free]))
    assert [alone[i] for i in free] == want


def test_a_prefix_is_shared_within_an_adapter_only(folders: dict[str, Path]) -> None:
    prompt = list(range(10, 110))

    def cached(llm: LLM, name: str | None) -> int:
        output = llm.generate(prompt, SamplingParams(max_tokens=1, lora=name))[0]
        assert output.metrics is not None
        return output.metrics.cached_prompt_tokens

    with LLM(**ROOM) as llm:
        load(llm, folders)
        assert [cached(llm, n) for n in (None, "one", "three")] == [0, 0, 0]
        assert all(cached(llm, n) >= 64 for n in (None, "one", "three"))
        # The same bytes under another name are the same adapter.
        llm.load_adapter("again", folders["one"])
        assert cached(llm, "again") >= 64


def test_other_weights_under_a_name(folders: dict[str, Path], tmp_path: Path) -> None:
    """After a reload nothing of the old adapter is left, neither its weights nor its cached prefixes."""
    greedy = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True, logprobs=2, lora="a")
    prompt = list(range(10, 110))
    other = write_random(tmp_path / "other", 77, 4)
    with LLM(**ROOM) as llm:
        first = llm.load_adapter("a", folders["three"])
        before = llm.generate(prompt, greedy)[0]
        second = llm.load_adapter("a", other)
        after = llm.generate(prompt, greedy)[0]
        assert after.metrics is not None
        assert after.metrics.cached_prompt_tokens == 0
        assert (first.generation, second.generation) == (1, 2)
        assert first.digest != second.digest
    with LLM(**ROOM) as fresh:
        fresh.load_adapter("a", other)
        want = fresh.generate(prompt, greedy)[0]
    assert essence([after]) == essence([want])
    assert after.outputs != before.outputs


@pytest.mark.parametrize("how", ["reload", "unload"])
def test_a_running_request_keeps_its_adapter(how: str, folders: dict[str, Path], tmp_path: Path) -> None:
    long = SamplingParams(max_tokens=400, temperature=0.7, seed=3, ignore_eos=True, lora="a")
    other = write_random(tmp_path / "other", 78, 4)
    with LLM(**ROOM) as llm:
        llm.load_adapter("a", folders["sixteen"])
        want = llm.generate([1, 2, 3], long)[0].outputs[0].token_ids
        stream = llm.stream([1, 2, 3], long)
        got = list(next(stream).outputs[0].token_ids)
        if how == "reload":
            llm.load_adapter("a", other)
            llm.generate([1, 2, 3], dataclasses.replace(long, max_tokens=3))
        else:
            llm.unload_adapter("a")
            with pytest.raises(octavo.errors.AdapterNotFoundError, match="adapter"):
                llm.generate([1, 2, 3], long)
        got += [token for part in stream for output in part.outputs for token in output.token_ids]
        assert llm.stats()["blocks"]["live"] == 0
    assert got == want
