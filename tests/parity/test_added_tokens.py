"""Tokens that other files than tokenizer.json add: ids, texts and ends as transformers has them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.errors import CorruptModelError
from tokenizer_kinds import KINDS, write_model, write_tokenizer
from transformers import AutoTokenizer

TEXT = "<s><|im_start|>the ant<|im_end|> the <extra><pad></s><img>a <plain> <|im_end|>"


def entry(text: str, *, special: bool = True, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": text, "special": special, **plain, **flags}


def names(text: str) -> dict[str, Any]:
    return {"__type": "AddedToken", **entry(text)}


# For each: tokenizer_config.json, special_tokens_map.json, added_tokens.json. N is the size of the vocabulary.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]] = {
    "decoder": (
        {"added_tokens_decoder": {"N": entry("<|im_start|>"), "N+1": entry("<|im_end|>")}, "eos_token": "<|im_end|>"},
        None,
        None,
    ),
    "decoder-of-all": (
        {
            "added_tokens_decoder": {
                "N-2": entry("<s>"),
                "N-1": entry("</s>"),
                "N": entry("<|im_start|>"),
                "N+1": entry("<|im_end|>"),
            },
            "eos_token": "<|im_end|>",
        },
        None,
        None,
    ),
    "decoder-plain-and-flags": (
        {
            "added_tokens_decoder": {
                "N": entry("<plain>", special=False, normalized=True),
                "N+1": entry("<|im_end|>", lstrip=True),
                "N+2": entry("ant", special=False, single_word=True),
            }
        },
        None,
        None,
    ),
    "other-ids": ({"added_tokens_decoder": {"N+9": entry("<|im_end|>"), "N+4": entry("<extra>")}}, None, None),
    "flag-of-the-config-wins": ({"added_tokens_decoder": {"N-1": entry("</s>", special=False)}}, None, None),
    "a-word-becomes-special": ({"added_tokens_decoder": {"5": entry("the", special=True)}}, None, None),
    "additional": ({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}, None, None),
    "additional-objects": ({"additional_special_tokens": [names("<extra>"), "<|im_end|>"]}, None, None),
    "extra-list": ({"extra_special_tokens": ["<extra>", "<|im_end|>"]}, None, None),
    "extra-dict": ({"extra_special_tokens": {"image_token": "<img>", "b_token": "<extra>"}}, None, None),
    "both-names": ({"additional_special_tokens": ["<extra>"], "extra_special_tokens": []}, None, None),
    "named": ({"eos_token": "<|im_end|>", "pad_token": "<pad>", "image_token": "<img>"}, None, None),
    "named-objects": ({"eos_token": names("<|im_end|>"), "pad_token": names("<pad>")}, None, None),
    "named-plain": (
        {"added_tokens_decoder": {"N": entry("<|im_end|>", special=False)}, "eos_token": "<|im_end|>"},
        None,
        None,
    ),
    "map": ({}, {"eos_token": entry("<|im_end|>"), "pad_token": "<pad>"}, None),
    "map-lists": ({}, {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}, None),
    "map-extra": ({"extra_special_tokens": ["<img>"]}, {"extra_special_tokens": ["<extra>"]}, None),
    "map-wins": ({"eos_token": "</s>"}, {"eos_token": "<|im_end|>"}, None),
    "map-beside-decoder": (
        {"added_tokens_decoder": {"N": entry("<|im_end|>")}},
        {"pad_token": "<pad>"},
        {"<extra>": "N+1"},
    ),
    "file": ({"eos_token": "<|im_end|>"}, None, {"<|im_end|>": "N+1", "<plain>": "N"}),
    "file-and-map": ({}, {"eos_token": "<|im_end|>"}, {"<|im_start|>": "N", "<|im_end|>": "N+1"}),
    "split": ({"split_special_tokens": True, "eos_token": "<|im_end|>"}, None, None),
    "nothing": ({}, None, None),
}


def with_ids(value: Any, size: int) -> Any:
    """`value` with numbers for N, N+1, N-1."""

    def number(text: Any) -> Any:
        plain = isinstance(text, str) and text[:1] == "N" and (text[1:] or "+0").lstrip("+-").isdigit()
        return size + int(text[1:] or 0) if plain else text

    if isinstance(value, dict):
        return {str(number(k)): with_ids(v, size) for k, v in value.items()}
    return [with_ids(v, size) for v in value] if isinstance(value, list) else number(value)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("added")
    write_model(folder)
    return folder


def make(base: Path, folder: Path, kind: str, case: str) -> Path:
    shutil.copytree(base, folder)
    tokenizer = KINDS[kind]()
    size = tokenizer.get_vocab_size() + 2
    config, special_map, added = CASES[case]
    write_tokenizer(tokenizer, folder, with_ids(config, size))
    for name, content in (("special_tokens_map.json", special_map), ("added_tokens.json", added)):
        if content is not None:
            (folder / name).write_text(json.dumps(with_ids(content, size)))
    return folder


def open_llm(folder: Path) -> LLM:
    return LLM(folder, quantization=None, dtype="float32", threads=1, kv_cache_memory="8MiB")


# Ids that do not hold are warned of: see below.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["byte-level", "llama", "metaspace"])
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_transformers(base: Path, tmp_path: Path, kind: str, case: str) -> None:
    folder = make(base, tmp_path / "model", kind, case)
    reference = AutoTokenizer.from_pretrained(folder)
    with open_llm(folder) as llm:
        for text in (TEXT, "the", "<|im_end|>", "ant ants <extra>  <extra>"):
            ids = reference(text)["input_ids"]
            assert llm.tokenize(text) == ids
            for skip in (True, False):
                assert llm.detokenize(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)
        for i in range(len(reference) + 2):
            assert llm.detokenize([i], skip_special_tokens=True) == reference.decode([i], skip_special_tokens=True)
        assert llm.info()["defaults"]["eos"] == [reference.eos_token_id]


@pytest.mark.parametrize("model_type", ["LlamaTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer", "GemmaTokenizer"])
def test_tokens_of_model_classes(base: Path, tmp_path: Path, model_type: str) -> None:
    kind = "byte-level" if model_type in ("Qwen2Tokenizer", "GPT2Tokenizer") else "llama"
    # The classes read the vocabulary of tokenizer.json, and all added tokens from the other file.
    folder = make(base, tmp_path / "model", kind, "decoder-of-all")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": model_type}))
    reference = AutoTokenizer.from_pretrained(folder)
    with open_llm(folder) as llm:
        text = "<|im_start|>a<|im_end|>"
        marks = [reference.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>")]
        assert [i for i in llm.tokenize(text) if i in marks] == marks


def test_an_added_end_ends_the_answer(base: Path, tmp_path: Path) -> None:
    folder = make(base, tmp_path / "model", "byte-level", "decoder")
    with open_llm(folder) as llm:
        end = llm.tokenize("<|im_end|>")
        assert len(end) == 1
        params = SamplingParams(max_tokens=400, temperature=2.0, seed=1)
        output = llm.generate("the", params)[0].outputs[0]
        assert output.finish_reason == "stop"
        assert output.token_ids[-1] == end[0]
        assert "<|im_end|>" not in output.text


def warnings_of(folder: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with open_llm(folder) as llm:
            said: list[str] = llm.info()["warnings"]
    for text in said:
        assert any(text in str(warning.message) for warning in seen)
    return said


def test_ids_that_do_not_hold_are_warned_of(base: Path, tmp_path: Path) -> None:
    (said,) = warnings_of(make(base, tmp_path / "a", "byte-level", "other-ids"))
    assert "2 added tokens other ids" in said
    assert '"<extra>" 263 instead of 259' in said
    (said,) = warnings_of(make(base, tmp_path / "b", "byte-level", "map-beside-decoder"))
    assert "2 tokens" in said
    assert "<pad>" in said
    small = tmp_path / "small"
    write_model(small, vocab=259)
    (said,) = warnings_of(make(small, tmp_path / "c", "byte-level", "decoder"))
    assert "has no row: it has 259" in said
    assert warnings_of(make(base, tmp_path / "d", "byte-level", "decoder")) == []


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"x": entry("<a>")}},
        {"added_tokens_decoder": {"300": "<a>"}},
        {"added_tokens_decoder": {"300": {"special": True}}},
        {"eos_token": 3},
        {"extra_special_tokens": "x"},
        {"extra_special_tokens": [3]},
    ],
)
def test_entries_that_are_no_tokens_are_refused(base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    write_tokenizer(KINDS["byte-level"](), folder, config)
    with pytest.raises(CorruptModelError, match="token"):
        open_llm(folder)
