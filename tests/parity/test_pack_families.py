"""Packs over random models of several kinds: latents, windows, adapters. Every block is computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from octavo import LLM, SamplingParams, errors
from random_adapters import write_adapter
from random_models import CASES, write_model

KINDS = ["llama", "mistral-window", "gemma3", "qwen2-moe", "deepseek-v2", "deepseek-v3"]
DOCUMENT = " ".join(f"t{(i * 37) % 190}" for i in range(150))
PARAMS = SamplingParams(temperature=0.0, max_tokens=6, logprobs=1, ignore_eos=True)


def bits(output: Any) -> list[Any]:
    return [(o.token_ids, o.cumulative_logprob) for o in output.outputs]


def load_with_every_block(llm: LLM, path: Path, tokens: int) -> None:
    for block in range(tokens // 32):
        llm._engine.pack({"operation": "load", "name": "p", "path": str(path), "check_block": block})


@pytest.mark.parametrize("name", KINDS)
def test_a_pack_has_the_bits_of_its_text(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    write_model(case, tmp_path / "model")
    with LLM(tmp_path / "model", **case.limits) as llm:
        made = llm.make_pack([DOCUMENT], tmp_path / "p.pack", form="text")
        expected = llm.generate(f"{DOCUMENT}\n\nt3 t4", PARAMS)[0]
    with LLM(tmp_path / "model", **case.limits) as llm:
        load_with_every_block(llm, made.path, made.tokens)
        found = llm.generate("t3 t4", SamplingParams(**{**PARAMS.as_dict(), "pack": "p"}))[0]
        assert found.metrics is not None
        assert found.metrics.cached_prompt_tokens == made.tokens == 128
        assert bits(found) == bits(expected)


def test_a_pack_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("llama", "llama-gelu"):
        write_model(next(case for case in CASES if case.name == name), tmp_path / name)
    with LLM(tmp_path / "llama") as llm:
        llm.make_pack([DOCUMENT], tmp_path / "p.pack", form="text")
    with LLM(tmp_path / "llama-gelu") as llm, pytest.raises(errors.PackMismatchError, match="model is"):
        llm.load_pack("p", tmp_path / "p.pack")
    words = tmp_path / "llama" / "tokenizer.json"
    words.write_text(words.read_text().replace('"t7"', '"t7x"'))
    with LLM(tmp_path / "llama") as llm, pytest.raises(errors.PackMismatchError, match="tokenizer is"):
        llm.load_pack("p", tmp_path / "p.pack")


def test_a_pack_with_an_adapter_is_for_requests_with_it(tmp_path: Path) -> None:
    model = write_model(next(case for case in CASES if case.name == "llama"), tmp_path / "model")
    for seed, name in enumerate(("one", "two")):
        write_adapter(model, tmp_path / name, seed, r=4, target_modules="all-linear")
    with LLM(tmp_path / "model") as llm:
        for name in ("one", "two"):
            llm.load_adapter(name, tmp_path / name)
        made = llm.make_pack([DOCUMENT], tmp_path / "p.pack", form="text", adapter="one")
        expected = llm.generate(f"{DOCUMENT}\n\nt3", PARAMS, adapter="one")[0]
        plain = llm.generate(f"{DOCUMENT}\n\nt3", PARAMS)[0]
        assert bits(expected) != bits(plain)
    with LLM(tmp_path / "model") as llm:
        with pytest.raises(errors.PackMismatchError, match="load_adapter it before the pack"):
            llm.load_pack("p", made.path)
        digest = llm.load_adapter("first", tmp_path / "one").digest
        llm.load_adapter("two", tmp_path / "two")
        assert llm.load_pack("p", made.path).adapter == made.adapter == digest
        load_with_every_block(llm, made.path, made.tokens)
        with_pack = SamplingParams(**{**PARAMS.as_dict(), "pack": "p"})
        found = llm.generate("t3", with_pack, adapter="first")[0]
        assert found.metrics is not None
        assert found.metrics.cached_prompt_tokens == made.tokens
        assert bits(found) == bits(expected)
        for adapter, words in ((None, "the request has no lora"), ("two", "lora is")):
            with pytest.raises(errors.InvalidRequestError, match=words):
                llm.generate("t3", with_pack, adapter=adapter)
