"""A request's output has the same bits whatever runs beside it and however the engine is set up."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import Any

import octavo
import pytest
from octavo import LLM, RequestOutput, SamplingParams

WORDS = ["once", "there", "was", "a", "small", "girl", "who", "liked", "to", "play", "with", "her", "red", "ball"]


def mixed_prompts(count: int, seed: int, longest: int = 160) -> list[str | list[int]]:
    """Texts and token ids of 1 to `longest` tokens."""
    draw = random.Random(seed)
    prompts: list[str | list[int]] = []
    for i in range(count):
        size = draw.choice((1, 2, 7, 31, 32, 33, longest)) if i % 3 else draw.randrange(1, longest)
        if i % 2:
            prompts.append([draw.randrange(3, 1000) for _ in range(size)])
        else:
            prompts.append(" ".join(draw.choice(WORDS) for _ in range(max(1, size // 2))))
    return prompts


def mixed_params(count: int) -> list[SamplingParams]:
    """Greedy and drawn, short and longer, with and without penalties and log-probabilities."""
    return [
        SamplingParams(
            max_tokens=3 + 5 * (i % 4),
            temperature=0.0 if i % 2 else 0.9,
            top_p=0.95 if i % 3 else 1.0,
            top_k=20 if i % 5 == 0 else None,
            repetition_penalty=1.2 if i % 7 == 0 else None,
            logprobs=2 if i % 2 else None,
            seed=i,
        )
        for i in range(count)
    ]


def essence(outputs: list[RequestOutput]) -> list[Any]:
    """Everything that must not change: tokens, text, log-probabilities to the last bit, reasons."""
    return [(o.prompt_token_ids, o.outputs) for o in outputs]


def differing(want: list[Any], got: list[Any]) -> list[int]:
    return [i for i, (w, g) in enumerate(zip(want, got, strict=True)) if w != g]


PROMPTS = mixed_prompts(40, seed=7)
PARAMS = mixed_params(40)


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[Any]:
    """The outputs of PROMPTS, each run with nothing beside it."""
    return essence([llm.generate(p, q)[0] for p, q in zip(PROMPTS, PARAMS, strict=True)])


def test_hundred_prompts_equal_one_at_a_time() -> None:
    prompts, params = mixed_prompts(100, seed=1), mixed_params(100)
    with LLM() as fresh:
        together = essence(fresh.generate(prompts, params))
        stats = fresh.stats()
        single = essence([fresh.generate(p, q)[0] for p, q in zip(prompts, params, strict=True)])
        blocks = fresh.stats()["blocks"]
    assert not (bad := differing(single, together)), f"prompts {bad} changed in the batch"
    assert stats["max_batch"] >= 8, f"barely batched: {stats}"
    assert stats["mixed_steps"] > 0, f"prefill and decode never shared a step: {stats}"
    assert stats["requests"] == {"running": 0, "waiting": 0, "finished": 100}
    assert blocks["live"] == 0
    assert blocks["free"] + blocks["cached"] == blocks["total"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_num_seqs": 3}, id="few-sequences"),
        pytest.param({"max_num_batched_tokens": 16, "max_num_seqs": 16}, id="small-chunks"),
        pytest.param({"max_num_batched_tokens": 7, "max_num_seqs": 5}, id="odd-chunks"),
        pytest.param({"enable_prefix_caching": False}, id="no-prefix-cache"),
        pytest.param({"threads": 1}, id="one-thread"),
        pytest.param({"threads": 3}, id="three-threads"),
        pytest.param({"max_queue": 2, "max_num_seqs": 4}, id="short-queue"),
        pytest.param({"max_model_len": 512}, id="short-context"),
    ],
)
def test_settings_change_nothing(options: dict[str, Any], alone: list[Any]) -> None:
    with LLM(**options) as other:
        got = essence(other.generate(PROMPTS, PARAMS))
        stats = other.stats()
    assert not (bad := differing(alone, got)), f"prompts {bad} changed"
    if "max_num_seqs" in options:
        assert stats["max_batch"] <= options["max_num_seqs"]
    if "max_num_batched_tokens" in options:
        assert stats["max_batch_tokens"] <= options["max_num_batched_tokens"]


@pytest.mark.parametrize("isa", octavo.build_info()["isa_available"])
def test_every_instruction_set_gives_the_same_bits(isa: str, alone: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_ISA", isa)
    with LLM() as other:
        assert isa in other.info()["kernels"]["matmul"]
        got = essence(other.generate(PROMPTS, PARAMS))
    assert not (bad := differing(alone, got)), f"prompts {bad} changed"


def test_preemption_changes_nothing(llm: LLM) -> None:
    """A KV cache too small for what runs: requests lose their blocks, are recomputed, and say the same."""
    info = llm.info()
    part = next(p for p in info["memory"] if p["name"] == "kv_cache")
    block_bytes = part["bytes"] // info["limits"]["num_blocks"]
    # Each starts with one block and grows to five: two at full length do not fit.
    prompts = [[100 + i] * (5 + i) for i in range(8)]
    params = [SamplingParams(max_tokens=120, ignore_eos=True, seed=i, temperature=0.8, logprobs=1) for i in range(8)]
    want = essence([llm.generate(p, q)[0] for p, q in zip(prompts, params, strict=True)])
    with LLM(kv_cache_memory=9 * block_bytes, max_model_len=256, enable_prefix_caching=False) as tight:
        assert tight.info()["limits"]["num_blocks"] == 9
        got = essence(tight.generate(prompts, params))
        stats = tight.stats()
    assert not (bad := differing(want, got)), f"prompts {bad} changed"
    assert stats["preemptions"] > 0, f"nothing was preempted: the test shows nothing ({stats})"
    assert stats["blocks"] == {"total": 9, "free": 9, "cached": 0, "live": 0, "pinned": 0}


def test_prefix_cache_is_used_and_changes_nothing() -> None:
    prompt = " ".join(WORDS * 8)
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=1)
    with LLM() as fresh:
        first, second = (fresh.generate(prompt, params)[0] for _ in range(2))
        longer = fresh.generate(prompt + " and then", params)[0]
    assert first.metrics is not None
    assert second.metrics is not None
    assert longer.metrics is not None
    assert first.metrics.cached_prompt_tokens == 0
    assert second.metrics.cached_prompt_tokens >= 32
    assert longer.metrics.cached_prompt_tokens >= 32
    assert first.outputs == second.outputs


def test_prefix_cache_never_crosses_salts() -> None:
    prompt = " ".join(WORDS * 8)
    with LLM() as fresh:

        def cached(salt: str | None) -> int:
            output = fresh.generate(prompt, SamplingParams(max_tokens=1, cache_salt=salt))[0]
            assert output.metrics is not None
            return output.metrics.cached_prompt_tokens

        assert [cached(s) for s in (None, "a", "b", "")] == [0, 0, 0, 0] or cached("") >= 32
        assert cached(None) >= 32
        assert cached("a") >= 32
        assert cached("c") == 0


def test_many_threads_share_one_llm(llm: LLM, alone: list[Any]) -> None:
    results: dict[int, Any] = {}

    def work(start: int) -> None:
        for i in range(start, len(PROMPTS), 8):
            results[i] = essence(llm.generate(PROMPTS[i], PARAMS[i]))[0]

    threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not (bad := differing(alone, [results[i] for i in range(len(PROMPTS))])), f"prompts {bad} changed"


def test_equal_engines_draw_equal_outputs() -> None:
    """Without a seed in the request, the engine's seed decides."""
    params = SamplingParams(max_tokens=12, temperature=1.0)
    texts = []
    for seed in (5, 5, 6):
        with LLM(seed=seed) as made:
            texts.append([o.text for o in made.generate(["One day"] * 4, params)])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert len(set(texts[0])) > 1, "four requests without a seed drew the same text"


def test_priority_goes_first() -> None:
    """With one place, the lower number starts before those that came earlier."""
    priorities = [5, 3, 0, 4]
    with LLM(max_num_seqs=1) as one:
        blocker = one.stream("Once", SamplingParams(max_tokens=2000, ignore_eos=True))
        next(blocker)
        # One runs after the other: they end in the order in which they start.
        ended: list[int] = []
        all_ended = threading.Event()

        def note(priority: int) -> None:
            ended.append(priority)
            if len(ended) == len(priorities):
                all_ended.set()

        handles = []
        for priority in priorities:
            params = SamplingParams(max_tokens=16, ignore_eos=True, priority=priority)
            handles.append(one.submit("There was", params))
            handles[-1].watch(partial(note, priority), only_end=True)
        blocker.close()
        assert all_ended.wait(120)
        assert ended == sorted(priorities)
