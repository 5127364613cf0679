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


def test_an_audit_finds_that_bounds_hold() -> None:
    with LLM(attention=DynamicAttention(error_bound=0.02, min_context=128, audit=1)) as llm:
        metrics = llm.generate(long_prompt(llm), GREEDY)[0].metrics
        assert metrics is not None
        report = metrics.attention
        assert report is not None
        # All that chose are compared; those behind a closed gate read everything anyway.
        chose = report.calls * (1 - report.dense_head_fraction)
        assert 0 < round(chose) <= report.audited_calls <= report.calls
        assert report.violations == 0
        assert report.max_audited_mass is not None
        assert report.max_audited_error is not None
        assert 0 < report.max_audited_mass <= report.max_omitted_mass + 1e-4
        assert 0 < report.max_audited_error <= report.max_output_error
        stats = llm.stats()["attention"]
        assert stats["audited_calls"] > report.audited_calls
        assert stats["violations"] == 0


def test_an_audit_changes_nothing() -> None:
    found = []
    for audit in (0, 3):
        with LLM(attention=DynamicAttention(error_bound=0.02, min_context=128, audit=audit)) as llm:
            found.append(llm.generate(long_prompt(llm), GREEDY)[0].outputs[0].token_ids)
    assert found[0] == found[1]


def test_a_request_may_be_stricter_and_not_looser() -> None:
    strict = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, attention_error_bound=1e-4)
    with LLM(attention=CHOICE) as llm:
        prompt = long_prompt(llm)
        first, again = (llm.generate(prompt, params)[0] for params in (GREEDY, strict))
        assert first.metrics is not None
        assert again.metrics is not None
        assert first.metrics.attention is not None
        assert again.metrics.attention is not None
        assert again.metrics.attention.max_omitted_mass <= 1e-4 < first.metrics.attention.max_omitted_mass
        # What was computed under another bound is not shared.
        assert again.metrics.cached_prompt_tokens == 0
        hit = llm.generate(prompt, strict)[0]
        assert hit.metrics is not None
        assert hit.metrics.cached_prompt_tokens > 0
        assert hit.outputs[0].token_ids == again.outputs[0].token_ids
        with pytest.raises(InvalidRequestError, match=r"attention_error_bound is 0.5.*at most.*0.02"):
            llm.generate(prompt, SamplingParams(attention_error_bound=0.5))
    with LLM(attention=DynamicAttention(error_bound=1e-4, min_context=128)) as llm:
        assert llm.generate(prompt, GREEDY)[0].outputs[0].token_ids == again.outputs[0].token_ids
    with LLM() as llm:
        llm.generate("Hello", SamplingParams(max_tokens=2, attention_error_bound=1e-4))


def test_a_budget_is_kept_and_its_cost_is_told() -> None:
    found = []
    for most in (2, 16):
        choice = DynamicAttention(mode="budget", error_bound=1e-6, max_blocks=most, min_context=128, audit=1)
        with LLM(attention=choice) as llm:
            metrics = llm.generate(long_prompt(llm), GREEDY)[0].metrics
            assert metrics is not None
            report = metrics.attention
            assert report is not None
            assert report.mode == "budget"
            assert report.violations == 0
            assert report.max_omitted_mass > choice.error_bound
            found.append((report.kv_bytes_read_fraction, report.mean_omitted_mass))
            with pytest.raises(InvalidRequestError, match=r"attention_error_bound.*keeps to no bound"):
                llm.generate("Hello", SamplingParams(attention_error_bound=1e-4))
    assert found[0][0] < found[1][0]
    assert found[0][1] > found[1][1]


def test_an_estimate_reads_less_and_its_bound_is_told() -> None:
    found = {}
    for mode in ("certified", "estimated"):
        with LLM(attention=DynamicAttention(mode=mode, error_bound=0.02, min_context=128, audit=1)) as llm:
            metrics = llm.generate(long_prompt(llm), GREEDY)[0].metrics
            assert metrics is not None
            report = found[mode] = metrics.attention
            assert report is not None
            assert report.mode == mode
            assert report.violations == 0
            assert report.audited_calls > 0
            assert 0 < report.mean_estimated_mass < report.mean_omitted_mass
            assert 0 < report.max_estimated_mass <= report.max_omitted_mass
            with pytest.raises(InvalidRequestError, match=r"attention_error_bound is 0.5.*at most.*0.02"):
                llm.generate("Hello", SamplingParams(attention_error_bound=0.5))
    certified, estimated = found["certified"], found["estimated"]
    assert certified is not None
    assert estimated is not None
    assert estimated.kv_bytes_read_fraction < certified.kv_bytes_read_fraction
    assert certified.max_omitted_mass <= 0.02
    # In truth it is about what was asked for; what is proven is more.
    assert estimated.max_audited_mass is not None
    assert estimated.max_audited_mass < 0.03
    assert estimated.max_omitted_mass > 0.02


def test_the_memory_plan_names_what_queries_hold() -> None:
    with LLM(attention=CHOICE) as llm:
        parts = {part["name"]: part["bytes"] for part in llm.info()["memory"]}
        # Two float32 for each block of 32 tokens and each of 32 rows of a task.
        assert parts["attention_masses"] >= 2 * 4 * (2048 // 32) * 32


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
     {"error_bound": "x"}, {"min_context": -1}, {"sink_blocks": 1.5}, {"audit": -1}, {"audit": True},
     {"max_blocks": 4}, {"max_blocks": 0, "mode": "budget"}, {"max_blocks": None, "mode": "budget"}],
)  # fmt: skip
def test_fields_are_checked_at_construction(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(fields))):
        DynamicAttention(**fields)
