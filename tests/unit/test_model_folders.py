"""What a folder is instead of a model that loads: each kind is named, with the remedy. JSON as Python writes it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from octavo import LLM
from octavo.errors import CorruptModelError, ModelNotFoundError, OctavoError, UnsupportedModelError
from octavo.hub import embedded_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"
ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "someone/base"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model, to be changed."""
    copy = tmp_path / "model"
    shutil.copytree(embedded_model(), copy)
    return copy


def load(folder: Path) -> list[str]:
    """The warnings of a model that loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with LLM(folder, max_model_len=64, threads=1) as made:
            found: list[str] = made.info()["warnings"]
    return found


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(ADAPTER if name == "adapter_config.json" else "{}")

    return change


def instead(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        without_weights(folder)
        for name in names:
            (folder / name).write_text(ADAPTER if name == "adapter_config.json" else "x")

    return change


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def tokenizer_model(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


MLX = {"group_size": 64, "bits": 4}
OLD = {"format": "pack-quantized", "quant_method": "compressed-tensors"}
KINDS: dict[str, tuple[Callable[[Path], None], type[OctavoError], str]] = {
    "pointer of weights": (text("model.safetensors", POINTER), ModelNotFoundError, "Git LFS pointer.*git lfs pull"),
    "pointer of a config": (text("config.json", POINTER), ModelNotFoundError, "Git LFS pointer"),
    "pointer of a tokenizer": (text("tokenizer.json", POINTER), ModelNotFoundError, "Git LFS pointer"),
    "adapter": (
        only("adapter_config.json", "adapter_model.safetensors"),
        ModelNotFoundError,
        "PEFT.*someone/base.*merge",
    ),
    "adapter with a config": (instead("adapter_config.json", "adapter_model.safetensors"), ModelNotFoundError, "PEFT"),
    "shards without index": (instead("model-00001-of-00002.safetensors"), ModelNotFoundError, r"index\.json"),
    "another name": (instead("model.fp16.safetensors"), ModelNotFoundError, r"model\.fp16.*must be named"),
    "pickles": (instead("pytorch_model.bin"), ModelNotFoundError, r"pickles.*pytorch_model\.bin.*save_pretrained"),
    "shards of pickles": (instead("pytorch_model.bin.index.json"), ModelNotFoundError, "pickles"),
    "original weights": (
        instead("consolidated.safetensors"),
        ModelNotFoundError,
        "original weights of Meta or Mistral",
    ),
    "original folder": (only("params.json", "consolidated.00.pth"), ModelNotFoundError, r"params\.json.*original"),
    "GGUF": (only("model-Q4_K_M.gguf"), ModelNotFoundError, "GGUF.*made from"),
    "GGUF with a config": (instead("model-Q4_K_M.gguf"), ModelNotFoundError, "GGUF"),
    "ONNX": (instead("model.onnx"), ModelNotFoundError, "ONNX"),
    "TensorFlow": (instead("tf_model.h5"), ModelNotFoundError, "TensorFlow"),
    "inner folder": (only("checkpoint-500/config.json"), ModelNotFoundError, "checkpoint-500"),
    "cache of the hub": (only("snapshots/abc/config.json", "refs/main"), ModelNotFoundError, "snapshots/abc"),
    "empty": (only("README.md"), ModelNotFoundError, r"no config\.json"),
    "tokenizer.model": (tokenizer_model, ModelNotFoundError, r"tokenizer\.model.*AutoTokenizer"),
    "MLX": (config(quantization=MLX, quantization_config=MLX), UnsupportedModelError, "MLX.*made from"),
    "compression_config": (config(compression_config=OLD), UnsupportedModelError, "pack-quantized"),
    "attention to later tokens": (config(is_causal=False), UnsupportedModelError, "is_causal"),
    "trailing comma": (text("config.json", '{"a": 1,}'), CorruptModelError, "comma must not precede"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_named_with_the_remedy(kind: str, folder: Path) -> None:
    change, error, words = KINDS[kind]
    change(folder)
    with pytest.raises(error, match=words) as caught:
        load(folder)
    assert "Download or convert" not in str(caught.value) or kind == "trailing comma"


def test_an_adapter_beside_a_model_is_a_warning(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(ADAPTER)
    (warning,) = load(folder)
    assert "adapter" in warning
    assert "not applied" in warning


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN"])
def test_numbers_that_only_python_writes_are_read(name: str, number: str, folder: Path) -> None:
    file = folder / name
    content = file.read_text() if file.is_file() else "{}"
    extra = f'{{"router_jitter_noise": {number}, "time_step_limit": [0.0, {number}]'
    file.write_text(content.replace("{", extra + (", " if len(content) > 2 else ""), 1))
    assert load(folder) == []


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_read(name: str, folder: Path) -> None:
    file = folder / name
    content = file.read_text() if file.is_file() else "{}"
    file.write_text(content, encoding="utf-8-sig")
    assert load(folder) == []


@pytest.mark.parametrize("number", ["Infinity", "NaN"])
def test_a_key_that_is_read_takes_no_such_number(number: str, folder: Path) -> None:
    config(rms_norm_eps=float(number.lower()))(folder)
    with pytest.raises(CorruptModelError, match=f"rms_norm_eps is .*{number}"):
        load(folder)


@pytest.mark.parametrize("name", ["torch.float32", "torch.bfloat16", "float", "half", "float64", "double"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_names_of_torch_are_read(key: str, name: str, folder: Path) -> None:
    config(**{"dtype": None, "torch_dtype": None, key: name})(folder)
    assert load(folder) == []


def test_generation_keys_without_effect_are_warnings(folder: Path) -> None:
    keys = {"num_beams": 4, "stop_strings": ["END"], "no_repeat_ngram_size": 3, "suppress_tokens": [5]}
    neutral = {"temperature": 0.5, "typical_p": 1.0, "bad_words_ids": None, "num_beam_groups": 1, "min_length": 0}
    (folder / "generation_config.json").write_text(json.dumps(keys | neutral))
    found = load(folder)
    assert len(found) == len(keys)
    for key, value in keys.items():
        assert any(f"{key} {json.dumps(value, separators=(',', ':'))}" in text for text in found)
