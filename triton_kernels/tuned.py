"""Configurations that were measured on a device: the small tables that launchers read, and what writes them.

A table is JSON: op -> key -> the fields of a configuration, as lists. `python -m octavo.triton_kernels.tune` measures
one and writes it to `user_folder()`; tables that ship with octavo lie in `shipped_folder()`. What no table holds takes
the launcher's own default, so nothing is ever tuned at a user's start. `deterministic=True` reads no table: bits must
not depend on what was measured.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from .launch import INTERPRETED, recording

Fields = tuple[int, ...]
Table = dict[str, dict[str, Fields]]

_forced: ContextVar[Mapping[tuple[str, str], Fields] | None] = ContextVar("octavo_triton_forced", default=None)


def shipped_folder() -> Path:
    """Tables that come with the package."""
    return Path(__file__).parent / "tables"


def user_folder() -> Path:
    """Tables measured on this machine: $XDG_CACHE_HOME/octavo/triton, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo" / "triton"


def device_name(device: torch.device) -> str:
    """The name of a device's table: its model, letters and digits only."""
    if device.type != "cuda":
        return "interpreter"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def lookup(op: str, key: str, device: torch.device) -> Fields | None:
    """The configuration for a key of an op, if one was measured on this kind of device."""
    forced = (_forced.get() or {}).get((op, key))
    if forced is not None or recording() or (device.type != "cuda" and not INTERPRETED):
        return forced
    return _of_device(device.index or 0, device.type).get(op, {}).get(key)


@contextmanager
def forced(op: str, key: str, fields: Fields) -> Iterator[None]:
    """Inside, launchers take this configuration for this key."""
    token = _forced.set({**(_forced.get() or {}), (op, key): fields})
    try:
        yield
    finally:
        _forced.reset(token)


@functools.cache
def _of_device(index: int, kind: str) -> Table:
    name = device_name(torch.device(kind, index) if kind == "cuda" else torch.device(kind))
    merged: Table = {}
    for folder in (shipped_folder(), user_folder()):
        for op, keys in read(folder / f"{name}.json").items():
            merged.setdefault(op, {}).update(keys)
    return merged


def forget() -> None:
    """Reads the tables anew when they are next asked for."""
    _of_device.cache_clear()


def read(file: Path) -> Table:
    """A table; empty if there is no file, or none that can be understood: a default then serves as well."""
    try:
        tables = json.loads(file.read_text(encoding="utf-8"))["configurations"]
        return {
            op: {key: tuple(int(field) for field in fields) for key, fields in keys.items()}
            for op, keys in tables.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write(file: Path, table: Table, facts: Mapping[str, str]) -> None:
    """Writes a table with facts about its measurement; keys that the file has beside these stay."""
    merged = read(file)
    for op, keys in table.items():
        merged.setdefault(op, {}).update(keys)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**facts, "configurations": merged}, indent=1, sort_keys=True) + "\n"
    fresh = file.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)
