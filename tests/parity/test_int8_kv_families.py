"""Keys and values in int8, family by family, against transformers in float32."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from compare import all_rows, kl_rows, reference_logprobs
from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequestError
from random_models import CASES, Case, write_model

# Every second token lies in an earlier block than the one that asks.
PROMPT_TOKENS = 75
LATENT = ("deepseek-v2", "deepseek-v3")
FAMILIES = (
    "llama",
    "llama-odd-sizes",
    "mistral-window",
    "qwen3",
    "olmo2",
    "phi3",
    "gemma2",
    "gemma3",
    "cohere2",
    "mixtral",
)


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("name", FAMILIES)
def test_int8_keys_and_values_stay_close(name: str, tmp_path: Path) -> None:
    """Random weights with spread logits are a harder case than trained ones."""
    reference = write_model(case_of(name), tmp_path)
    vocab = reference.config.vocab_size
    draw = random.Random(name)
    prompt = [draw.randrange(vocab) for _ in range(PROMPT_TOKENS)]
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    options = {"dtype": "float32", "quantization": None, **case_of(name).limits}
    with LLM(tmp_path, kv_cache_dtype="int8", **options) as llm:
        output = llm.generate(prompt, params)[0]
    rows = kl_rows(reference_logprobs(reference, prompt), all_rows(output, vocab))
    # The first block is read as floats by its own queries, then the codes begin to count.
    assert rows[:31].max() < 1e-6
    assert 1e-9 < float(rows[32:].mean()) < 5e-3, f"mean KL {float(rows[32:].mean()):.2e}"


@pytest.mark.parametrize("name", LATENT)
def test_latent_attention_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Its cache is one compressed row a token already."""
    write_model(case_of(name), tmp_path)
    with pytest.raises(InvalidRequestError, match=r"kv_cache_dtype int8 .* latent attention .*auto"):
        LLM(tmp_path, kv_cache_dtype="int8")
