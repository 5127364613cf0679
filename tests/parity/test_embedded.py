"""The embedded model against transformers: tokens, log-probabilities, greedy text, rounding."""

from __future__ import annotations

import pytest
from compare import all_rows, assert_greedy, assert_same_logprobs, mean_kl, reference_logprobs
from octavo import LLM, SamplingParams
from transformers import PreTrainedModel, PreTrainedTokenizerFast

TEXTS = [
    "Once upon a time, there was a little",
    "The capital of France is",
    "<|im_start|>user\nHello, who are you?<|im_end|>\n<|im_start|>assistant\n",
    "One day, a girl found a small box. She opened it and saw a key. " * 6,
]
ODD_TEXTS = [
    "",
    " ",
    "\n\n\t  mixed   spaces \n",
    "naïve café, 東京, Привет, 🙂🙃 👩‍👩‍👧, ‏עברית‏",
    "numbers 0123456789 3.14159 -1e-9 1,000,000",
    "code: for (int i = 0; i < n; ++i) { a[i] += b[i]; }",
    "a<|im_end|>b<|endoftext|>c <|im_start|>",
    "\x00\x01\x7f\u200b\ufeff",
    "e\u0301 versus \u00e9, \ufb01 ligature, ½",
]


@pytest.mark.parametrize("text", TEXTS + ODD_TEXTS, ids=lambda t: repr(t[:20]))
def test_tokens_match(text: str, llm: LLM, embedded_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = llm.tokenize(text)
    assert ids == embedded_tokenizer(text)["input_ids"]
    assert llm.detokenize(ids, skip_special_tokens=False) == embedded_tokenizer.decode(ids)
    assert llm.detokenize(ids) == embedded_tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS, ids=lambda t: repr(t[:20]))
def test_float32_matches_transformers(text: str, embedded_float32: LLM, embedded_reference: PreTrainedModel) -> None:
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, logprobs=-1, prompt_logprobs=-1)
    output = embedded_float32.generate(text, params)[0]
    prompt, tokens = output.prompt_token_ids, output.outputs[0].token_ids
    want = reference_logprobs(embedded_reference, [*prompt, *tokens])[:-1]
    assert_same_logprobs(want, all_rows(output, embedded_reference.config.vocab_size), tolerance=1e-4)
    assert_greedy(want[len(prompt) - 1 :], tokens)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        pytest.param({"dtype": "bfloat16", "quantization": None}, 1e-3, id="bfloat16"),
        pytest.param({}, 5e-3, id="as-shipped"),
    ],
)
def test_rounding_moves_little(
    options: dict[str, str | None], limit: float, embedded_reference: PreTrainedModel
) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    with LLM(**options) as llm:
        for text in TEXTS:
            output = llm.generate(text, params)[0]
            want = reference_logprobs(embedded_reference, output.prompt_token_ids)
            kl = mean_kl(want, all_rows(output, embedded_reference.config.vocab_size))
            assert 0 <= kl < limit, f"{text[:20]!r}: mean KL is {kl:.5f} nats, below {limit} is expected"
