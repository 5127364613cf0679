"""Checkpoints in int8 as LLM Compressor publishes them (compressed-tensors, W8A8), against transformers in floats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compare import all_rows, assert_greedy, assert_same_logprobs, kl_rows, reference_logprobs
from octavo import LLM, SamplingParams
from random_models import CASES, write_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

W8A8 = {
    "config_groups": {
        "group_0": {
            "input_activations": {
                "dynamic": True,
                "num_bits": 8,
                "strategy": "token",
                "symmetric": True,
                "type": "int",
            },
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {"dynamic": False, "num_bits": 8, "strategy": "channel", "symmetric": True, "type": "int"},
        }
    },
    "format": "int-quantized",
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}
PROMPT = [7 * i % 190 for i in range(60)]


def write_int8(folder: Path, name: str, scale_dtype: torch.dtype) -> PreTrainedModel:
    """Turns the projections of a model to int8; returns the model that has the values of the codes."""
    model = write_model(next(c for c in CASES if c.name == name), folder)
    tensors = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for key, weight in list(tensors.items()):
            # Routers and the head stay as they are, as LLM Compressor's recipes have it.
            if "proj" not in key or not key.endswith("weight"):
                continue
            scale = (weight.abs().amax(dim=1, keepdim=True) / 127.5).to(scale_dtype)
            codes = (weight / scale.float()).round().clamp(-128, 127)
            tensors[key], tensors[f"{key}_scale"] = codes.to(torch.int8), scale
            # octavo holds codes from -127 to 127.
            values = codes.clamp(min=-127) * scale.float()
            dict(model.named_parameters())[key].copy_(values)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": W8A8}))
    return model


def clamp_codes(folder: Path) -> None:
    """Takes the code -128 out of the file, so that all code paths see the same values."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {k: t.clamp(min=-127) if t.dtype == torch.int8 else t for k, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("name", ["llama-wide", "qwen2", "gemma2"])
@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32], ids=["bfloat16-scales", "float32-scales"])
def test_values_of_the_codes_are_read(name: str, scale_dtype: torch.dtype, tmp_path: Path) -> None:
    reference = write_int8(tmp_path, name, scale_dtype)
    clamp_codes(tmp_path)
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=-1, prompt_logprobs=-1)
    with LLM(tmp_path, dtype="float32", quantization=None) as llm:
        output = llm.generate(PROMPT, params)[0]
    tokens = output.outputs[0].token_ids
    want = reference_logprobs(reference, [*PROMPT, *tokens])[:-1]
    assert_same_logprobs(want, all_rows(output, reference.config.vocab_size), tolerance=1e-4)
    assert_greedy(want[len(PROMPT) - 1 :], tokens)


@pytest.mark.parametrize("name", ["llama-wide", "qwen2", "gemma2"])
def test_int8_computes_with_the_codes(name: str, tmp_path: Path) -> None:
    """What is left is the error of activations, embedding and head."""
    reference = write_int8(tmp_path, name, torch.bfloat16)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    with LLM(tmp_path, dtype="float32") as llm:
        assert llm.info()["model"]["quantization"] == "int8"
        output = llm.generate(PROMPT, params)[0]
    kl = float(kl_rows(reference_logprobs(reference, PROMPT), all_rows(output, reference.config.vocab_size)).mean())
    limit = 1e-2 * max(1.0, reference.config.num_hidden_layers / 2)
    assert 0 <= kl < limit, f"mean KL is {kl:.5f} nats, below {limit} is expected"
