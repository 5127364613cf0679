"""Every family on the torch executor: log-probabilities against transformers, tokens against the CPU executor."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from backends import torch_llm
from compare import all_rows, assert_greedy, assert_same_logprobs, reference_logprobs
from octavo import LLM, SamplingParams
from octavo.gpu import load
from random_models import CASES, Case, write_model

PROMPT_TOKENS = 75  # more than two KV blocks, and more than every window of CASES
STEPS = 12


def limits_of(case: Case) -> dict[str, int]:
    """Dynamic rope takes the longest context served, transformers the length of the sequence: here the two are one."""
    tight = case.limits.get("max_model_len", 0) < 200
    return {"max_model_len": PROMPT_TOKENS + STEPS} if case.limits and tight else dict(case.limits)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_float32_matches_transformers_and_the_cpu(case: Case, backend: load.Backend, tmp_path: Path) -> None:
    reference = write_model(case, tmp_path)
    vocab = reference.config.vocab_size
    draw = random.Random(case.name)
    prompt = [draw.randrange(vocab) for _ in range(PROMPT_TOKENS)]
    limits = limits_of(case)
    params = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=-1, prompt_logprobs=-1)
    with torch_llm(tmp_path, backend, **limits) as llm:
        output = llm.generate(prompt, params)[0]
        # Without log-probabilities the tokens are drawn on the device.
        plain = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True)
        again = llm.generate(prompt, plain)[0].outputs[0].token_ids
    tokens = output.outputs[0].token_ids
    want = reference_logprobs(reference, [*prompt, *tokens])[:-1]
    assert want.std() > 1, "the reference's logits are almost flat: this would prove little"
    assert_same_logprobs(want, all_rows(output, vocab), tolerance=2e-4)
    assert_greedy(want[PROMPT_TOKENS - 1 :], tokens)
    assert again == tokens
    with LLM(tmp_path, device="cpu", dtype="float32", quantization=None, **limits) as llm:
        assert llm.generate(prompt, plain)[0].outputs[0].token_ids == tokens
