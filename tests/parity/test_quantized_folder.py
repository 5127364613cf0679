"""Quantised folders of many families: the same bits as quantising while loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.quantize import quantize_folder
from random_models import CASES, write_model

NAMES = [
    "llama-odd-sizes",
    "llama-all-biases",
    "qwen2-tied-old-config",
    "phi3",
    "gemma2",
    "cohere2",
    "mixtral",
    "qwen2-moe",
    "deepseek-v2-no-query-latent",
    "deepseek-v3",
]
PROMPT = [7 * i % 190 for i in range(40)]
PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=-1, prompt_logprobs=-1)


def results(folder: Path) -> tuple[Any, ...]:
    with LLM(folder, max_model_len=128) as llm:
        output = llm.generate(PROMPT, PARAMS)[0]
    return output.outputs[0].token_ids, output.outputs[0].logprobs, output.prompt_logprobs


@pytest.mark.parametrize("name", NAMES)
def test_same_bits(name: str, tmp_path: Path) -> None:
    write_model(next(c for c in CASES if c.name == name), tmp_path / "model")
    made = quantize_folder(tmp_path / "model", tmp_path / "quantized")
    assert results(made.folder) == results(tmp_path / "model")
