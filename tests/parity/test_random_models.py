"""Every family against transformers: log-probabilities of the whole prompt, and 64 greedy steps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from compare import all_rows, assert_greedy, assert_same_logprobs, kl_rows, reference_logprobs
from octavo import LLM, SamplingParams
from random_models import CASES, Case, write_model

PROMPT_TOKENS = 75  # more than two KV blocks, and more than every window of CASES
STEPS = 64
ROUNDED = (
    "llama",
    "llama-odd-sizes",
    "mistral-window",
    "qwen2",
    "qwen3",
    "smollm3",
    "olmo2",
    "olmo3",
    "granite",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3",
    "glm4",
    "cohere2",
    "mixtral",
    "qwen2-moe",
    "qwen3-moe",
    "deepseek-v2",
    "deepseek-v3",
)


def prompt_of(case: Case, vocab: int) -> list[int]:
    draw = random.Random(case.name)
    return [draw.randrange(vocab) for _ in range(PROMPT_TOKENS)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_float32_matches_transformers(case: Case, tmp_path: Path) -> None:
    reference = write_model(case, tmp_path)
    vocab = reference.config.vocab_size
    prompt = prompt_of(case, vocab)
    params = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=-1, prompt_logprobs=-1)
    with LLM(tmp_path, dtype="float32", quantization=None, **case.limits) as llm:
        output = llm.generate(prompt, params)[0]
    tokens = output.outputs[0].token_ids
    assert len(tokens) == STEPS
    want = reference_logprobs(reference, [*prompt, *tokens])[:-1]
    assert want.std() > 1, "the reference's logits are almost flat: this would prove little"
    got = all_rows(output, vocab)
    assert_same_logprobs(want, got, tolerance=1e-4)
    assert_greedy(want[PROMPT_TOKENS - 1 :], tokens)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in ROUNDED], ids=lambda c: c.name)
@pytest.mark.parametrize(
    ("options", "limit"),
    [
        pytest.param({"dtype": "bfloat16", "quantization": None}, 1e-3, id="bfloat16"),
        pytest.param({"dtype": "float32", "quantization": "int8"}, 1.5e-2, id="int8"),
        pytest.param({"dtype": "bfloat16", "quantization": "int8"}, 1.5e-2, id="int8-bfloat16"),
    ],
)
def test_rounded_weights_stay_close(case: Case, options: dict[str, str | None], limit: float, tmp_path: Path) -> None:
    """The distribution moves little. Random weights with spread logits are a harder case than trained ones."""
    reference = write_model(case, tmp_path)
    vocab = reference.config.vocab_size
    prompt = prompt_of(case, vocab)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    with LLM(tmp_path, **options, **case.limits) as llm:
        output = llm.generate(prompt, params)[0]
        assert llm.info()["model"]["quantization"] == (options["quantization"] or "none")
    want = reference_logprobs(reference, prompt)
    rows = kl_rows(want, all_rows(output, vocab))
    # A rounded row that goes to another expert is far off, and routers with random weights are often near to a tie:
    # there the middle row speaks for rounding. Errors grow with the layers.
    experts = any("experts" in name for name, _ in reference.named_parameters())
    kl = float(rows.median() if experts else rows.mean())
    limit *= max(1.0, reference.config.num_hidden_layers / 2)
    assert 0 <= kl < limit, f"KL is {kl:.5f} nats, below {limit} is expected"


@pytest.mark.parametrize("name", ["qwen2-moe", "deepseek-v3", "gemma3", "cohere2"])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_same_bits_alone_and_among_others(name: str, quantization: str | None, tmp_path: Path) -> None:
    """Experts, latents and norms of new kinds: a request's numbers do not depend on its batch or on prefill chunks."""
    case = next(c for c in CASES if c.name == name)
    vocab = write_model(case, tmp_path).config.vocab_size
    draw = random.Random(name)
    prompts = [[draw.randrange(vocab) for _ in range(n)] for n in (75, 3, 40, 33)]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=5)
    with LLM(tmp_path, quantization=quantization, enable_prefix_caching=False, threads=1) as llm:
        alone = [llm.generate(p, params)[0].outputs[0] for p in prompts]
    with LLM(tmp_path, quantization=quantization, max_num_batched_tokens=16, max_num_seqs=4, threads=2) as llm:
        together = [o.outputs[0] for o in llm.generate(prompts, params)]
    assert together == alone


def test_text_prompt_uses_the_models_tokenizer(tmp_path: Path) -> None:
    write_model(CASES[0], tmp_path)
    with LLM(tmp_path) as llm:
        assert llm.tokenize("t5 t17 t3") == [5, 17, 3]
        output = llm.generate("t5 t17 t3", SamplingParams(max_tokens=2, ignore_eos=True))[0]
    assert output.prompt_token_ids == [5, 17, 3]
    assert output.prompt == "t5 t17 t3"


def test_sharded_checkpoint(tmp_path: Path) -> None:
    """A checkpoint in several files gives the same bits as in one."""
    one, many = tmp_path / "one", tmp_path / "many"
    model = write_model(CASES[0], one)
    model.save_pretrained(many, max_shard_size="100KB")
    (many / "tokenizer.json").write_bytes((one / "tokenizer.json").read_bytes())
    assert len(list(many.glob("*.safetensors"))) > 1
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=3)
    outputs = []
    for folder in (one, many):
        with LLM(folder, dtype="float32", quantization=None) as llm:
            outputs.append(llm.generate([5, 6, 7, 8], params)[0].outputs[0])
    assert outputs[0] == outputs[1]
