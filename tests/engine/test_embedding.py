"""`LLM.embed`: the same bits whatever runs beside it, the prefix cache, limits, cancellation, errors."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.errors import ContextLengthError, EngineDeadError, InvalidRequestError, RequestTimeoutError

TEXT = "A girl found a small box, opened it and saw a key. "


def vectors(llm: LLM, prompts: Any, **options: Any) -> list[list[float]]:
    return [o.embedding for o in llm.embed(prompts, use_tqdm=False, **options)]


def test_shape_length_and_dimensions(llm: LLM) -> None:
    (output,) = llm.embed("Once upon a time")
    assert output.prompt == "Once upon a time"
    assert output.prompt_token_ids == llm.tokenize("Once upon a time")
    assert output.finished
    assert len(output.embedding) == llm.spec["hidden"] == len(output.outputs.embedding)
    assert math.isclose(math.hypot(*output.embedding), 1.0, abs_tol=1e-5)
    assert output.metrics is not None
    assert (output.metrics.generated_tokens, output.metrics.prompt_tokens) == (0, len(output.prompt_token_ids))
    (raw,) = vectors(llm, "Once upon a time", normalize=False)
    (short,) = vectors(llm, "Once upon a time", dimensions=8, normalize=False)
    assert short == raw[:8]
    (unit,) = vectors(llm, "Once upon a time", dimensions=8)
    assert math.isclose(math.hypot(*unit), 1.0, abs_tol=1e-5)
    assert unit[0] == pytest.approx(raw[0] / math.hypot(*raw[:8]), rel=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_same_bits_alone_chunked_and_among_others(pooling: str) -> None:
    draw = random.Random(pooling)
    prompts = [[draw.randrange(300) for _ in range(n)] for n in (90, 1, 31, 32, 33, 200, 7)]
    with LLM(enable_prefix_caching=False, threads=1) as llm:
        alone = [vectors(llm, p, pooling=pooling)[0] for p in prompts]
    # Small steps, few blocks: chunks, a batch with sequences that generate, and preemptions.
    with LLM(max_num_batched_tokens=24, max_num_seqs=4, kv_cache_memory="2MiB", max_model_len=256, threads=2) as llm:
        params = SamplingParams(max_tokens=40, ignore_eos=True)
        streams = [llm.submit(TEXT, params) for _ in range(3)]
        for _ in range(2):
            assert vectors(llm, prompts, pooling=pooling) == alone
        for stream in streams:
            stream.cancel()


def test_prefix_hits_do_not_change_the_mean() -> None:
    """The mean needs the hidden states of all tokens, which no cache holds; the last token's may start from a hit."""
    with LLM() as llm:
        prompt = llm.tokenize(TEXT * 8)
        assert len(prompt) > 70
        first = llm.embed(prompt, pooling="mean")[0]
        again = llm.embed(prompt, pooling="mean")[0]
        last = llm.embed(prompt, pooling="last")[0]
        with LLM(enable_prefix_caching=False) as other:
            cold = other.embed(prompt, pooling="last")[0]
            assert first.embedding == again.embedding == other.embed(prompt, pooling="mean")[0].embedding
        assert last.embedding == cold.embedding
        cached = [o.metrics.cached_prompt_tokens for o in (first, again, last)]
        assert cached[:2] == [0, 0]
        assert cached[2] >= 64, "what the mean computed serves later hits"
        answer = llm.generate(prompt, SamplingParams(max_tokens=4, temperature=0))[0]
        assert answer.metrics.cached_prompt_tokens >= 64
        assert llm.embed(prompt, pooling="last", cache_salt="own")[0].metrics.cached_prompt_tokens == 0


def test_the_prompt_may_fill_the_context() -> None:
    with LLM(max_model_len=64, kv_cache_memory="1MiB") as llm:
        assert len(llm.embed([5] * 64)[0].embedding) == llm.spec["hidden"]
        with pytest.raises(ContextLengthError, match="65 tokens and max_model_len is 64"):
            llm.embed([5] * 65)
        with pytest.raises(ContextLengthError):
            llm.generate([5] * 64)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"dimensions": 10**6}, "dimensions is 1000000"),
        ({"normalize": 1}, "normalize is 1"),
        ({"timeout": -1.0}, "timeout is -1"),
        ({"prompts": []}, None),
        ({"prompts": [[10**9]]}, "token id 1000000000"),
        ({"prompts": [[]]}, "the prompt is empty"),
        ({"prompts": 3}, "prompts is a int"),
    ],
)
def test_what_cannot_be_is_refused(llm: LLM, options: dict[str, Any], text: str | None) -> None:
    if text is None:
        assert llm.embed(**options) == []
        return
    with pytest.raises(InvalidRequestError) as caught:
        llm.embed(**{"prompts": "a", **options})
    assert text in str(caught.value)


def test_more_prompts_than_the_queue_takes_and_counters() -> None:
    with LLM(max_num_seqs=2, max_queue=2) as llm:
        outputs = llm.embed([f"Number {i}" for i in range(40)], use_tqdm=False)
        assert [o.prompt for o in outputs] == [f"Number {i}" for i in range(40)]
        assert len({tuple(o.embedding) for o in outputs}) == 40
        stats = llm.stats()
        assert (stats["requests"]["finished"], stats["generated_tokens"]) == (40, 0)
        assert stats["blocks"]["live"] == 0


def test_deadline_cancellation_and_close() -> None:
    llm = LLM(max_num_batched_tokens=64, max_num_seqs=64)
    long = [7] * 2000
    with pytest.raises(RequestTimeoutError):
        llm.embed(long, timeout=1e-6)
    stream = llm._engine.embed(long, {})
    stream.cancel()
    while (delta := stream.next(20)) is not None and not delta.finished:
        pass
    assert delta is not None
    assert delta.outputs[0].finish_reason in ("abort", "stop")
    assert (delta.embedding is None) == (delta.outputs[0].finish_reason == "abort"), "half a prompt has no embedding"
    llm.close()
    with pytest.raises(EngineDeadError):
        llm.embed("a")


def test_asyncio(llm: LLM) -> None:
    async def run() -> None:
        outputs = await asyncio.gather(*(llm.aembed(f"Text {i}", pooling="last") for i in range(12)))
        assert [o.embedding for o in outputs] == vectors(llm, [f"Text {i}" for i in range(12)], pooling="last")
        with pytest.raises(InvalidRequestError):
            await llm.aembed("a", dimensions=0)

    asyncio.run(run())
