"""Every sampling parameter does what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
from octavo import LLM, RequestOutput, SamplingParams

PROMPT = "Once upon a time, there was a little girl"


def run(llm: LLM, prompt: str | list[int] = PROMPT, **params: Any) -> RequestOutput:
    params.setdefault("max_tokens", 24)
    params.setdefault("temperature", 0)
    return llm.generate(prompt, SamplingParams(**params))[0]


@pytest.fixture(scope="module")
def greedy(llm: LLM) -> RequestOutput:
    """64 greedy tokens that no end-of-sequence cuts short."""
    return run(llm, max_tokens=64, ignore_eos=True)


def test_max_tokens(llm: LLM) -> None:
    sample = run(llm, max_tokens=5, ignore_eos=True).outputs[0]
    assert len(sample.token_ids) == 5
    assert sample.finish_reason == "length"
    assert sample.stop_reason is None


def test_max_tokens_none_fills_the_context() -> None:
    with LLM(max_model_len=96) as short:
        output = short.generate(PROMPT, SamplingParams(max_tokens=None, ignore_eos=True, temperature=0))[0]
    assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == 96
    assert output.outputs[0].finish_reason == "length"


def test_text_is_the_tokens_text(llm: LLM, greedy: RequestOutput) -> None:
    assert greedy.text == greedy.outputs[0].text
    whole = llm.detokenize([*greedy.prompt_token_ids, *greedy.outputs[0].token_ids])
    assert whole == llm.detokenize(greedy.prompt_token_ids) + greedy.text


def test_top_k_one_is_greedy(llm: LLM, greedy: RequestOutput) -> None:
    drawn = run(llm, max_tokens=64, ignore_eos=True, temperature=1.5, top_k=1)
    assert drawn.outputs[0].token_ids == greedy.outputs[0].token_ids


@pytest.mark.parametrize("params", [{"top_p": 1e-6}, {"min_p": 1.0}])
def test_narrowest_choice_is_greedy(llm: LLM, greedy: RequestOutput, params: dict[str, float]) -> None:
    drawn = run(llm, max_tokens=64, ignore_eos=True, temperature=1.5, **params)
    assert drawn.outputs[0].token_ids == greedy.outputs[0].token_ids


def test_seed(llm: LLM) -> None:
    texts = [run(llm, temperature=1.0, seed=s, ignore_eos=True).text for s in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_n_samples(llm: LLM) -> None:
    output = run(llm, n=5, temperature=1.0, seed=11, ignore_eos=True)
    assert [o.index for o in output.outputs] == [0, 1, 2, 3, 4]
    assert len({tuple(o.token_ids) for o in output.outputs}) == 5
    assert all(len(o.token_ids) == 24 for o in output.outputs)
    assert output.metrics is not None
    assert output.metrics.generated_tokens == 5 * 24
    again = run(llm, n=5, temperature=1.0, seed=11, ignore_eos=True)
    assert again.outputs == output.outputs


def test_n_greedy_samples_are_equal(llm: LLM) -> None:
    samples = run(llm, n=3).outputs
    assert samples[0].token_ids == samples[1].token_ids == samples[2].token_ids


def test_stop_string(llm: LLM, greedy: RequestOutput) -> None:
    stop = greedy.text[20:24]
    sample = run(llm, max_tokens=64, ignore_eos=True, stop=[stop, "never seen here"]).outputs[0]
    assert sample.text == greedy.text[: greedy.text.index(stop)]
    assert sample.finish_reason == "stop"
    assert sample.stop_reason == stop


def test_stop_string_kept(llm: LLM, greedy: RequestOutput) -> None:
    stop = greedy.text[20:24]
    sample = run(llm, max_tokens=64, ignore_eos=True, stop=stop, include_stop_str_in_output=True).outputs[0]
    assert sample.text == greedy.text[: greedy.text.index(stop) + len(stop)]


def test_stop_token(llm: LLM, greedy: RequestOutput) -> None:
    tokens = greedy.outputs[0].token_ids
    stop = tokens[9]
    sample = run(llm, max_tokens=64, ignore_eos=True, stop_token_ids=[stop]).outputs[0]
    end = tokens.index(stop) + 1
    assert sample.token_ids == tokens[:end]
    assert sample.finish_reason == "stop"
    assert sample.stop_reason == stop
    assert greedy.text.startswith(sample.text)


def test_min_tokens_delays_stops(llm: LLM, greedy: RequestOutput) -> None:
    stop = greedy.text[4:6]
    early = run(llm, max_tokens=64, ignore_eos=True, stop=stop).outputs[0]
    late = run(llm, max_tokens=64, ignore_eos=True, stop=stop, min_tokens=len(early.token_ids) + 3).outputs[0]
    assert len(early.token_ids) < len(early.token_ids) + 3 <= len(late.token_ids)


def test_min_tokens_forbids_eos(llm: LLM) -> None:
    """A strong wish for end-of-sequence is heard only from `min_tokens` on."""
    eos = llm.info()["defaults"]["eos"]
    bias = dict.fromkeys(eos, 100.0)
    at_once = run(llm, logit_bias=bias).outputs[0]
    assert len(at_once.token_ids) == 1
    assert at_once.finish_reason == "stop"
    assert at_once.stop_reason is None
    delayed = run(llm, logit_bias=bias, min_tokens=7).outputs[0]
    assert len(delayed.token_ids) == 8
    assert not set(delayed.token_ids[:7]) & set(eos)
    ignored = run(llm, logit_bias=bias, ignore_eos=True).outputs[0]
    assert len(ignored.token_ids) == 24


def test_special_tokens_in_text(llm: LLM) -> None:
    eos = llm.info()["defaults"]["eos"][0]
    bias = {eos: 100.0}
    name = llm.detokenize([eos], skip_special_tokens=False)
    assert name
    assert name not in run(llm, logit_bias=bias, ignore_eos=True, max_tokens=3).text
    assert run(llm, logit_bias=bias, ignore_eos=True, max_tokens=3, skip_special_tokens=False).text == name * 3


def test_logit_bias(llm: LLM, greedy: RequestOutput) -> None:
    first = greedy.outputs[0].token_ids[0]
    assert set(run(llm, logit_bias={77: 100.0}, ignore_eos=True).outputs[0].token_ids) == {77}
    banned = run(llm, logit_bias={first: -100.0}, ignore_eos=True).outputs[0]
    assert banned.token_ids[0] != first


def test_bad_words(llm: LLM, greedy: RequestOutput) -> None:
    words = [w.strip(".,") for w in greedy.text.split()]
    bad = max(words, key=lambda w: (words.count(w), len(w)))
    output = run(llm, max_tokens=64, ignore_eos=True, bad_words=[bad])
    assert bad not in [w.strip(".,") for w in output.text.split()]
    assert output.text != greedy.text


def test_penalties_reduce_repetition(llm: LLM) -> None:
    prompt = "the the the the the the the the"

    def distinct(**params: float) -> int:
        return len(set(run(llm, prompt, max_tokens=64, ignore_eos=True, **params).outputs[0].token_ids))

    plain = distinct()
    assert distinct(frequency_penalty=2.0) > plain
    assert distinct(presence_penalty=2.0) > plain
    assert distinct(repetition_penalty=1.8) > plain


def test_logprobs(llm: LLM, greedy: RequestOutput) -> None:
    sample = run(llm, max_tokens=12, ignore_eos=True, logprobs=4).outputs[0]
    assert sample.token_ids == greedy.outputs[0].token_ids[:12]
    assert sample.logprobs is not None
    assert len(sample.logprobs) == 12
    total = 0.0
    for token, row in zip(sample.token_ids, sample.logprobs, strict=True):
        assert next(iter(row)) == token, "the chosen token comes first"
        assert [c.rank for c in row.values()] == [1, 2, 3, 4]
        values = [c.logprob for c in row.values()]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5
        assert row[token].decoded_token == llm.detokenize([token], skip_special_tokens=False)
        total += row[token].logprob
    assert sample.cumulative_logprob == pytest.approx(total)


def test_logprobs_zero_reports_the_chosen(llm: LLM) -> None:
    sample = run(llm, temperature=1.0, seed=3, logprobs=0, ignore_eos=True).outputs[0]
    assert sample.logprobs is not None
    assert [list(row) for row in sample.logprobs] == [[t] for t in sample.token_ids]


def test_logprobs_are_of_the_raw_distribution(llm: LLM) -> None:
    """Temperature and penalties choose; they do not change what is reported (as in vLLM)."""
    plain = run(llm, max_tokens=1, logprobs=-1).outputs[0].logprobs
    shaped = run(llm, max_tokens=1, logprobs=-1, temperature=0.3, repetition_penalty=1.5, top_k=1).outputs[0].logprobs
    assert plain is not None
    assert shaped is not None
    assert {i: c.logprob for i, c in plain[0].items()} == {i: c.logprob for i, c in shaped[0].items()}
    assert sum(math.exp(c.logprob) for c in plain[0].values()) == pytest.approx(1.0, abs=1e-4)


def test_prompt_logprobs(llm: LLM) -> None:
    output = run(llm, max_tokens=1, prompt_logprobs=2)
    rows = output.prompt_logprobs
    assert rows is not None
    assert len(rows) == len(output.prompt_token_ids)
    assert rows[0] is None
    for token, row in zip(output.prompt_token_ids[1:], rows[1:], strict=True):
        assert row is not None
        assert next(iter(row)) == token
        assert {c.rank for c in row.values()} >= {1, 2}


def test_prompt_logprobs_agree_with_generated_ones(llm: LLM) -> None:
    """What was generated, given as a prompt, has the log-probabilities it was generated with, to the last bit."""
    output = run(llm, max_tokens=20, ignore_eos=True, logprobs=0)
    prompt = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    again = run(llm, prompt, max_tokens=1, prompt_logprobs=0)
    assert again.prompt_logprobs is not None
    assert output.outputs[0].logprobs is not None
    tail = again.prompt_logprobs[len(output.prompt_token_ids) :]
    assert tail == output.outputs[0].logprobs


def test_temperature_flattens(llm: LLM) -> None:
    """Hot draws differ more than cool ones."""

    def distinct(temperature: float) -> int:
        output = run(llm, "They saw a", n=48, temperature=temperature, top_p=1.0, max_tokens=1, seed=5)
        return len({s.token_ids[0] for s in output.outputs})

    assert distinct(0.05) < distinct(1.0) < distinct(8.0)


def test_draws_follow_the_distribution(llm: LLM) -> None:
    """512 draws of one token against its reported probabilities: chi-squared over the likely tokens."""
    count = 512
    prompt = "They saw a"
    row = run(llm, prompt, max_tokens=1, logprobs=-1).outputs[0].logprobs
    assert row is not None
    seen: dict[int, int] = {}
    for seed in range(count // 64):
        for s in run(llm, prompt, n=64, temperature=1.0, top_p=1.0, max_tokens=1, seed=seed).outputs:
            seen[s.token_ids[0]] = seen.get(s.token_ids[0], 0) + 1
    likely = {i: count * math.exp(c.logprob) for i, c in row[0].items() if count * math.exp(c.logprob) >= 5}
    assert len(likely) >= 4, "too sharp a distribution: the test would show little"
    rest = count - sum(likely.values())
    terms = [(seen.get(i, 0) - e) ** 2 / e for i, e in likely.items()]
    if rest >= 5:
        other = count - sum(seen.get(i, 0) for i in likely)
        terms.append((other - rest) ** 2 / rest)
    freedom = max(len(terms) - 1, 1)
    # Five standard deviations above the mean of the chi-squared distribution; the draws are fixed by the seeds.
    limit = freedom + 5 * math.sqrt(2 * freedom)
    assert sum(terms) < limit, f"chi-squared {sum(terms):.1f} over {freedom} degrees of freedom, {limit:.1f} allowed"
