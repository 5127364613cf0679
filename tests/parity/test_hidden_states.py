"""Embeddings against the hidden states of transformers, pooled by torch."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from octavo import LLM
from random_models import CASES, write_model
from transformers import PreTrainedModel

# One of each kind of last norm and attention: RMS, RMS with offset, layer norm, latent, experts.
FAMILIES = ("llama", "qwen3", "gemma3", "cohere2", "olmo2", "deepseek-v3", "mixtral", "phi3")


def pooled(model: PreTrainedModel, ids: list[int], pooling: str, normalize: bool) -> torch.Tensor:
    with torch.no_grad():
        states = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
    vector = states.mean(0) if pooling == "mean" else states[-1]
    return vector / vector.norm() if normalize else vector


def assert_same_vector(want: torch.Tensor, got: list[float], tolerance: float) -> None:
    found = torch.tensor(got, dtype=torch.float64)
    assert found.shape == want.shape
    worst = float((found - want).abs().max())
    assert worst <= tolerance, f"largest difference {worst:.2e} > {tolerance:.0e}"


@pytest.mark.parametrize("case", [c for c in CASES if c.name in FAMILIES], ids=lambda c: c.name)
def test_float32_matches_transformers(case: object, tmp_path: Path) -> None:
    reference = write_model(case, tmp_path)
    draw = random.Random(case.name)
    prompts = [[draw.randrange(reference.config.vocab_size) for _ in range(n)] for n in (75, 1, 33)]
    with LLM(tmp_path, dtype="float32", quantization=None, max_num_batched_tokens=40, **case.limits) as llm:
        for pooling in ("mean", "last"):
            for normalize in (True, False):
                outputs = llm.embed(prompts, pooling=pooling, normalize=normalize, use_tqdm=False)
                for prompt, output in zip(prompts, outputs, strict=True):
                    want = pooled(reference, prompt, pooling, normalize)
                    # Not scaled to 1 the values are as large as the norm's weights make them.
                    assert_same_vector(want, output.embedding, 1e-4 * max(1.0, float(want.abs().max())))


def test_embedded_model(embedded_float32: LLM, embedded_reference: PreTrainedModel) -> None:
    texts = ["Once upon a time, there was a little girl", "The capital of France is", "a"]
    for pooling in ("mean", "last"):
        for output in embedded_float32.embed(texts, pooling=pooling, use_tqdm=False):
            want = pooled(embedded_reference, output.prompt_token_ids, pooling, True)
            assert_same_vector(want, output.embedding, 1e-4)
