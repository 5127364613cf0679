"""attention="dynamic": bounds that hold, reports that say so, and the same tokens whatever runs beside."""

from __future__ import annotations

from typing import Any

import pytest
from octavo import LLM, DynamicAttention, SamplingParams
from octavo.errors import InvalidRequestError

GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
CHOICE = DynamicAttention(error_bound=0.02, min_context=128)


def long_prompt(llm: LLM) -> str:
    """Some 1,500 tokens of prose."""
    text = llm.generate("Once upon a time", SamplingParams(max_tokens=400, temperature=0.8, seed=3))[0].text
    return f"Once upon a time{text} " * 4


def test_a_report_comes_with_every_output() -> None:
    with LLM(attention=CHOICE) as llm:
        output = llm.generate(long_prompt(llm), GREEDY)[0]
        assert output.metrics is not None
        report = output.metrics.attention
        assert report is not None
        assert report.mode == "certified"
        assert 0 < report.mean_omitted_mass < report.max_omitted_mass <= CHOICE.error_bound
        assert 0.4 < report.kv_bytes_read_fraction < 1
        assert 0 < report.dense_head_fraction < 1
        assert 0 < report.max_output_error < 100
        stats = llm.stats()["attention"]
        assert stats["calls"] > report.calls
        assert 0 < stats["bytes_read"] < stats["bytes_dense"]
        short = llm.generate("Hello", GREEDY)[0].metrics
        assert short is not None
        assert short.attention is not None
        assert short.attention.dense_head_fraction == 1
        assert short.attention.max_omitted_mass == 0


def test_dense_attention_reports_nothing() -> None:
    with LLM() as llm:
        metrics = llm.generate("Hello", GREEDY)[0].metrics
        assert metrics is not None
        assert metrics.attention is None


def test_a_tighter_bound_reads_more() -> None:
    found = []
    for bound in (0.2, 0.01, 0.0001):
        with LLM(attention=DynamicAttention(error_bound=bound, min_context=128)) as llm:
            metrics = llm.generate(long_prompt(llm), GREEDY)[0].metrics
            assert metrics is not None
            assert metrics.attention is not None
            assert metrics.attention.max_omitted_mass <= bound
            found.append(metrics.attention.kv_bytes_read_fraction)
    assert found[0] < found[1] < found[2] <= 1


def test_answers_are_those_of_dense_attention() -> None:
    """At the default bound, on a prompt whose answer is far back."""
    options: dict[str, Any] = {"quantization": None, "kv_cache_dtype": "int8"}
    with LLM(**options) as dense, LLM(attention=DynamicAttention(min_context=128), **options) as dynamic:
        prompt = long_prompt(dense)
        want = dense.generate(prompt, GREEDY)[0].outputs[0].token_ids
        assert dynamic.generate(prompt, GREEDY)[0].outputs[0].token_ids == want


def test_same_tokens_cached_chunked_and_among_others() -> None:
    with LLM(attention=CHOICE) as llm:
        prompt = llm.tokenize(long_prompt(llm))
        prompts = [prompt, prompt[:700], prompt[5:900], prompt[:701]]
        alone = [llm.generate(p, GREEDY)[0].outputs[0].token_ids for p in prompts]
        cached = [o.outputs[0].token_ids for o in llm.generate(prompts, GREEDY)]
    with LLM(attention=CHOICE, max_num_batched_tokens=45, enable_prefix_caching=False) as llm:
        chunked = [o.outputs[0].token_ids for o in llm.generate(prompts, GREEDY)]
    assert alone == cached == chunked


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "sparse"}, "attention is 'sparse'.*'dense', 'dynamic'"),
        ({"attention": "dynamic", "kv_cache_dtype": "bfloat16"}, "kv_cache_dtype.*int8"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        LLM(**options)


@pytest.mark.parametrize(
    "fields",
    [{"mode": "magic"}, {"error_bound": 0}, {"error_bound": 1.0}, {"error_bound": float("nan")},
     {"error_bound": "x"}, {"min_context": -1}, {"sink_blocks": 1.5}],
)  # fmt: skip
def test_fields_are_checked_at_construction(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(fields))):
        DynamicAttention(**fields)
