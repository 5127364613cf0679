"""Adapters of a running LLM: names, reloads, memory, requests of every kind. Parity is tests/parity's matter."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from octavo import LLM, SamplingParams
from octavo.errors import (
    AdapterConflictError,
    AdapterNotFoundError,
    CorruptModelError,
    InvalidRequestError,
    ModelNotFoundError,
    OctavoError,
    RequestTimeoutError,
)
from small_adapters import write_small

PROMPT = (
    "Once upon a time there was a little girl named Lily. She liked to play outside in the sunny park every day. " * 2
)
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


def lora(name: str, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 12, "temperature": 0, "ignore_eos": True, "lora": name, **fields})


def run(llm: LLM, name: str | None = None) -> tuple[list[int], int]:
    """Tokens, and prompt tokens from the cache."""
    output = llm.generate(PROMPT, GREEDY, adapter=name)[0]
    return output.outputs[0].token_ids, output.metrics.cached_prompt_tokens  # type: ignore[union-attr]


@pytest.fixture
def made(tmp_path: Path) -> Any:
    with LLM() as llm:
        for seed in (1, 2):
            llm.load_adapter(f"a{seed}", write_small(tmp_path / f"a{seed}", seed))
        yield llm


def test_a_reload_gives_what_a_fresh_engine_gives(tmp_path: Path) -> None:
    one, two = write_small(tmp_path / "one", 1), write_small(tmp_path / "two", 2)
    with LLM() as llm:
        base = run(llm)[0]
        first = llm.load_adapter("sql", one)
        assert (first.name, first.generation, first.rank) == ("sql", 1, 4)
        assert len(first.digest) == 64
        old, cached = run(llm, "sql")
        assert cached == 0, "the base model's blocks are not the adapter's"
        assert run(llm, "sql")[1] > 0
        assert llm.load_adapter("sql", two, expected_generation=1).generation == 2
        new, cached = run(llm, "sql")
        assert cached == 0
        llm.load_adapter("law", two)
        assert run(llm, "law")[1] > 0, "the same bytes share their blocks"
        assert run(llm)[0] == base
    with LLM() as fresh:
        fresh.load_adapter("x", two)
        assert run(fresh, "x")[0] == new
        fresh.load_adapter("x", one)
        assert run(fresh, "x")[0] == old
    assert len({tuple(base), tuple(old), tuple(new)}) == 3, "the adapters matter"


def test_every_way_to_ask_takes_an_adapter(made: LLM) -> None:
    want = made.generate(PROMPT, lora("a1"))[0].text
    assert want != made.generate(PROMPT, GREEDY)[0].text
    adapter = made.adapters()[0]
    assert made.generate(PROMPT, GREEDY, adapter=adapter)[0].text == want
    assert made.generate([PROMPT, PROMPT], [GREEDY, lora("a1")], adapter="a1")[1].text == want
    assert "".join(o.text for o in made.stream(PROMPT, GREEDY, adapter="a1")) == want
    assert "".join(o.text for o in made.submit(PROMPT, GREEDY, adapter="a1@1")) == want

    async def gather() -> list[str]:
        streamed = [o.text async for o in made.astream(PROMPT, GREEDY, adapter="a1")]
        return [(await made.agenerate(PROMPT, GREEDY, adapter="a1")).text, "".join(streamed)]

    assert asyncio.run(gather()) == [want, want]
    turns = [{"role": "user", "content": "Who are you?"}]
    chat = made.chat(turns, lora("a1"))[0].text
    assert made.chat(turns, GREEDY, adapter="a1")[0].text == chat
    assert "".join(o.text for o in made.stream_chat(turns, GREEDY, adapter="a1")) == chat
    assert asyncio.run(made.achat(turns, GREEDY, adapter="a1")).text == chat


def test_a_batch_of_adapters_has_the_bits_of_single_requests(made: LLM, tmp_path: Path) -> None:
    names = ["a1", None, "a2", "a1", None, "a2"]
    params = [SamplingParams(max_tokens=9, seed=7, n=2, logprobs=0, ignore_eos=True, lora=name) for name in names]
    alone = [made.generate(PROMPT, p)[0] for p in params]
    with LLM(max_num_batched_tokens=64, max_loras=1, enable_prefix_caching=False) as other:
        for adapter in made.adapters():
            other.load_adapter(adapter.name, tmp_path / adapter.name)
        batch = other.generate([PROMPT] * len(names), params, use_tqdm=False)
    for one, many in zip(alone, batch, strict=True):
        assert [o.token_ids for o in one.outputs] == [o.token_ids for o in many.outputs]
        assert [o.cumulative_logprob for o in one.outputs] == [o.cumulative_logprob for o in many.outputs]


def test_embeddings_take_an_adapter(made: LLM) -> None:
    base, one, two = (np.array(made.embed(PROMPT, lora=name)[0].embedding) for name in (None, "a1", "a2"))
    assert np.abs(base - one).max() > 1e-3
    assert np.abs(two - one).max() > 1e-3
    assert (np.array(made.embed([PROMPT, PROMPT], lora="a1", use_tqdm=False)[1].embedding) == one).all()
    with pytest.raises(AdapterNotFoundError):
        made.check_embedding([1, 2], lora="a3")


def test_names_generations_and_arguments_are_checked(made: LLM, tmp_path: Path) -> None:
    folder = tmp_path / "a1"
    with pytest.raises(AdapterNotFoundError, match='loaded are "a1", "a2"'):
        made.generate(PROMPT, lora("a3"))
    with pytest.raises(AdapterNotFoundError, match="generation 1, not 2"):
        made.generate(PROMPT, lora("a1@2"))
    with pytest.raises(AdapterConflictError, match="expected_generation is 0"):
        made.load_adapter("a1", folder, expected_generation=0)
    with pytest.raises(InvalidRequestError, match="give one of the two"):
        made.generate(PROMPT, lora("a1"), adapter="a2")
    with pytest.raises(InvalidRequestError, match="no name of an adapter"):
        made.load_adapter("a@b", folder)
    with pytest.raises(InvalidRequestError, match="expected_generation is -1"):
        made.load_adapter("b", folder, expected_generation=-1)
    with pytest.raises(ModelNotFoundError):
        made.load_adapter("b", tmp_path / "nothing")
    assert [a.name for a in made.adapters()] == ["a1", "a2"]
    made.unload_adapter("a1")
    with pytest.raises(AdapterNotFoundError):
        made.unload_adapter("a1")
    with pytest.raises(InvalidRequestError, match=r"max_lora_memory is 0\.5"):
        LLM(max_lora_memory=0.5)  # type: ignore[arg-type]


def test_limits_of_rank_and_memory(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "a", 1, rank=8)
    with LLM(max_lora_rank=4) as low, pytest.raises(InvalidRequestError, match="rank 8 and max_lora_rank is 4"):
        low.load_adapter("a", folder)
    with LLM(max_lora_memory="1KiB") as small, pytest.raises(InvalidRequestError, match="max_lora_memory is 1024"):
        small.load_adapter("a", folder)


def test_memory_holds_one_adapter_and_others_wait(tmp_path: Path) -> None:
    folders = {name: write_small(tmp_path / name, seed) for seed, name in enumerate("ab")}
    with LLM() as probe:
        bytes_of = probe.load_adapter("a", folders["a"]).bytes
    with LLM(max_lora_memory=bytes_of * 3 // 2) as llm:
        for name, folder in folders.items():
            llm.load_adapter(name, folder)
        want = {name: run(llm, name)[0] for name in folders}
        first = llm.submit(PROMPT, lora("a", max_tokens=400))
        assert first.next() is not None
        late = llm.submit(PROMPT, lora("b", timeout=0.001))
        gone = llm.submit(PROMPT, lora("b"))
        other = llm.submit(PROMPT, lora("b"))
        assert llm.stats()["adapters"]["resident_bytes"] <= bytes_of * 3 // 2
        gone.cancel()
        with pytest.raises(RequestTimeoutError):
            list(late)
        first.cancel()
        assert [i for o in other for i in o.outputs[0].token_ids] == want["b"]
        last = None
        while (output := gone.next()) is not None:
            last = output
        assert last is not None
        assert last.outputs[0].finish_reason == "abort"


def test_files_that_change_in_place_are_found(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "a", 1)
    with LLM() as llm:
        llm.load_adapter("a", folder)
        write_small(folder, 2, rank=2)
        with pytest.raises(CorruptModelError, match="changed after they were loaded"):
            run(llm, "a")
        run(llm)
        assert llm.load_adapter("a", folder).generation == 2
        run(llm, "a")


def test_statistics_name_adapters_in_use(made: LLM) -> None:
    handle = made.submit(PROMPT, lora("a1", max_tokens=2000))
    assert handle.next() is not None
    adapters = made.stats()["adapters"]
    assert (adapters["running"], adapters["max"], adapters["registered"]) == (["a1"], 8, 2)
    assert adapters["resident_bytes"] > 0
    handle.cancel()
    while handle.next() is not None:
        pass


def test_loads_reloads_and_requests_from_many_threads(tmp_path: Path) -> None:
    folders = [write_small(tmp_path / str(seed), seed) for seed in range(3)]
    with LLM() as alone:
        right = set()
        for folder in folders:
            alone.load_adapter("x", folder)
            right.add(tuple(run(alone, "x")[0]))
    faults: list[object] = []
    done = threading.Event()
    with LLM() as llm:
        llm.load_adapter("x", folders[0])

        def load() -> None:
            for i in range(40):
                llm.load_adapter("x", folders[i % 3])
                if i % 9 == 8:
                    llm.unload_adapter("x")
                time.sleep(0.002)
            done.set()

        def ask() -> None:
            while not done.is_set():
                try:
                    tokens = run(llm, "x")[0]
                    if tuple(tokens) not in right:
                        faults.append(tokens)
                except AdapterNotFoundError:
                    pass
                except OctavoError as error:
                    faults.append(error)

        threads = [threading.Thread(target=f) for f in (load, ask, ask)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
    assert not faults
