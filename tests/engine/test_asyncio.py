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
# Sixteen samples, so that it runs for seconds: a pause of the test (a garbage collection, say) does not see its end.
ENDLESS = SamplingParams(max_tokens=2000, ignore_eos=True, n=16)


async def assert_ended_early(llm: LLM, generated: int) -> None:
    """The request ends, and long before its 32000 tokens: it was cancelled and did not just run out."""
    for _ in range(2000):
        if llm.stats()["requests"]["running"] == 0:
            break
        await asyncio.sleep(0.005)
    assert llm.stats()["requests"]["running"] == 0
    assert llm.stats()["generated_tokens"] - generated < 24000, "the request ran on"


def test_agenerate_equals_generate(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=16, seed=i, temperature=0.9) for i in range(30)]

    async def main() -> list[str]:
        return [o.text for o in await asyncio.gather(*(llm.agenerate(PROMPT, p) for p in params))]

    assert asyncio.run(main()) == [o.text for o in llm.generate([PROMPT] * 30, params)]


def test_astream_equals_generate(llm: LLM) -> None:
    # What waits comes as one piece: it must be long enough for more than one, on a busy machine too.
    params = SamplingParams(max_tokens=1000, temperature=0, ignore_eos=True)

    async def main() -> tuple[str, int, bool]:
        deltas = [d async for d in llm.astream(PROMPT, params)]
        return "".join(d.text for d in deltas), len(deltas), deltas[-1].finished

    text, pieces, finished = asyncio.run(main())
    assert text == llm.generate(PROMPT, params)[0].text
    assert pieces > 1
    assert finished


def test_chat_equals_chat(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    params = SamplingParams(max_tokens=12, temperature=0)

    async def main() -> tuple[str, str]:
        whole = await llm.achat(messages, params)
        return whole.text, "".join([d.text async for d in llm.astream_chat(messages, params)])

    want = llm.chat(messages, params)[0].text
    assert asyncio.run(main()) == (want, want)


def test_the_loop_stays_free(llm: LLM) -> None:
    """While a request runs, other tasks of the loop run too. A blocked loop would beat once."""

    async def main() -> int:
        beats = 0
        task = asyncio.create_task(llm.agenerate(PROMPT, SamplingParams(max_tokens=2000, ignore_eos=True)))
        while not task.done():
            await asyncio.sleep(0.002)
            beats += 1
        await task
        return beats

    assert asyncio.run(main()) > 10


def test_cancelled_task_ends_its_request(llm: LLM) -> None:
    async def main() -> None:
        generated = llm.stats()["generated_tokens"]
        task = asyncio.create_task(llm.agenerate(PROMPT, ENDLESS))
        while llm.stats()["requests"]["running"] == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await assert_ended_early(llm, generated)

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
        generated = llm.stats()["generated_tokens"]
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
        await assert_ended_early(llm, generated)

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
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)

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
        thread.join(10)
        assert not thread.is_alive(), f"{thread.name} outlives its LLM"
