"""Checkpoints as people save them, on the torch executor: the names and heads that the CPU reads."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from backends import torch_llm
from compare import all_rows, assert_same_logprobs, reference_logprobs
from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.gpu import load
from random_models import CASES, write_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

PROMPT = [7 * i % 190 for i in range(40)]
ALL = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=-1, prompt_logprobs=-1)
Tensors = dict[str, torch.Tensor]


def change(folder: Path, edit: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    tensors = edit(load_file(file))
    file.unlink()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def quiet(folder: Path, backend: load.Backend) -> LLM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return torch_llm(folder, backend, quantization=None)


FORMS: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "no prefix": ("llama", lambda t: {n.removeprefix("model."): x for n, x in t.items()}, ""),
    "own head": ("llama-tied", lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].flip(0)}, "lm_head"),
    "head alone": (
        "llama-tied",
        lambda t: {n.replace("model.embed_tokens", "lm_head"): x for n, x in t.items()},
        "",
    ),
    "doubles": ("llama", lambda t: {n: x.double() for n, x in t.items()}, ""),
    "unused": ("llama", lambda t: {**t, "model.extra.weight": torch.ones(1)}, r"model.extra.weight"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_names_and_heads(form: str, backend: load.Backend, tmp_path: Path) -> None:
    name, edit, warning = FORMS[form]
    write_model(next(c for c in CASES if c.name == name), tmp_path)
    change(tmp_path, edit)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with quiet(tmp_path, backend) as llm:
        assert_same_logprobs(reference_logprobs(reference, PROMPT), all_rows(llm.generate(PROMPT, ALL)[0], 199), 2e-4)
        found = llm.info()["warnings"]
    assert len(found) == bool(warning)
    assert all(warning in text for text in found)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "deepseek-v3"])
def test_stacked_experts(name: str, backend: load.Backend, tmp_path: Path) -> None:
    reference = write_model(next(c for c in CASES if c.name == name), tmp_path)
    change(tmp_path, lambda _: dict(reference.state_dict()))
    with quiet(tmp_path, backend) as llm:
        assert_same_logprobs(reference_logprobs(reference, PROMPT), all_rows(llm.generate(PROMPT, ALL)[0], 199), 2e-4)
        assert llm.info()["warnings"] == []


def test_a_model_without_a_head_does_not_generate(backend: load.Backend, tmp_path: Path) -> None:
    write_model(next(c for c in CASES if c.name == "llama"), tmp_path)
    change(tmp_path, lambda t: {n: x for n, x in t.items() if n != "lm_head.weight"})
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["LlamaModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with quiet(tmp_path, backend) as llm, pytest.raises(InvalidRequestError, match="no output head"):
        llm.generate(PROMPT, ALL)
