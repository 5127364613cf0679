"""LoRA adapters against the peft library: every family, every feature of the format, in float32 and int8."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import peft.utils.transformers_weight_conversion as conversion
import pytest
import torch
from compare import all_rows, assert_greedy, assert_same_logprobs, kl_rows, reference_logprobs
from octavo import LLM, SamplingParams
from peft import PeftModel
from random_adapters import write_adapter
from random_models import CASES, Case, write_model
from test_random_models import ROUNDED
from transformers import PreTrainedModel

BY_NAME = {case.name: case for case in CASES}
PROMPT_TOKENS = 45
STEPS = 24
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DENSE = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
LATENT = ["q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"]
# Experts, routers and kv_b_proj are the business of `octavo merge`.
SHARED = [f"shared_experts.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")]
TARGETS = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "glm4": [*ATTENTION, "gate_up_proj", "down_proj"],
    "mixtral": ATTENTION,
    "qwen2-moe": [*ATTENTION, "shared_expert.down_proj", "shared_expert.up_proj", "shared_expert_gate"],
    "qwen3-moe": ATTENTION,
    "deepseek-v2": [*LATENT, *SHARED, r"layers.0.mlp.up_proj"],
    "deepseek-v3": [*LATENT, *SHARED, r"layers.0.mlp.up_proj"],
}


def prompt_of(name: str, vocab: int) -> list[int]:
    draw = random.Random(name)
    return [draw.randrange(vocab) for _ in range(PROMPT_TOKENS)]


def params_of(adapter: str | None) -> SamplingParams:
    return SamplingParams(
        temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=-1, prompt_logprobs=-1, lora=adapter
    )


@pytest.fixture(autouse=True)
def _names_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """peft turns names such as down_proj into stacked experts, for all layers. These adapters mean dense layers."""
    monkeypatch.setattr(conversion, "get_checkpoint_conversion_mapping", lambda _: None)


def assert_matches(llm: LLM, live: PeftModel, name: str) -> None:
    """The distributions of the prompt and of greedy steps are those of `live`."""
    vocab = live.get_base_model().config.vocab_size
    prompt = prompt_of(name, vocab)
    output = llm.generate(prompt, params_of(name))[0]
    tokens = output.outputs[0].token_ids
    want = reference_logprobs(live, [*prompt, *tokens])[:-1]
    assert_same_logprobs(want, all_rows(output, vocab), tolerance=2e-4)
    assert_greedy(want[PROMPT_TOKENS - 1 :], tokens)


def assert_moved(model: PreTrainedModel, live: PeftModel) -> None:
    prompt = prompt_of("moved", model.config.vocab_size)
    moved = (reference_logprobs(live, prompt) - reference_logprobs(model, prompt)).abs().max()
    assert moved > 0.3, "the adapter changes little: this would prove little"


@pytest.mark.parametrize("name", ROUNDED)
def test_every_family(name: str, tmp_path: Path) -> None:
    """Plain LoRA of rank 5 and DoRA of rank 8 on every projection, in one engine."""
    case = BY_NAME[name]
    model = write_model(case, tmp_path / "model")
    targets = TARGETS.get(name, DENSE)
    plain = write_adapter(model, tmp_path / "plain", 1, r=5, lora_alpha=9, target_modules=targets)
    dora = write_adapter(model, tmp_path / "dora", 2, r=8, lora_alpha=8, use_dora=True, target_modules=targets)
    assert_moved(model, plain)
    with LLM(tmp_path / "model", dtype="float32", quantization=None, max_lora_memory=1 << 26, **case.limits) as llm:
        for adapter, live in (("plain", plain), ("dora", dora)):
            llm.load_adapter(adapter, tmp_path / adapter)
            assert_matches(llm, live, adapter)
        # Rows of both and of none in one step: the same bits as alone.
        names = ["plain", None, "dora", "plain"]
        prompts = [prompt_of(f"{name}-{i}", model.config.vocab_size)[: 40 - 9 * i] for i in range(len(names))]
        params = [SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=3, lora=n) for n in names]
        together = [o.outputs for o in llm.generate(prompts, params)]
        assert together == [llm.generate(p, q)[0].outputs for p, q in zip(prompts, params, strict=True)]


FEATURES: dict[str, dict[str, Any]] = {
    **{f"rank-{r}": {"r": r, "target_modules": DENSE} for r in (1, 3, 8, 17, 64, 65)},
    "rslora": {"r": 12, "use_rslora": True, "target_modules": DENSE},
    "alpha-0.5": {"r": 4, "lora_alpha": 0.5, "target_modules": ["v_proj", "up_proj"]},
    "all-linear": {"r": 4, "target_modules": "all-linear"},
    "regex": {"r": 4, "target_modules": r".*\.1\..*(q_proj|down_proj)"},
    "one-projection": {"r": 6, "target_modules": ["k_proj"]},
    "gate-without-up": {"r": 6, "target_modules": ["gate_proj"]},
    "layers": {"r": 6, "target_modules": ["o_proj", "down_proj"], "layers_to_transform": [1]},
    "lora-bias": {"r": 6, "target_modules": DENSE, "lora_bias": True},
    "dora-rslora": {"r": 3, "target_modules": DENSE, "use_dora": True, "use_rslora": True},
    "patterns": {
        "r": 5,
        "target_modules": DENSE,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 33, "model.layers.0.self_attn.o_proj": 1},
        "alpha_pattern": {r".*\.0\.self_attn\.v_proj": 21, "down_proj": 3},
    },
    "patterns-rslora-dora": {
        "r": 5,
        "target_modules": DENSE,
        "use_rslora": True,
        "use_dora": True,
        "rank_pattern": {"(q|k)_proj": 2},
        "alpha_pattern": {"(q|k)_proj": 11},
    },
}


@pytest.mark.parametrize("name", ["llama-all-biases", "llama-odd-sizes"])
def test_features(name: str, tmp_path: Path) -> None:
    """Every feature of the format, in one engine that holds all adapters, and once more in one batch."""
    case = BY_NAME[name]
    model = write_model(case, tmp_path / "model")
    live = {}
    for seed, (feature, options) in enumerate(FEATURES.items()):
        if feature == "lora-bias" and "biases" not in name:
            options = {**options, "lora_bias": True}
        live[feature] = write_adapter(model, tmp_path / feature, seed, **options)
        assert_moved(model, live[feature])
    options = {"dtype": "float32", "quantization": None, "max_lora_memory": 1 << 27, "max_loras": len(live)}
    with LLM(tmp_path / "model", **options) as llm:
        for feature in live:
            llm.load_adapter(feature, tmp_path / feature)
            assert_matches(llm, live[feature], feature)
        prompts = [prompt_of(feature, model.config.vocab_size) for feature in live]
        alone = [llm.generate(p, params_of(f))[0].outputs for p, f in zip(prompts, live, strict=True)]
        together = [o.outputs for o in llm.generate(prompts, [params_of(feature) for feature in live])]
        assert together == alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_of_other_types(dtype: torch.dtype, tmp_path: Path) -> None:
    """The stored values are used exactly; peft computes with them in float32."""
    model = write_model(BY_NAME["llama"], tmp_path / "model")
    live = write_adapter(model, tmp_path / "adapter", r=7, target_modules=DENSE)
    live.to(dtype).save_pretrained(tmp_path / "adapter")
    rounded = PeftModel.from_pretrained(model, tmp_path / "adapter", autocast_adapter_dtype=True).eval().float()
    with LLM(tmp_path / "model", dtype="float32", quantization=None, max_lora_memory=1 << 26) as llm:
        llm.load_adapter("adapter", tmp_path / "adapter")
        assert_matches(llm, rounded, "adapter")


@pytest.mark.parametrize("name", ["llama-wide", "qwen2", "gemma3", "phi3"])
def test_int8_weights_stay_close(name: str, tmp_path: Path) -> None:
    """int8 weights under an adapter move the distribution about as little as without one."""
    case: Case = BY_NAME[name]
    model = write_model(case, tmp_path / "model")
    targets = TARGETS.get(name, DENSE)
    lives = {
        "plain": write_adapter(model, tmp_path / "plain", r=16, lora_alpha=16, target_modules=targets),
        "dora": write_adapter(model, tmp_path / "dora", r=16, lora_alpha=16, target_modules=targets, use_dora=True),
    }
    vocab = model.config.vocab_size
    limit = 1.5e-2 * max(1.0, model.config.num_hidden_layers / 2)
    with LLM(tmp_path / "model", quantization="int8", max_lora_memory=1 << 26, **case.limits) as llm:
        for adapter, live in lives.items():
            llm.load_adapter(adapter, tmp_path / adapter)
            prompt = prompt_of(adapter, vocab)
            output = llm.generate(
                prompt, SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1, lora=adapter)
            )[0]
            kl = float(kl_rows(reference_logprobs(live, prompt), all_rows(output, vocab)).mean())
            assert 0 <= kl < 1.5 * limit, f"{adapter}: KL is {kl:.5f} nats, below {1.5 * limit} is expected"
