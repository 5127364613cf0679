"""`octavo merge` refuses what it cannot merge, by file and field, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import octavo.merge.folder
import pytest
from octavo.errors import CorruptModelError, InvalidRequestError, ModelNotFoundError, OctavoError, UnsupportedModelError
from octavo.merge import merge_adapter

WIDTH, RANK = 8, 2
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
Tensors = dict[str, np.ndarray[Any, Any]]


def write_tensors(path: Path, tensors: Tensors, dtype: str = "F32") -> None:
    header, data = {}, b""
    for name, array in tensors.items():
        raw = array.astype("<f4").tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 6}))
    weights = {
        "model.embed_tokens.weight": np.ones((6, WIDTH)),
        "model.layers.0.self_attn.q_proj.weight": np.ones((WIDTH, WIDTH)),
        "model.norm.weight": np.ones(WIDTH),
    }
    write_tensors(folder / "model.safetensors", weights)
    return folder


def parts() -> Tensors:
    return {f"{MODULE}.lora_A.weight": np.ones((RANK, WIDTH)), f"{MODULE}.lora_B.weight": np.ones((WIDTH, RANK))}


def write_adapter(folder: Path, tensors: Tensors | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    write_tensors(folder / "adapter_model.safetensors", parts() if tensors is None else tensors)
    return folder


def refused(model: Path, adapter: Path, kind: type[OctavoError], *words: str, **options: Any) -> None:
    out = model.parent / "out"
    before = sorted(os.listdir(model.parent))
    with pytest.raises(kind) as caught:
        merge_adapter(model, adapter, out, **options)
    for word in words:
        assert word in str(caught.value)
    assert sorted(os.listdir(model.parent)) == before, "something was left behind"


def test_the_plain_case_is_merged(model: Path) -> None:
    made = merge_adapter(model, write_adapter(model.parent / "a"), model.parent / "out")
    assert made.merged == ["model.layers.0.self_attn.q_proj.weight"]
    values = np.frombuffer((made.folder / "model.safetensors").read_bytes()[-4 * (WIDTH * WIDTH + WIDTH) :], "<f4")
    assert (values[: WIDTH * WIDTH] == 1 + RANK * 4 / RANK).all()
    assert (values[WIDTH * WIDTH :] == 1).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "ADALORA"}, ("peft_type", "ADALORA", "merge_and_unload")),
        ({"peft_type": None}, ("peft_type",)),
        ({"alora_invocation_tokens": [1, 2]}, ("alora_invocation_tokens", "certain tokens")),
        ({"layer_replication": [[0, 1]]}, ("layer_replication",)),
        ({"use_qalora": True}, ("use_qalora",)),
        ({"use_bdlora": {"nblocks": 2}}, ("use_bdlora",)),
        ({"arrow_config": {"top_k": 2}}, ("arrow_config",)),
        ({"monteclora_config": {"num_samples": 2}}, ("monteclora_config",)),
        ({"kasa_config": {"beta": 1}}, ("kasa_config",)),
        ({"some_new_field": "x"}, ("some_new_field", "'x'", "does not know")),
        ({"init_lora_weights": "pissa_niter_4"}, ("init_lora_weights", "path_initial_model_for_weight_conversion")),
        ({"init_lora_weights": "loftq"}, ("init_lora_weights",)),
        ({"bias": "some"}, ("bias", "lora_only")),
    ],
)
def test_refused_fields(fields: dict[str, Any], words: tuple[str, ...], model: Path) -> None:
    adapter = write_adapter(model.parent / "a", **fields)
    refused(model, adapter, UnsupportedModelError, str(adapter / "adapter_config.json"), *words)


def test_fields_at_their_defaults_are_taken(model: Path) -> None:
    fields = {"some_new_field": None, "other": False, "third": [], "fourth": {}, "velora_config": {"scale": 2.0}}
    merge_adapter(model, write_adapter(model.parent / "a", **fields), model.parent / "out")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 3}, ("rank", "is 3 by r", "have the rank 2")),
        ({"r": 0}, ("r is 0",)),
        ({"r": "2"}, ("r is '2'",)),
        ({"r": True}, ("r is True",)),
        ({"lora_alpha": None}, ("lora_alpha is None",)),
        ({"lora_alpha": float("nan")}, ("lora_alpha is nan",)),
        ({"rank_pattern": {"q_proj": 5}}, ("is 5 by r and rank_pattern",)),
        ({"rank_pattern": {"q_(": 5}}, ("rank_pattern", "'q_('")),
        ({"alpha_pattern": ["q_proj"]}, ("alpha_pattern",)),
        ({"use_dora": True}, ("lora_magnitude_vector", "use_dora")),
        ({"use_dora": 1}, ("use_dora is 1",)),
        ({"lora_bias": True}, ("bias of lora_B", "lora_bias")),
        ({"target_modules": [3]}, ("target_modules",)),
        ({"trainable_token_indices": ["a"]}, ("trainable_token_indices",)),
    ],
)
def test_contradictions(fields: dict[str, Any], words: tuple[str, ...], model: Path) -> None:
    refused(model, write_adapter(model.parent / "a", **fields), CorruptModelError, *words)


def _without(*names: str) -> Callable[[], Tensors]:
    return lambda: {k: v for k, v in parts().items() if not k.endswith(names)}


def _with(name: str, array: np.ndarray[Any, Any]) -> Callable[[], Tensors]:
    return lambda: {**parts(), name: array}


def _nan() -> np.ndarray[Any, Any]:
    values = np.ones((WIDTH, RANK))
    values[3, 1] = np.nan
    return values


@pytest.mark.parametrize(
    ("tensors", "kind", "words"),
    [
        (_without("lora_B.weight"), CorruptModelError, ("has no lora_B",)),
        (_without("lora_A.weight"), CorruptModelError, ("has no lora_A",)),
        (_without("weight"), CorruptModelError, ("holds no tensors",)),
        (_with(f"{MODULE}.lora_B.weight", _nan()), CorruptModelError, ("lora_B.weight", "nan in row 3")),
        (_with(f"{MODULE}.lora_B.weight", np.full((WIDTH, RANK), np.inf)), CorruptModelError, ("inf",)),
        (_with(f"{MODULE}.lora_B.weight", np.ones((WIDTH, 3))), CorruptModelError, ("rank", "is 2", "3")),
        (
            _with(f"{MODULE}.lora_A.weight", np.ones((RANK, 9))),
            CorruptModelError,
            ("8 x 9", "model that model?", "llm-7b"),
        ),
        (_with(f"{MODULE}.lora_A.weight", np.ones((2, 2, 2))), CorruptModelError, ("a matrix is expected",)),
        (
            _with("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", np.ones((RANK, WIDTH))),
            CorruptModelError,
            ("no lora_B",),
        ),
        (_with("base_model.model.score.weight", np.ones((2, WIDTH))), CorruptModelError, ("no tensor for", "score")),
        (_with("base_model.model.model.norm.weight", np.ones(WIDTH + 1)), CorruptModelError, ("norm.weight", "[9]")),
        (_with("base_model.model.model.embed_tokens.weight", np.ones((9, WIDTH + 1))), CorruptModelError, ("[9, 9]",)),
        (_with("layers.0.weight", np.ones(1)), CorruptModelError, ("no tensor for", "layers.0.weight")),
        (_with(f"{MODULE}.lora_C.weight", np.ones(1)), UnsupportedModelError, ("lora_C",)),
        (_with(f"{MODULE}.lora_A.default.weight", np.ones(1)), CorruptModelError, ("twice", "lora_A.default")),
        (_with(f"{MODULE}.lora_magnitude_vector", np.ones(WIDTH)), CorruptModelError, ("use_dora is false",)),
        (_with(f"{MODULE}.lora_B.bias", np.ones(WIDTH)), CorruptModelError, ("lora_bias is false",)),
    ],
)
def test_tensors_that_do_not_fit(
    tensors: Callable[[], Tensors], kind: type[OctavoError], words: tuple[str, ...], model: Path
) -> None:
    adapter = write_adapter(model.parent / "a", tensors(), base_model_name_or_path="some/llm-7b")
    refused(model, adapter, kind, str(adapter), *words)


def test_a_bias_that_the_model_has_no_place_for(model: Path) -> None:
    adapter = write_adapter(model.parent / "a", {**parts(), f"{MODULE}.lora_B.bias": np.ones(WIDTH)}, lora_bias=True)
    refused(model, adapter, UnsupportedModelError, "lora_B.bias", "--lora")


def test_magnitudes_of_a_zero_row(model: Path) -> None:
    """A row of zeros has no direction that could get a length."""
    tensors = {**parts(), f"{MODULE}.lora_magnitude_vector": np.ones(WIDTH)}
    tensors[f"{MODULE}.lora_B.weight"] *= -0.25
    adapter = write_adapter(model.parent / "a", tensors, use_dora=True)
    refused(model, adapter, CorruptModelError, "q_proj.weight", "not finite")


@pytest.mark.parametrize("cut", [0, 4, 40, -8])
def test_cut_off_file(cut: int, model: Path) -> None:
    adapter = write_adapter(model.parent / "a")
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    refused(model, adapter, CorruptModelError, str(file))


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 40]}, "ends behind the end"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "offsets"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "need 12 bytes"),
        ({"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}, "F31"),
        ({"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 8]}, "shape"),
        ([], "no description"),
    ],
)
def test_headers_that_lie(entry: object, word: str, model: Path) -> None:
    adapter = write_adapter(model.parent / "a")
    text = json.dumps({f"{MODULE}.lora_A.weight": entry}).encode()
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(model, adapter, CorruptModelError, str(file), "lora_A", word)


def test_a_name_twice(model: Path) -> None:
    adapter = write_adapter(model.parent / "a")
    entry = '"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    text = f"{{{entry}, {entry}}}".encode()
    (adapter / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(model, adapter, CorruptModelError, "'x' is given twice")


def test_files_that_are_missing(model: Path) -> None:
    refused(model, model.parent / "none", ModelNotFoundError, "adapter_config.json")
    adapter = write_adapter(model.parent / "a")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(model, adapter, ModelNotFoundError, "adapter_model.safetensors", "pickle", "safe_serialization")
    (adapter / "adapter_config.json").write_text("[" * 100_000)
    refused(model, adapter, CorruptModelError, "adapter_config.json", "not JSON")
    (adapter / "adapter_config.json").write_text(" " * (1 << 20) + "{}")
    refused(model, adapter, CorruptModelError, "adapter_config.json", "1048576 bytes")
    (adapter / "adapter_config.json").unlink()
    refused(model, adapter, ModelNotFoundError, "no adapter_config.json")


def test_models_that_are_refused(model: Path) -> None:
    adapter = write_adapter(model.parent / "a")
    config = model / "config.json"
    config.write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    refused(model, adapter, UnsupportedModelError, "quantization_config", "octavo quantize")
    config.write_text("{}")
    index = {"weight_map": {"a": "../model/model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").rename(model / "other.safetensors")
    refused(model, adapter, CorruptModelError, "'../model/model.safetensors'", "a file name is expected")


def test_output_that_exists(model: Path) -> None:
    adapter = write_adapter(model.parent / "a")
    (model.parent / "out").mkdir()
    (model.parent / "out" / "x").write_text("mine")
    refused(model, adapter, InvalidRequestError, "exists already")
    assert (model.parent / "out" / "x").read_text() == "mine"


def test_a_full_disk_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = write_adapter(model.parent / "a")
    with monkeypatch.context() as patch:
        patch.setattr(octavo.merge.folder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
        refused(model, adapter, InvalidRequestError, "100 free")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(octavo.merge.folder, "_copy", full)
    refused(model, adapter, InvalidRequestError, "No space left on device")


def test_an_embedding_grows_only_with_its_head(model: Path) -> None:
    write_tensors(
        model / "model.safetensors",
        {"model.embed_tokens.weight": np.ones((6, WIDTH)), "lm_head.weight": np.zeros((6, WIDTH))},
    )
    adapter = write_adapter(model.parent / "a", {"base_model.model.model.embed_tokens.weight": np.ones((9, WIDTH))})
    refused(model, adapter, CorruptModelError, "6 and 9 rows")


def test_a_tokenizer_of_the_adapter_is_named(model: Path) -> None:
    adapter = write_adapter(model.parent / "a")
    refused(model, adapter, InvalidRequestError, "no tokenizer.json", tokenizer="adapter")
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    (adapter / "tokenizer.json").write_text("{}")
    made = merge_adapter(model, adapter, model.parent / "one")
    assert any("chat_template.jinja" in w for w in made.warnings)
    assert made.files == []
    made = merge_adapter(model, adapter, model.parent / "two", tokenizer="adapter")
    assert made.files == ["chat_template.jinja", "tokenizer.json"]
    assert not made.warnings


def test_targets_without_tensors_are_named(model: Path) -> None:
    adapter = write_adapter(model.parent / "a", target_modules=["q_proj", "v_proj"])
    made = merge_adapter(model, adapter, model.parent / "out")
    assert made.warnings == ["target_modules names v_proj, and the adapter has no tensors for it"]


def test_memory_is_bounded_by_blocks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks give the same file."""
    adapter = write_adapter(
        model.parent / "a",
        {
            **parts(),
            f"{MODULE}.lora_magnitude_vector": np.arange(1.0, WIDTH + 1),
        },
        use_dora=True,
    )
    whole = merge_adapter(model, adapter, model.parent / "one").folder / "model.safetensors"
    monkeypatch.setattr(octavo.merge.tensor_file, "_BLOCK", 3 * WIDTH)
    blocks = merge_adapter(model, adapter, model.parent / "two").folder / "model.safetensors"
    np.testing.assert_allclose(
        np.frombuffer(whole.read_bytes()[-400:], "<f4"), np.frombuffer(blocks.read_bytes()[-400:], "<f4"), rtol=1e-6
    )


def test_command(model: Path) -> None:
    adapter = write_adapter(model.parent / "a", target_modules=["q_proj", "v_proj"])
    run = [sys.executable, "-m", "octavo", "merge", str(model), str(adapter), str(model.parent / "out")]
    done = subprocess.run([*run, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["merged"] == ["model.layers.0.self_attn.q_proj.weight"]
    assert done.stderr.startswith("octavo: target_modules names v_proj")
    again = subprocess.run(run, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "exists already" in again.stderr
