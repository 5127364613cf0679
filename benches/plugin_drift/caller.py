"""The simulated model: it reads a schema as a model does, by descriptions, and writes arguments for what a user wants.

It sees only what a host shows: the parameters of a tool. It reads perfectly, since the simulation measures hosts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benches.plugin_drift.concepts import BY_PHRASE, Meaning, Value, encode


@dataclass(frozen=True)
class Intent:
    """What a user wants: `wanted` must be said; `on_request` is said only where a schema requires it."""

    wanted: Meaning
    on_request: Meaning = field(default_factory=dict)


@dataclass(frozen=True)
class Generated:
    """Arguments, and what they mean under the schema that was shown: shown defaults included.

    Attributes:
        seen: each concept in the schema -> its default, None if it has none.
    """

    arguments: dict[str, Any]
    meaning: Meaning
    seen: dict[str, Value | None]


def generate(parameters: dict[str, Any], intent: Intent) -> Generated | None:
    """Arguments under a schema; None: the schema cannot express the intent, and the model says that in words."""
    required = set(parameters.get("required", ()))
    arguments: dict[str, Any] = {}
    meaning: Meaning = {}
    seen: dict[str, Value | None] = {}
    for name, part in parameters.get("properties", {}).items():
        concept = BY_PHRASE.get(part.get("description", ""))
        if concept is None:
            if name in required:
                return None
            continue
        seen[concept.id] = _shown(part) if "default" in part else None
        value = intent.wanted.get(concept.id)
        if value is None and name in required and "default" not in part:
            value = intent.on_request.get(concept.id)
        if value is None:
            if "default" in part:
                meaning[concept.id] = _shown(part)
                if name in required:
                    arguments[name] = part["default"]
            elif name in required:
                return None
            continue
        encoded = _encoded(value, part)
        if encoded is None:
            return None
        arguments[name], meaning[concept.id] = encoded, value
    return Generated(arguments, meaning, seen) if intent.wanted.keys() <= meaning.keys() else None


def _shown(part: dict[str, Any]) -> Value:
    """The value that a default stands for."""
    default = part["default"]
    if part["type"] == "array":
        default = default[0]
    concept = BY_PHRASE[part["description"]]
    if part["type"] == "string" and concept.kind == "count":
        return int(default)
    return float(default) if concept.kind == "share" else default


def _encoded(value: Value, part: dict[str, Any]) -> Any:
    """The value as the schema wants it; None if the schema does not accept it."""
    if part["type"] == "array":
        inner = _encoded(value, part["items"])
        return None if inner is None else [inner]
    if "enum" in part and value not in part["enum"]:
        return None
    if not isinstance(value, (str, bool)) and not part.get("minimum", value) <= value <= part.get("maximum", value):
        return None
    return encode(value, "text") if part["type"] == "string" else value
