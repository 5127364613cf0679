"""asyncio: same outputs, cancelling frees, several loops and many tasks at once."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest
from octavo import LLM, SamplingParams
from octavo.errors import EngineDeadError, InvalidRequestError, RequestTimeoutError

PROMPT = "The sun was"
# As many samples as run at once: the engine needs far longer for them than a busy machine may hold up a test.
ENDLESS = SamplingParams(max_tokens=2000, ignore_eos=True, n=64)


async def assert_cancelled(llm: LLM, before: dict[str, int]) -> None:
    """The request ends because it was cancelled: none of its samples reached its length. `before`: see `ends`."""
    deadline = asyncio.get_running_loop().time() + 120
    while llm.stats()["requests"]["running"] > 0:
        assert asyncio.get_running_loop().time() < deadline, "the request runs on"
        await asyncio.sleep(0.005)
    after = ends(llm)
    assert after["abort"] - before["abort"] == ENDLESS.n
    assert after["length"] == before["length"], "the request ran on"


def ends(llm: LLM) -> dict[str, int]:
    """Samples that have ended so far, by reason."""
    return dict(llm.stats()["finished"])


def test_agenerate_equals_generate(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=16, seed=i, temperature=0.9) for i in range(30)]

    async def main() -> list[str]:
        return [o.text for o in await asyncio.gather(*(llm.agenerate(PROMPT, p) for p in params))]

    assert asyncio.run(main()) == [o.text for o in llm.generate([PROMPT] * 30, params)]


def test_astream_equals_generate(llm: LLM) -> None:
    params = SamplingParams(max_tokens=1000, temperature=0, ignore_eos=True)

    async def main() -> tuple[str, bool]:
        deltas = [d async for d in llm.astream(PROMPT, params)]
        return "".join(d.text for d in deltas), deltas[-1].finished

    assert asyncio.run(main()) == (llm.generate(PROMPT, params)[0].text, True)


def test_astream_comes_in_pieces(llm: LLM) -> None:
    async def main() -> list[bool]:
        stream = llm.astream(PROMPT, ENDLESS)
        finished = [(await anext(stream)).finished for _ in range(3)]
        await stream.aclose()  # type: ignore[attr-defined]
        return finished

    assert asyncio.run(main()) == [False] * 3


def test_chat_equals_chat(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    params = SamplingParams(max_tokens=12, temperature=0)

    async def main() -> tuple[str, str]:
        whole = await llm.achat(messages, params)
        return whole.text, "".join([d.text async for d in llm.astream_chat(messages, params)])

    want = llm.chat(messages, params)[0].text
    assert asyncio.run(main()) == (want, want)


def test_the_loop_stays_free(llm: LLM) -> None:
    """While a request runs, other tasks of the loop run too. In a blocked loop the request ends before the beats."""

    async def main() -> None:
        task = asyncio.create_task(llm.agenerate(PROMPT, ENDLESS))
        for _ in range(11):
            await asyncio.sleep(0.002)
            assert not task.done()
        task.cancel()

    asyncio.run(main())


def test_cancelled_task_ends_its_request(llm: LLM) -> None:
    async def main() -> None:
        before = ends(llm)
        task = asyncio.create_task(llm.agenerate(PROMPT, ENDLESS))
        while llm.stats()["requests"]["running"] == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await assert_cancelled(llm, before)

    asyncio.run(main())


@pytest.mark.parametrize("way", ["aclose", "break", "exception", "wait_for"])
def test_left_iterator_ends_its_request(way: str, llm: LLM) -> None:
    async def read() -> None:
        async for _ in llm.astream(PROMPT, ENDLESS):
            if way == "break":
                break
            if way == "exception":
                raise KeyError("of the caller")

    async def main() -> None:
        before = ends(llm)
        if way == "aclose":
            stream = llm.astream(PROMPT, ENDLESS)
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
        elif way == "wait_for":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read(), 0.05)
        elif way == "exception":
            with pytest.raises(KeyError):
                await read()
        else:
            await read()
        gc.collect()
        await assert_cancelled(llm, before)

    asyncio.run(main())


def test_several_loops(llm: LLM) -> None:
    """Loops of several threads share one LLM."""
    params = SamplingParams(max_tokens=20, temperature=0)
    want = llm.generate(PROMPT, params)[0].text
    got: list[str] = []

    async def main() -> None:
        got.extend(o.text for o in await asyncio.gather(*(llm.agenerate(PROMPT, params) for _ in range(5))))

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [want] * 20


def test_errors_reach_the_task(llm: LLM) -> None:
    async def main() -> None:
        with pytest.raises(InvalidRequestError):
            await llm.agenerate([10**8])
        with pytest.raises(RequestTimeoutError):
            await llm.agenerate(PROMPT, SamplingParams(max_tokens=2000, ignore_eos=True, timeout=0.02))
        with pytest.raises(RequestTimeoutError):
            async for _ in llm.astream(PROMPT, SamplingParams(max_tokens=2000, ignore_eos=True, timeout=0.02)):
                pass

    asyncio.run(main())


def test_closing_wakes_the_tasks() -> None:
    made = LLM()

    async def main() -> list[object]:
        tasks = [asyncio.create_task(made.agenerate(PROMPT, ENDLESS)) for _ in range(5)]
        while made.stats()["requests"]["running"] == 0:
            await asyncio.sleep(0.001)
        await asyncio.get_running_loop().run_in_executor(None, made.close)
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 120)

    for result in asyncio.run(main()):
        reasons = getattr(result, "outputs", None)
        assert isinstance(result, EngineDeadError) or (reasons and reasons[0].finish_reason == "abort"), repr(result)

    async def late() -> None:
        await made.agenerate(PROMPT)

    with pytest.raises(EngineDeadError):
        asyncio.run(late())


def test_forgotten_llm_is_collected() -> None:
    """Neither the dispatcher's thread nor a closed loop keeps an LLM alive, and the thread ends with it."""
    before = set(threading.enumerate())

    def use() -> weakref.ref[LLM]:
        made = LLM(max_model_len=64, max_num_seqs=2)
        asyncio.run(once(made))
        return weakref.ref(made)

    async def once(made: LLM) -> None:
        await made.agenerate(PROMPT, SamplingParams(max_tokens=4))
        assert any(t.name == "octavo-asyncio" for t in set(threading.enumerate()) - before)

    gone = use()
    gc.collect()
    assert gone() is None
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive(), f"{thread.name} outlives its LLM"
