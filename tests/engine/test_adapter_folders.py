"""Hostile and damaged adapter folders: a typed error names the file and the field, and a running request goes on."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from octavo import LLM, SamplingParams
from octavo.errors import (
    CorruptModelError,
    InvalidRequestError,
    ModelNotFoundError,
    OctavoError,
    UnsupportedModelError,
)
from random_adapter import HIDDEN, PREFIX, config, file_bytes, random_tensors, write_random

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODULE = f"{PREFIX}0.self_attn.q_proj"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"
RUNNING = SamplingParams(max_tokens=2000, ignore_eos=True, n=8, temperature=0.9, seed=1)


@pytest.fixture(scope="module")
def engine() -> Iterator[LLM]:
    """An engine in which samples run all the time that the tests give it folders."""
    with LLM(max_lora_memory=1 << 26) as llm:
        yield llm
        assert llm.adapters() == []


def one_module(seed: int = 1, rank: int = 4) -> dict[str, np.ndarray[Any, Any]]:
    return random_tensors(seed, rank, ["self_attn.q_proj"], [0])


def refused(llm: LLM, folder: Path, kinds: type[OctavoError] | tuple[type[OctavoError], ...], *words: str) -> None:
    """`folder` is refused by name, leaves no adapter, and what runs beside says the same as ever."""
    short = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, logprobs=1)
    want = llm.generate([5, 6, 7], short)[0].outputs
    stream = llm.stream([9, 8, 7], RUNNING)
    next(stream)
    try:
        with pytest.raises(kinds) as caught:
            llm.load_adapter("bad", folder)
    except BaseException:
        stream.close()
        llm.unload_adapter("bad")
        raise
    assert not next(stream).finished
    assert llm.generate([5, 6, 7], short)[0].outputs == want
    stream.close()
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert "\n" not in message
    assert llm.adapters() == []
    with pytest.raises(OctavoError, match="bad"):
        llm.generate([1], SamplingParams(max_tokens=1, lora="bad"))


def test_a_sound_folder_is_taken(engine: LLM, tmp_path: Path) -> None:
    """The adapter of which the others are damaged copies."""
    loaded = engine.load_adapter("good", write_random(tmp_path, 1, 4, one_module()))
    assert (loaded.name, loaded.generation, loaded.rank) == ("good", 1, 4)
    assert engine.generate([1, 2], SamplingParams(max_tokens=3, lora="good"))[0].finished
    engine.unload_adapter("good")


MERGE = "octavo merge"
REFUSED_FIELDS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"modules_to_save": ["lm_head"]}, ("modules_to_save", MERGE)),
    ({"bias": "all"}, ("bias", MERGE)),
    ({"bias": "lora_only"}, ("bias", MERGE)),
    ({"trainable_token_indices": [1, 2]}, ("trainable_token_indices", MERGE)),
    ({"target_parameters": ["mlp.experts.down_proj"]}, ("target_parameters", MERGE)),
    ({"layer_replication": [[0, 2]]}, ("layer_replication",)),
    ({"use_qalora": True}, ("use_qalora",)),
    ({"use_bdlora": {"nblocks": 2}}, ("use_bdlora",)),
    ({"arrow_config": {"top_k": 2}}, ("arrow_config",)),
    ({"monteclora_config": {"num_samples": 2}}, ("monteclora_config",)),
    ({"kasa_config": {"beta": 1.0}}, ("kasa_config",)),
    ({"alora_invocation_tokens": [3]}, ("alora_invocation_tokens",)),
    ({"init_lora_weights": "pissa"}, ("init_lora_weights", "pissa")),
    ({"init_lora_weights": "loftq"}, ("init_lora_weights", "loftq")),
    ({"peft_type": "ADALORA"}, ("peft_type", "ADALORA")),
    ({"peft_type": "CARTRIDGE"}, ("peft_type", "CARTRIDGE")),
    ({"a_field_of_next_year": {"x": 1}}, ("a_field_of_next_year",)),
    ({"a_field_of_next_year": 3}, ("a_field_of_next_year",)),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED_FIELDS, ids=lambda v: next(iter(v), "") if v else "")
def test_refused_fields(fields: dict[str, Any], words: tuple[str, ...], engine: LLM, tmp_path: Path) -> None:
    folder = write_random(tmp_path, 1, 4, one_module(), **fields)
    refused(engine, folder, UnsupportedModelError, CONFIG, *words)


def test_fields_at_their_defaults_are_taken(engine: LLM, tmp_path: Path) -> None:
    """Every field that peft 0.21.2 writes, and unknown ones that say nothing."""
    fields = {
        **dict.fromkeys(("modules_to_save", "layer_replication", "use_bdlora", "arrow_config", "kasa_config")),
        **dict.fromkeys(("monteclora_config", "alora_invocation_tokens", "trainable_token_indices", "eva_config")),
        **dict.fromkeys(("corda_config", "lora_ga_config", "velora_config", "target_parameters", "exclude_modules")),
        **dict.fromkeys(("layers_to_transform", "layers_pattern", "megatron_config", "revision", "auto_mapping")),
        **dict.fromkeys(("use_qalora", "use_dora", "use_rslora", "lora_bias", "fan_in_fan_out"), False),
        "ensure_weight_tying": False,
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
        "init_lora_weights": True,
        "inference_mode": True,
        "loftq_config": {},
        "lora_dropout": 0.05,
        "peft_version": "0.21.2",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "/somewhere/else",
        "a_field_of_next_year": None,
        "another": False,
        "a_third": {},
        "a_fourth": [],
    }
    engine.load_adapter("good", write_random(tmp_path, 1, 4, one_module(), **fields))
    engine.unload_adapter("good")


CONTRADICTIONS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"r": 5}, ("rank", "q_proj")),
    ({"rank_pattern": {"q_proj": 8}}, ("rank", "q_proj")),
    ({"rank_pattern": {"q_(": 4}}, ("rank_pattern", "q_(")),
    ({"rank_pattern": {"q_proj": "4"}}, ("rank_pattern",)),
    ({"alpha_pattern": [1]}, ("alpha_pattern",)),
    ({"r": "4"}, ("r",)),
    ({"r": 0}, ("r",)),
    ({"r": -1}, ("r",)),
    ({"r": 1 << 70}, ("r",)),
    ({"lora_alpha": None}, ("lora_alpha",)),
    ({"r": None}, ("r",)),
    ({"lora_alpha": "16"}, ("lora_alpha",)),
    ({"use_rslora": "yes"}, ("use_rslora",)),
    ({"use_dora": True}, ("q_proj",)),
    ({"lora_bias": True}, ("q_proj",)),
    ({"target_modules": 7}, ("target_modules",)),
    ({"target_modules": ["k_proj"]}, ("q_proj",)),
    ({"peft_type": 7}, ("peft_type",)),
]


@pytest.mark.parametrize(("fields", "words"), CONTRADICTIONS, ids=lambda v: json.dumps(v)[:30])
def test_contradictions(fields: dict[str, Any], words: tuple[str, ...], engine: LLM, tmp_path: Path) -> None:
    folder = write_random(tmp_path, 1, 4, one_module(), **fields)
    refused(engine, folder, (CorruptModelError, UnsupportedModelError), str(tmp_path), *words)


def spoiled(name: str, value: float) -> Callable[[], dict[str, np.ndarray[Any, Any]]]:
    def make() -> dict[str, np.ndarray[Any, Any]]:
        tensors = one_module()
        tensors[name][2, 1] = value
        return tensors

    return make


def without(name: str) -> Callable[[], dict[str, np.ndarray[Any, Any]]]:
    return lambda: {k: v for k, v in one_module().items() if k != name}


def also(name: str, *shape: int) -> Callable[[], dict[str, np.ndarray[Any, Any]]]:
    return lambda: {**one_module(), name: np.ones(shape, np.float32)}


def ranked(rank: int) -> Callable[[], dict[str, np.ndarray[Any, Any]]]:
    return lambda: {A: np.ones((rank, HIDDEN), np.float32), B: np.ones((HIDDEN, rank), np.float32)}


HEAD = "base_model.model.lm_head.weight"
TENSORS: dict[str, tuple[Callable[[], dict[str, np.ndarray[Any, Any]]], tuple[str, ...]]] = {
    "nan-in-a": (spoiled(A, np.nan), (A,)),
    "inf-in-b": (spoiled(B, np.inf), (B,)),
    "no-b": (without(B), ("lora_B", "q_proj")),
    "no-a": (without(A), ("lora_A", "q_proj")),
    "b-of-another-rank": (also(B, HIDDEN, 3), ("q_proj",)),
    "wrong-inputs": (also(A, 4, HIDDEN + 1), (A,)),
    "wrong-outputs": (also(B, HIDDEN - 64, 4), (B,)),
    "vector": (also(A, 4), (A,)),
    "three-dimensions": (also(A, 1, 4, HIDDEN), (A,)),
    "rank-0": (ranked(0), ("q_proj",)),
    "a-layer-that-is-not-there": (also(f"{PREFIX}99.self_attn.q_proj.lora_A.weight", 4, HIDDEN), ("99",)),
    "a-module-that-is-not-there": (also(f"{PREFIX}0.self_attn.qkv_proj.lora_A.weight", 4, HIDDEN), ("qkv_proj",)),
    "whole-head": (also(HEAD, 2048, HIDDEN), ("lm_head", MERGE)),
    "whole-norm": (also(f"{PREFIX}0.input_layernorm.weight", HIDDEN), ("input_layernorm", MERGE)),
    "base-bias": (also(f"{MODULE}.base_layer.bias", HIDDEN), ("base_layer",)),
    "head-lora": (also("base_model.model.lm_head.lora_A.weight", 4, HIDDEN), ("lm_head", MERGE)),
    "embedding-lora": (also("base_model.model.model.embed_tokens.lora_embedding_A", 4, 2048), ("embed_tokens", MERGE)),
    "path-as-a-name": (also("../../../etc/passwd", 4), ("passwd",)),
    "unknown-part": (also(f"{MODULE}.lora_C.weight", 4), ("lora_C",)),
    "magnitude-without-dora": (also(f"{MODULE}.lora_magnitude_vector", HIDDEN), ("lora_magnitude_vector",)),
    "bias-without-lora-bias": (also(f"{MODULE}.lora_B.bias", HIDDEN), ("lora_B.bias",)),
    "twice": (also(f"{MODULE}.lora_A.default.weight", 4, HIDDEN), ("q_proj",)),
    "nothing": (dict, (WEIGHTS,)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name: str, engine: LLM, tmp_path: Path) -> None:
    make, words = TENSORS[name]
    folder = write_random(tmp_path, 1, 4, make())
    refused(engine, folder, (CorruptModelError, UnsupportedModelError), str(tmp_path), *words)


@pytest.mark.parametrize("rank", [257, 100_000])
def test_ranks_above_the_limit(rank: int, engine: LLM, tmp_path: Path) -> None:
    folder = write_random(tmp_path, 1, rank, ranked(rank)() if rank < 1000 else one_module())
    refused(engine, folder, (InvalidRequestError, UnsupportedModelError, CorruptModelError), str(rank))


def test_max_lora_rank_and_memory(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "a", 1, 9)
    with LLM(max_lora_rank=8) as llm:
        refused(llm, folder, InvalidRequestError, "max_lora_rank", "9")
    with LLM(max_lora_memory=1000) as llm:
        refused(llm, folder, InvalidRequestError, "max_lora_memory")


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_cut_off_weights(size: int, engine: LLM, tmp_path: Path) -> None:
    file = write_random(tmp_path, 1, 4, one_module()) / WEIGHTS
    file.write_bytes(file.read_bytes()[:size])
    refused(engine, tmp_path, CorruptModelError, str(file))


def raw_header(text: str, data: bytes = bytes(64)) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


ENTRY = f'"{A}": {{"dtype": "F32", "shape": [4, 192], "data_offsets": [0, 3072]}}'


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(raw_header(f"{{{ENTRY}}}"), id="offsets-outside"),
        pytest.param(raw_header(f"{{{ENTRY}, {ENTRY}}}", bytes(3072)), id="a-name-twice"),
        pytest.param(raw_header('{"x": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}'), id="backwards"),
        pytest.param(raw_header('{"x": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}'), id="negative"),
        pytest.param(
            raw_header('{"x": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 16]}}'),
            id="a-product-that-overflows",
        ),
        pytest.param(raw_header("{" * 5000), id="deep"),
        pytest.param(raw_header("null"), id="null"),
        pytest.param(struct.pack("<Q", 1 << 62) + b"{}", id="endless-header"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="a-pickle"),
    ],
)
def test_headers_that_lie(content: bytes, engine: LLM, tmp_path: Path) -> None:
    file = write_random(tmp_path, 1, 4, one_module()) / WEIGHTS
    file.write_bytes(content)
    refused(engine, tmp_path, CorruptModelError, str(file))


def test_integers_are_no_weights(engine: LLM, tmp_path: Path) -> None:
    file = write_random(tmp_path, 1, 4, one_module()) / WEIGHTS
    file.write_bytes(file_bytes(one_module()).replace(b'"F32"', b'"I32"'))
    refused(engine, tmp_path, (UnsupportedModelError, CorruptModelError), str(file), "I32")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        pytest.param("", "", id="empty"),
        pytest.param("[]", "", id="a-list"),
        pytest.param("{", "", id="half"),
        pytest.param("[" * 50_000, "", id="deep"),
        pytest.param(" " * (2 << 20) + json.dumps(config(4)), "", id="two-mebibytes"),
        pytest.param("\x00\x01\x02", "", id="bytes"),
    ],
)
def test_configs_that_are_none(text: str, word: str, engine: LLM, tmp_path: Path) -> None:
    write_random(tmp_path, 1, 4, one_module())
    (tmp_path / CONFIG).write_text(text)
    refused(engine, tmp_path, (CorruptModelError, UnsupportedModelError), str(tmp_path / CONFIG), word)


def test_missing_files(engine: LLM, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    refused(engine, folder, ModelNotFoundError, str(folder))
    write_random(folder, 1, 4, one_module())
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    refused(engine, folder, (ModelNotFoundError, UnsupportedModelError), "adapter_model.bin", "safetensors")
    (folder / "adapter_model.bin").unlink()
    refused(engine, folder, ModelNotFoundError, WEIGHTS)
    (folder / CONFIG).unlink()
    refused(engine, folder, ModelNotFoundError, CONFIG)
    refused(engine, folder / "no\x01where", ModelNotFoundError)


def test_a_model_is_no_adapter(engine: LLM) -> None:
    from octavo.hub import embedded_model

    refused(engine, embedded_model(), ModelNotFoundError, CONFIG)


def test_devices_and_pipes_are_not_read(engine: LLM, tmp_path: Path) -> None:
    """A file that never ends, or that waits for a writer, is refused at once."""
    folder = write_random(tmp_path / "a", 1, 4, one_module())
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to("/dev/zero")
    refused(engine, folder, (CorruptModelError, ModelNotFoundError, UnsupportedModelError), CONFIG)
    (folder / CONFIG).unlink()
    (folder / CONFIG).write_text(json.dumps(config(4)))
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    refused(engine, folder, (CorruptModelError, ModelNotFoundError, UnsupportedModelError), WEIGHTS)


@pytest.mark.parametrize("name", ["", "a@1", "a+b", "a,b", "x" * 300, "a\nb", "a\x00b"])
def test_names(name: str, engine: LLM, tmp_path: Path) -> None:
    folder = write_random(tmp_path, 1, 4, one_module())
    with pytest.raises(InvalidRequestError):
        engine.load_adapter(name, folder)
    assert engine.adapters() == []


@pytest.mark.parametrize("how", ["replaced", "overwritten", "cut off", "removed"])
def test_files_that_change_before_their_first_use(how: str, engine: LLM, tmp_path: Path) -> None:
    """An adapter id stands for one content: other bytes end the requests that wanted the old ones, and nothing else."""
    file = write_random(tmp_path, 1, 4, one_module()) / WEIGHTS
    other = file_bytes(one_module(seed=2))
    loaded = engine.load_adapter("moving", tmp_path)
    if how == "replaced":
        fresh = tmp_path / "fresh.safetensors"
        fresh.write_bytes(other)
        fresh.replace(file)
    elif how == "overwritten":
        file.write_bytes(other)
    elif how == "cut off":
        os.truncate(file, 1000)
    else:
        file.unlink()
    params = SamplingParams(max_tokens=4, temperature=0, lora="moving")
    with pytest.raises((CorruptModelError, ModelNotFoundError), match=re.escape(str(tmp_path))):
        engine.generate([1, 2, 3], params)
    assert engine.generate([1, 2, 3], SamplingParams(max_tokens=2))[0].finished
    if how in ("replaced", "overwritten"):
        again = engine.load_adapter("moving", tmp_path)
        assert (again.generation, again.digest == loaded.digest) == (loaded.generation + 1, False)
        assert engine.generate([1, 2, 3], params)[0].finished
    engine.unload_adapter("moving")
