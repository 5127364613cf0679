"""Where a model is looked for, without a network."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from octavo.errors import MissingDependencyError, ModelNotFoundError
from octavo.hub import embedded_model, resolve_model


def test_none_is_the_embedded_model() -> None:
    folder = resolve_model(None)
    assert folder == embedded_model()
    assert (folder / "config.json").is_file()


def test_local_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    assert resolve_model(tmp_path / "model") == tmp_path / "model"
    assert resolve_model(str(tmp_path / "model")) == tmp_path / "model"
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model") == Path("model"), "a folder goes before a hub id of the same name"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/model") == tmp_path / "model"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "with space", "../up", ""])
def test_what_can_only_be_a_path(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nowhere|no model"):
        resolve_model(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        resolve_model(tmp_path / "model.gguf")


def test_hub_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"octavo\[hub\]") as caught:
        resolve_model("someone/model")
    assert isinstance(caught.value, ImportError)


def fake_hub(monkeypatch: pytest.MonkeyPatch, download: Any) -> None:
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_only_data_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    fake_hub(monkeypatch, download)
    assert resolve_model("someone/model", "v1") == tmp_path
    assert asked["repo_id"] == "someone/model"
    assert asked["revision"] == "v1"
    patterns = " ".join(asked["allow_patterns"])
    assert "safetensors" in patterns
    assert not any(kind in patterns for kind in (".py", ".bin", ".pt", ".pkl", "*.*"))


REPOSITORY = {
    "config.json": True,
    "generation_config.json": True,
    "tokenizer.json": True,
    "tokenizer_config.json": True,
    "chat_template.jinja": True,
    "additional_chat_templates/tool_use.jinja": True,
    "additional_chat_templates/rag.jinja": True,
    "model.safetensors": True,
    "model.safetensors.index.json": True,
    "model-00001-of-00003.safetensors": True,
    "model.safetensors-00002-of-00014.safetensors": True,
    "pytorch_model-00001-of-00002.safetensors": True,
    "model.fp16.safetensors": False,
    "model.fp16-00001-of-00002.safetensors": False,
    "adapter_model.safetensors": False,
    "consolidated.safetensors": False,
    "consolidated-00001-of-00002.safetensors": False,
    "pytorch_model.bin": False,
    "modeling.py": False,
    "onnx/config.json": False,
    "onnx/chat_template.jinja": False,
    "original/params.json": False,
    "additional/model.safetensors": False,
    "checkpoint-500/additional_chat_templates/tool_use.jinja": False,
    "assets/x.jinja": False,
}


@pytest.mark.parametrize(("name", "fetched"), REPOSITORY.items())
def test_files_of_the_model_are_fetched_and_no_copies(
    name: str, fetched: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    utils = pytest.importorskip("huggingface_hub.utils")
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options)
        return str(tmp_path)

    fake_hub(monkeypatch, download)
    resolve_model("someone/model")
    patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
    assert list(utils.filter_repo_objects([name], **patterns)) == ([name] if fetched else [])


@pytest.mark.parametrize(
    ("name", "words"), [("m.gguf", "GGUF"), ("model.safetensors", "folder that holds it"), ("model.bin", "pickle")]
)
def test_files_are_named_for_what_they_are(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match=words):
        resolve_model(tmp_path / name)


def test_hub_failures_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo_id: str, **options: Any) -> str:
        raise OSError("offline mode is on")

    fake_hub(monkeypatch, download)
    with pytest.raises(ModelNotFoundError, match=r"someone/model.*offline mode is on"):
        resolve_model("someone/model")
