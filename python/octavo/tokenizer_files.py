"""Reads the files beside a tokenizer: special tokens and the chat template, as the engine takes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from octavo.config import EngineConfig

__all__ = ["chat_template", "tokenizer_config"]


def tokenizer_config(model: Path, config: EngineConfig) -> dict[str, Any]:
    """tokenizer_config.json; empty without it."""
    try:
        found = json.loads((_folder(model, config) / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def chat_template(model: Path, config: EngineConfig) -> str | None:
    """The text of the model's chat template; None without one, or if it is not in a file of its own."""
    if config.chat_template is not None:
        return config.chat_template
    try:
        return (model / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError):
        given = tokenizer_config(model, config).get("chat_template")
    if isinstance(given, list):
        named = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}
        given = named.get("default")
    return given if isinstance(given, str) else None


def _folder(model: Path, config: EngineConfig) -> Path:
    if config.tokenizer is None:
        return model
    given = Path(os.fspath(config.tokenizer))
    return given.parent if given.is_file() else given
