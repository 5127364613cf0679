"""Streams say the same as `generate`, piece by piece, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
from octavo import LLM, RequestOutput, SamplingParams

PROMPT = "One day, a boy went to the"
# As many samples as run at once: the engine needs far longer for them than a busy machine may hold up a test.
ENDLESS = SamplingParams(max_tokens=2000, ignore_eos=True, n=64)


def joined(deltas: list[RequestOutput]) -> list[tuple[str, list[int], Any, Any]]:
    """Text, tokens, reasons of each sample, put together again."""
    count = 1 + max(o.index for d in deltas for o in d.outputs)
    out = []
    for index in range(count):
        mine = [o for d in deltas for o in d.outputs if o.index == index]
        out.append(
            (
                "".join(o.text for o in mine),
                [t for o in mine for t in o.token_ids],
                mine[-1].finish_reason,
                mine[-1].stop_reason,
            )
        )
    return out


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"temperature": 0}, id="greedy"),
        pytest.param({"temperature": 1.0, "seed": 4, "n": 3}, id="samples"),
        pytest.param({"temperature": 0, "stop": [" the", "."]}, id="stop"),
        pytest.param({"temperature": 0, "stop": "he ", "include_stop_str_in_output": True}, id="stop-kept"),
        pytest.param({"temperature": 1.5, "seed": 2, "skip_special_tokens": False}, id="hot"),
    ],
)
def test_stream_equals_generate(options: dict[str, Any], llm: LLM) -> None:
    params = SamplingParams(max_tokens=80, ignore_eos=True, **options)
    whole = llm.generate(PROMPT, params)[0]
    deltas = list(llm.stream(PROMPT, params))
    want = [(o.text, o.token_ids, o.finish_reason, o.stop_reason) for o in whole.outputs]
    assert joined(deltas) == want
    assert [d.finished for d in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].metrics is not None
    assert all(d.metrics is None for d in deltas[:-1])
    assert all(d.prompt_token_ids == whole.prompt_token_ids for d in deltas)


def test_stream_comes_in_pieces(llm: LLM) -> None:
    # Tokens that come before a piece is read are merged, so that their number depends on the machine.
    stream = llm.stream(PROMPT, ENDLESS)
    assert [next(stream).finished for _ in range(6)] == [False] * 6
    stream.close()


def test_stop_string_never_shows_half(llm: LLM) -> None:
    """Text that may become a stop string is held back until it is decided."""
    text = llm.generate(PROMPT, SamplingParams(max_tokens=60, ignore_eos=True, temperature=0))[0].text
    stop = text[15:27]
    seen = ""
    for delta in llm.stream(PROMPT, SamplingParams(max_tokens=60, ignore_eos=True, temperature=0, stop=stop)):
        seen += delta.text
        assert text[: text.index(stop)].startswith(seen), f"{seen!r} shows a part of {stop!r}"
    assert seen == text[: text.index(stop)]


def test_characters_of_several_tokens(llm: LLM) -> None:
    """Bytes of a character come together, and bytes that make none are shown as such, in a stream as in `generate`."""
    prompt = [i for c in "東京🙂é" for i in llm.tokenize(c, add_special_tokens=False)]
    bytes_of = llm.tokenize("🙂", add_special_tokens=False)
    assert len(bytes_of) > 1, "this tokenizer has one token for it: take another character"
    bias = dict.fromkeys(bytes_of, 100.0)
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=1.0, seed=1, logit_bias=bias)
    pieces = list(llm.stream(prompt, params))
    whole = llm.generate(prompt, params)[0]
    assert "".join(p.text for p in pieces) == whole.text


def test_closing_a_stream_ends_the_request(llm: LLM) -> None:
    before = llm.stats()
    stream = llm.stream(PROMPT, ENDLESS)
    next(stream)
    stream.close()
    generated = llm.stats()["generated_tokens"]
    # The engine has taken the cancellation before it takes the next request.
    llm.generate(PROMPT, SamplingParams(max_tokens=2))
    assert llm.stats()["generated_tokens"] < generated + 5000
    assert llm.stats()["requests"]["finished"] == before["requests"]["finished"] + 2
    assert llm.stats()["finished"]["abort"] == before["finished"]["abort"] + ENDLESS.n


def test_leaving_a_loop_ends_the_request(llm: LLM) -> None:
    aborted = llm.stats()["finished"]["abort"]
    for delta in llm.stream(PROMPT, ENDLESS):
        assert not delta.finished
        break
    # The engine has taken the cancellation before it takes the next request.
    llm.generate(PROMPT, SamplingParams(max_tokens=2))
    assert llm.stats()["finished"]["abort"] == aborted + ENDLESS.n


def test_slow_reader_gets_everything(llm: LLM) -> None:
    """News that is not read is merged, not lost."""
    params = SamplingParams(max_tokens=120, ignore_eos=True, temperature=0, logprobs=1)
    stream = llm.stream(PROMPT, params)
    first = next(stream)
    whole = llm.generate(PROMPT, params)[0]
    rest = list(stream)
    assert joined([first, *rest])[0][:2] == (whole.text, whole.outputs[0].token_ids)
    assert len(rest) < 60, "unread pieces were not merged"
    rows = [row for d in (first, *rest) for o in d.outputs for row in o.logprobs or []]
    assert rows == whole.outputs[0].logprobs


def test_stream_chat(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    params = SamplingParams(max_tokens=20, temperature=0)
    whole = llm.chat(messages, params)[0]
    assert joined(list(llm.stream_chat(messages, params)))[0][:2] == (whole.text, whole.outputs[0].token_ids)


def test_chat_takes_several_conversations(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=0)
    talks = [[{"role": "user", "content": text}] for text in ("Hello", "What is your name?")]
    together = llm.chat(talks, params)
    assert [o.text for o in together] == [llm.chat(t, params)[0].text for t in talks]
    assert together[0].prompt == llm.render_chat(talks[0])
