"""`LLM.submit`: the public handle of one request, for threads, for event loops, and for wake-ups."""

from __future__ import annotations

import asyncio
import threading
import warnings
from typing import Any

import octavo.deprecated
import pytest
from octavo import LLM, SamplingParams
from octavo.errors import EngineDeadError, InvalidRequestError, RequestTimeoutError
from octavo.outputs import EmbeddingRequestOutput, RequestOutput

PROMPT = "The sun was"
GREEDY = SamplingParams(max_tokens=12, temperature=0)
# More tokens than fit into the wait of any of these tests.
LONG = SamplingParams(max_tokens=2000, ignore_eos=True, n=16)


def merged(outputs: list[RequestOutput]) -> str:
    assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]
    return "".join(o.text for o in outputs)


def test_every_way_to_read_gives_the_same_output(llm: LLM) -> None:
    want = llm.generate(PROMPT, GREEDY)[0]
    handle = llm.submit(PROMPT, GREEDY)
    assert (handle.prompt, handle.prompt_token_ids) == (PROMPT, want.prompt_token_ids)
    assert handle.num_prompt_tokens == len(want.prompt_token_ids)
    assert merged(list(handle)) == want.text
    assert handle.done

    handle = llm.submit(PROMPT, GREEDY)
    outputs: list[RequestOutput] = []
    while (output := handle.next(60)) is not None:
        outputs.append(output)
        assert output.request_id == handle.request_id
    assert merged(outputs) == want.text
    assert handle.poll() is None
    assert list(handle) == []

    async def main() -> tuple[str, str]:
        pieces = [o async for o in llm.submit(PROMPT, GREEDY)]
        return merged(pieces), (await llm.submit(want.prompt_token_ids, GREEDY).aresult()).text

    assert asyncio.run(main()) == (want.text, want.text)


def test_watch_wakes_a_thread_until_the_end(llm: LLM) -> None:
    handle = llm.submit(PROMPT, GREEDY)
    arrived = threading.Event()
    handle.watch(arrived.set)
    outputs: list[RequestOutput] = []
    while not handle.done:
        assert arrived.wait(60)
        arrived.clear()
        while (output := handle.poll()) is not None:
            outputs.append(output)
    assert merged(outputs) == llm.generate(PROMPT, GREEDY)[0].text


def test_watch_of_the_end_wakes_once(llm: LLM) -> None:
    handle = llm.submit(PROMPT, GREEDY)
    ended = threading.Event()
    handle.watch(ended.set, only_end=True)
    assert ended.wait(60)
    output = handle.poll()
    assert output is not None
    assert output.finished
    assert len(output.outputs[0].token_ids) <= 12


def test_cancel_and_unwatch(llm: LLM) -> None:
    handle = llm.submit(PROMPT, LONG)
    handle.watch(lambda: pytest.fail("woken after unwatch"), only_end=True)
    handle.unwatch()
    handle.cancel()
    handle.cancel()
    outputs = list(iter(lambda: handle.next(60), None))
    assert {s.finish_reason for s in outputs[-1].outputs} == {"abort"}


def test_a_handle_keeps_its_llm_alive() -> None:
    assert merged(list(LLM(max_num_seqs=1).submit(PROMPT, GREEDY)))


def test_iteration_raises_and_outputs_carry_the_error(llm: LLM) -> None:
    late = SamplingParams(max_tokens=2000, ignore_eos=True, timeout=1e-6)
    with pytest.raises(RequestTimeoutError):
        list(llm.submit(PROMPT, late))
    handle = llm.submit(PROMPT, late)
    outputs = list(iter(lambda: handle.next(60), None))
    assert isinstance(outputs[-1].error, RequestTimeoutError)


def test_chat_text_has_its_special_tokens_already(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    handle = llm.submit(llm.render_chat(messages), GREEDY, add_special_tokens=False)
    want = llm.chat(messages, GREEDY)[0]
    assert handle.prompt_token_ids == want.prompt_token_ids
    assert merged(list(handle)) == want.text


def test_embedding(llm: LLM) -> None:
    handle = llm.submit_embedding(PROMPT, pooling="last")
    (output,) = list(handle)
    assert isinstance(output, EmbeddingRequestOutput)
    assert output.embedding == llm.embed(PROMPT, pooling="last")[0].embedding
    llm.check_embedding([1, 2], dimensions=3)
    with pytest.raises(InvalidRequestError, match="dimensions"):
        llm.check_embedding([1, 2], dimensions=10**6)
    with pytest.raises(InvalidRequestError, match="poling"):
        llm.submit_embedding(PROMPT, poling="last")  # type: ignore[call-arg]


def test_health_and_histograms() -> None:
    with LLM(max_num_seqs=1) as llm:
        list(llm.submit(PROMPT, GREEDY))
        assert llm.health()[0] == "ready"
        assert llm.histograms()["time_to_first_token_seconds"]["counts"][-1] == 1
    assert llm.health()[0] == "dead"
    with pytest.raises(EngineDeadError):
        llm.submit(PROMPT)


# --- the old name of `sampling_params` --------------------------------------------------------------------------------


def test_params_is_an_alias_that_warns_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(octavo.deprecated, "_warned", set())
    messages = [{"role": "user", "content": "Hello"}]
    text, answer = llm.generate(PROMPT, GREEDY)[0].text, llm.chat(messages, GREEDY)[0].text
    old: dict[str, Any] = {"params": GREEDY}
    with pytest.warns(DeprecationWarning, match="params is now called sampling_params") as found:
        assert llm.generate(PROMPT, **old)[0].text == text
    assert found[0].filename == __file__

    async def main() -> tuple[str, str, str, str]:
        return (
            (await llm.agenerate(PROMPT, **old)).text,
            (await llm.achat(messages, **old)).text,
            merged([o async for o in llm.astream(PROMPT, **old)]),
            merged([o async for o in llm.astream_chat(messages, **old)]),
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert llm.chat(messages, **old)[0].text == answer
        assert merged(list(llm.stream(PROMPT, **old))) == text
        assert merged(list(llm.stream_chat(messages, **old))) == answer
        assert asyncio.run(main()) == (text, answer, text, answer)
        assert llm.generate(PROMPT, sampling_params=GREEDY)[0].text == text


@pytest.mark.parametrize("given", [(GREEDY,), ()])
def test_both_names_are_refused(llm: LLM, given: tuple[SamplingParams, ...]) -> None:
    more = {} if given else {"sampling_params": GREEDY}
    with pytest.raises(InvalidRequestError, match=r"sampling_params and params"):
        llm.generate(PROMPT, *given, params=GREEDY, **more)  # type: ignore[call-arg]
