"""What an adapter is, and whether it fits a model: for `octavo info --lora`."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from octavo.errors import OctavoError
from octavo.llm import LLM

# Larger files are no adapters that the engine would take.
_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 16 << 20


def adapter_facts(llm: LLM, path: str) -> dict[str, Any]:
    """Facts of the adapter at `path`, as its files state them, and whether `llm` can use it."""
    config = _config(Path(path))
    facts: dict[str, Any] = {
        "path": path,
        "base_model": config.get("base_model_name_or_path"),
        "modules": _modules(Path(path)),
        "lora_alpha": config.get("lora_alpha"),
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
    }
    try:
        adapter = llm.load_adapter("adapter", path)
    except OctavoError as error:
        return {**facts, "rank": config.get("r"), "fits": False, "problem": str(error)}
    return {**facts, "rank": adapter.rank, "bytes": adapter.bytes, "digest": adapter.digest, "fits": True}


def _config(folder: Path) -> dict[str, Any]:
    """adapter_config.json; empty if it cannot be read, which loading the adapter reports."""
    try:
        with (folder / "adapter_config.json").open("rb") as file:
            found = json.loads(file.read(_MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _modules(folder: Path) -> list[str]:
    """The last parts of the names of the modules that have a LoRA, in order."""
    try:
        with (folder / "adapter_model.safetensors").open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            names = json.loads(file.read(min(size, _MAX_HEADER_BYTES)))
    except (OSError, ValueError, RecursionError, struct.error):
        return []
    found = (name.partition(".lora_A")[0].rpartition(".")[2] for name in names if ".lora_A" in name)
    return sorted(set(found))
