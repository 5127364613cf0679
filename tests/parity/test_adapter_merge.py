"""`merge_adapter` against peft: a merged folder is the model with its adapter, in transformers and in octavo."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import all_rows, assert_same_logprobs, reference_logprobs
from octavo import LLM, SamplingParams
from octavo.merge import MergedFolder, merge_adapter
from peft import PeftModel
from random_adapters import write_adapter
from random_models import CASES, Case, write_model
from safetensors.torch import load_file, save_file
from test_random_models import ROUNDED
from transformers import AutoModelForCausalLM, PreTrainedModel

BY_NAME = {case.name: case for case in CASES}
TOKENS = 40


def prompt(vocab: int) -> list[int]:
    draw = random.Random(vocab)
    return [draw.randrange(vocab) for _ in range(TOKENS)]


def assert_is_merged(live: PeftModel, folder: Path, limits: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Both programs give the logits of `live`."""
    vocab = live.get_base_model().config.vocab_size
    tokens = prompt(vocab)
    want = reference_logprobs(live, tokens)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    assert_same_logprobs(want, reference_logprobs(again, tokens), tolerance)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    with LLM(folder, dtype="float32", quantization=None, **limits) as llm:
        got = all_rows(llm.generate(tokens, params)[0], vocab)
    assert_same_logprobs(want, got, tolerance)


def merged(case: Case, tmp_path: Path, **options: Any) -> tuple[PreTrainedModel, PeftModel, MergedFolder]:
    model = write_model(case, tmp_path / "model")
    live = write_adapter(model, tmp_path / "adapter", **options)
    moved = (
        (
            reference_logprobs(live, prompt(model.config.vocab_size))
            - reference_logprobs(model, prompt(model.config.vocab_size))
        )
        .abs()
        .max()
    )
    assert moved > 0.5, "the adapter changes nothing: this would prove nothing"
    made = merge_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "out")
    assert made.folder == tmp_path / "out"
    return model, live, made


@pytest.mark.parametrize("name", ROUNDED)
def test_every_family(name: str, tmp_path: Path) -> None:
    """All linear layers, and the experts and routers of the families that have them."""
    case = BY_NAME[name]
    experts = name in ("mixtral", "qwen2-moe", "qwen3-moe", "deepseek-v2", "deepseek-v3")
    options: dict[str, Any] = {"target_modules": "all-linear"}
    if experts:
        options = {
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "kv_b_proj", "q_b_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
        }
        if name.startswith("deepseek"):
            options["target_modules"] += ["kv_a_proj_with_mqa", "q_a_proj", "shared_experts.down_proj"]
    _, live, made = merged(case, tmp_path, r=5, lora_alpha=7, **options)
    assert made.merged
    assert not made.replaced
    assert_is_merged(live, made.folder, case.limits)


FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("llama", {"use_rslora": True, "r": 9}),
    "dora": ("llama", {"use_dora": True}),
    "dora-rslora": ("phi3", {"use_dora": True, "use_rslora": True, "target_modules": "all-linear"}),
    "lora-bias": ("llama-all-biases", {"lora_bias": True, "target_modules": ["q_proj", "down_proj"]}),
    "bias-all": ("llama-all-biases", {"bias": "all"}),
    "bias-lora-only": ("llama-all-biases", {"bias": "lora_only", "lora_bias": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 17},
            "alpha_pattern": {r".*\.0\.self_attn\.v_proj": 21, "model.layers.1.self_attn.q_proj": 2},
        },
    ),
    "layers": ("qwen3", {"target_modules": ["o_proj", "gate_proj"], "layers_to_transform": [1]}),
    "rank-300": ("llama-wide", {"r": 300, "lora_alpha": 300}),
    "head-and-embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "embedding-dora": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "tied-head": ("llama-tied", {"target_modules": ["lm_head"]}),
    "tied-embedding": ("gemma", {"target_modules": ["embed_tokens"]}),
    "tied-both": ("llama-tied", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "tied-save-both": ("llama-tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "tied-save-embedding": ("cohere2", {"modules_to_save": ["embed_tokens"]}),
    "save-head-and-norm": ("llama", {"modules_to_save": ["lm_head", "input_layernorm", "norm"]}),
    "save-router": ("mixtral", {"modules_to_save": ["gate"]}),
    "tokens": ("llama", {"trainable_token_indices": [3, 70, 198]}),
    "tokens-tied": ("llama-tied", {"trainable_token_indices": [3, 70, 198]}),
    "tokens-two": ("llama", {"trainable_token_indices": {"embed_tokens": [5], "lm_head": [0, 9]}}),
    "experts-converted": ("mixtral", {"target_modules": ["w1", "w2", "w3", "q_proj"]}),
    "experts-all-linear": ("qwen3-moe", {"target_modules": ["gate_proj", "up_proj", "down_proj", "gate"]}),
}


@pytest.mark.parametrize("name", FEATURES)
def test_feature(name: str, tmp_path: Path) -> None:
    case_name, options = FEATURES[name]
    options = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    case = BY_NAME[case_name]
    model, live, made = merged(case, tmp_path, **options)
    assert_is_merged(live, made.folder, case.limits)
    config = json.loads((made.folder / "config.json").read_text())
    stays = {"tied-both", "tied-save-both", "tokens-tied"}
    if model.config.tie_word_embeddings:
        assert config["tie_word_embeddings"] is (name in stays)
        assert any("tied" in w for w in made.warnings) is (name not in stays)


def test_equals_merge_and_unload(tmp_path: Path) -> None:
    """The tensors themselves; those without an adapter keep every bit, and shards and other files stay."""
    case = BY_NAME["qwen2"]
    model = write_model(case, tmp_path / "model")
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    (tmp_path / "model" / "model.safetensors").unlink(missing_ok=True)
    (tmp_path / "model" / "modeling_own.py").write_text("raise SystemExit")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    live = write_adapter(model, tmp_path / "adapter", r=6, target_modules=["q_proj", "gate_proj"])
    made = merge_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "out")
    want = live.merge_and_unload().state_dict()
    shards = sorted(p.name for p in made.folder.glob("*.safetensors"))
    assert shards == sorted(p.name for p in (tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 2
    got = {k: v for shard in shards for k, v in load_file(made.folder / shard).items()}
    before = model.state_dict()
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        adapted = "q_proj.weight" in name or "gate_proj.weight" in name
        assert (name in made.merged) is adapted
        torch.testing.assert_close(tensor, want[name], rtol=0, atol=1e-6 if adapted else 0)
        assert torch.equal(tensor, before[name]) is not adapted
    assert made.files == ["chat_template.jinja", "generation_config.json", "tokenizer.json"]
    assert not (made.folder / "modeling_own.py").exists()
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == made.weight_bytes == sum(t.nbytes for t in got.values())
    assert set(index["weight_map"]) == set(got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounds_once_to_the_checkpoints_type(dtype: torch.dtype, adapter_dtype: torch.dtype, tmp_path: Path) -> None:
    """Every value is the float32 sum, rounded to nearest even."""
    model = write_model(BY_NAME["llama"], tmp_path / "model")
    write_adapter(model, tmp_path / "adapter", r=4, lora_alpha=8, target_modules=["v_proj"])
    weights = {k: v.to(dtype) for k, v in load_file(tmp_path / "model" / "model.safetensors").items()}
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    parts = {k: v.to(adapter_dtype) for k, v in load_file(file).items()}
    save_file(parts, file)
    merge_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj"
    a, b = (parts[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    exact = weights[f"{name}.weight"].double() + 2.0 * (b @ a)
    assert got[f"{name}.weight"].dtype == dtype
    # Half a unit in the last place, and the error of a float32 sum.
    unit = 2.0 ** (torch.frexp(exact)[1] - (8 if dtype == torch.bfloat16 else 11))
    assert ((got[f"{name}.weight"].double() - exact).abs() <= 0.5 * unit + 1e-6).all()
    assert torch.equal(got["model.norm.weight"], weights["model.norm.weight"])


@pytest.mark.parametrize("rows", [160, 213])
def test_other_number_of_tokens(rows: int, tmp_path: Path) -> None:
    """Embeddings that were resized for training: config.json and the tokenizer follow."""
    case = BY_NAME["llama"]
    model = write_model(case, tmp_path / "model")
    resized = dataclasses.replace(case, options={**case.options, "vocab_size": rows})
    bigger = write_model(resized, tmp_path / "other")
    state = {k: v for k, v in model.state_dict().items() if "embed" not in k and "lm_head" not in k}
    bigger.load_state_dict(state, strict=False)
    options = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    live = write_adapter(bigger, tmp_path / "adapter", **options)
    tokenizer = (tmp_path / "other" / "tokenizer.json").read_bytes()
    (tmp_path / "adapter" / "tokenizer.json").write_bytes(tokenizer)
    made = merge_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "out")
    assert json.loads((made.folder / "config.json").read_text())["vocab_size"] == rows
    assert (made.folder / "tokenizer.json").read_bytes() == tokenizer
    assert_is_merged(live, made.folder, {})


def test_names_of_transformers_4(tmp_path: Path) -> None:
    """An adapter with a module for each expert, as peft wrote it before experts were stacked."""
    case = BY_NAME["mixtral"]
    model = write_model(case, tmp_path / "model")
    write_adapter(model, tmp_path / "adapter", r=2, lora_alpha=2, target_modules=["q_proj"])
    draw = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 64, generator=draw) * 0.2, torch.randn(112, 2, generator=draw) * 0.2
    module = "base_model.model.model.layers.1.block_sparse_moe.experts.3.w3"
    parts = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    save_file(parts, tmp_path / "adapter" / "adapter_model.safetensors")
    made = merge_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "out")
    name = "model.layers.1.block_sparse_moe.experts.3.w3.weight"
    assert made.merged == [name]
    before = load_file(tmp_path / "model" / "model.safetensors")
    got = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(got[name], before[name] + b @ a)
    # The same with stacked experts in the checkpoint.
    up = torch.stack([before.pop(name.replace(".3.", f".{e}.")) for e in range(5)])
    gate = torch.stack([before.pop(name.replace(".3.w3", f".{e}.w1")) for e in range(5)])
    before["model.layers.1.mlp.experts.gate_up_proj"] = torch.cat([gate, up], dim=1).contiguous()
    save_file(before, tmp_path / "model" / "model.safetensors")
    made = merge_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "stacked")
    assert made.merged == ["model.layers.1.mlp.experts.gate_up_proj"]
    stacked = load_file(tmp_path / "stacked" / "model.safetensors")[made.merged[0]]
    up[3] += b @ a
    torch.testing.assert_close(stacked, torch.cat([gate, up], dim=1))
