"""Finds a model: a local folder, or a repository of the Hugging Face hub, which is downloaded once."""

from __future__ import annotations

import os
import re
from pathlib import Path

from octavo.errors import InvalidRequestError, MissingDependencyError, ModelNotFoundError

# Data files only: no pickles, no code.
_PATTERNS = [
    "*.json",
    "*.jinja",
    "model.safetensors",
    *(f"{stem}-[0-9]*-of-[0-9]*.safetensors" for stem in ("model", "model.safetensors", "pytorch_model")),
    "additional_chat_templates/*.jinja",
]
# A star also stands for slashes: what lies in folders is for other programs, but for the chat templates.
_NOT = ["*/*.json", "*/*.safetensors", "*/*/*", "[!a]*/*", "a[!d]*/*"]
_FILES = {
    ".gguf": "is a GGUF file of llama.cpp; give the folder of the original model, with its config.json",
    ".safetensors": "is a file of weights; give the folder that holds it beside config.json",
    ".bin": "is a PyTorch pickle, which can run code and is not read; give a folder with model.safetensors",
}
"""What is wrong with a file of this kind as a model."""
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def embedded_model() -> Path:
    """The folder of the small model that ships with octavo."""
    return Path(__file__).parent / "embedded"


def resolve_model(model: str | os.PathLike[str] | None, revision: str | None = None) -> Path:
    """The folder of `model`: the embedded one for None, a local folder as it is, else a hub repository.

    Raises:
        ModelNotFoundError: there is no such folder and no such repository.
        InvalidRequestError: a revision of a model that has none.
        MissingDependencyError: a hub id, and `huggingface_hub` is not installed.
    """
    if model is None:
        _refuse_revision(revision, "the embedded model")
        return embedded_model()
    if not isinstance(model, (str, os.PathLike)):
        raise InvalidRequestError(f"model is {model!r}: a folder, a hub id or None is expected")
    name = os.fspath(model)
    if not name:
        raise ModelNotFoundError(
            "no model: the name is empty; give a folder or a hub id, or None for the embedded model"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        _refuse_revision(revision, "a local folder")
        return path
    looks_local = path.exists() or path.is_absolute() or name.startswith((".", "~")) or not _REPO_ID.fullmatch(name)
    if looks_local:
        what = "does not exist"
        if path.exists():
            what = _FILES.get(path.suffix.lower(), "is a file; give the folder that holds config.json")
        raise ModelNotFoundError(f"no model at {name}: the path {what}")
    return _fetch(name, revision)


def _refuse_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise InvalidRequestError(f"revision is {revision!r}: only a hub id has revisions, and the model is {what}")


def _fetch(repo_id: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError(
            f"{repo_id!r} is no local folder; to fetch it from the Hugging Face hub install the extra: "
            "pip install 'octavo[hub]'"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=_PATTERNS, ignore_patterns=_NOT
        )
    except Exception as error:
        raise ModelNotFoundError(
            f"no model {repo_id!r}: it is no local folder, and the hub gave: {type(error).__name__}: {error}"
        ) from error
    return Path(folder)
