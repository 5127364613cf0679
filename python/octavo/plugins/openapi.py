"""The OpenAPI 3.1 document of a plugin, and how a host reads the schemas of operations from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from octavo.plugins.convert import Endpoint, Table
from octavo.plugins.idempotency import KEY_PATTERN
from octavo.plugins.problems import CODES
from octavo.plugins.protocol import (
    DIGEST_HEADER,
    HEALTH_PATH,
    IDEMPOTENCY_HEADER,
    JSON,
    PROBLEM_JSON,
    PROTOCOL_HEADER,
    SUPPORTED,
    invoke_path,
    supported_list,
)

MARK = "x-octavo-operation"
_PROBLEM_CODES = sorted({status for status, _ in CODES.values()} - {405})


def document(name: str, version: str, description: str, table: Table) -> dict[str, Any]:
    """The OpenAPI 3.1 document: one POST path for each operation of each API major."""
    newest = max((major for _, major in table), default=0)
    components: dict[str, Any] = {"Problem": _problem_schema()}
    paths: dict[str, Any] = {}
    for (operation, major), endpoint in table.items():
        # The id of the newest major is plain: an import of the document names the function so.
        unique = operation if major == newest else f"{operation}_v{major}"
        paths["/" + invoke_path(major, operation)] = {"post": _operation(endpoint, unique, components)}
    paths["/" + HEALTH_PATH] = {"get": _health()}
    info = {"title": name, "version": version, **({"description": description} if description else {})}
    return {
        "openapi": "3.1.0",
        "info": info,
        # Relative to the document itself, wherever the plugin is mounted.
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": components},
        "x-octavo-plugin": {"protocol": {str(major): minor for major, minor in SUPPORTED.items()}},
    }


def _operation(endpoint: Endpoint, unique: str, components: dict[str, Any]) -> dict[str, Any]:
    entry = endpoint.entry
    mark = {k: v for k, v in entry.to_json().items() if k not in ("description", "arguments", "result")}
    arguments = _hoisted(entry.arguments, f"{unique}_arguments", components)
    result = _hoisted(entry.result, f"{unique}_result", components)
    body = {"type": "object", "properties": {"arguments": arguments}, "required": ["arguments"]}
    answer = {
        "type": "object",
        "properties": {"result": result, "warnings": {"type": "array", "items": {"type": "string"}}},
        "required": ["result", "warnings"],
    }
    found: dict[str, Any] = {
        "operationId": unique,
        "parameters": _parameters(),
        "requestBody": {"required": True, "content": {JSON: {"schema": body}}},
        "responses": {
            "200": {"description": "The result.", "content": {JSON: {"schema": answer}}},
            **{str(status): _problem_response(status) for status in _PROBLEM_CODES},
        },
        MARK: mark,
    }
    if entry.description:
        # The description is complete: a reader of it alone misses nothing.
        found |= {"summary": entry.description.partition("\n")[0], "description": entry.description}
    if entry.deprecated is not None:
        found["deprecated"] = True
    if entry.aliases:
        found["x-octavo-aliases"] = {name: list(former) for name, former in entry.aliases.items()}
    return found


def _parameters() -> list[dict[str, Any]]:
    majors = "|".join(map(str, sorted(SUPPORTED)))
    # A list that names a supported major; the other items do not count.
    version = {"type": "string", "pattern": rf"(^|, ?)({majors})(\.(0|[1-9][0-9]{{0,3}}))?($|,)", "maxLength": 200}
    digest = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
    key = {"type": "string", "pattern": KEY_PATTERN}
    rows = [
        (
            PROTOCOL_HEADER,
            f"Protocol majors of the client, such as 1. Supported: {', '.join(supported_list())}",
            version,
        ),
        (DIGEST_HEADER, "The digest of the schema that the arguments were made for", digest),
        (IDEMPOTENCY_HEADER, "A repeated request with the same key gets the first one's answer", key),
    ]
    return [
        {"name": name, "in": "header", "required": False, "description": words + ".", "schema": schema}
        for name, words, schema in rows
    ]


def _problem_response(status: int) -> dict[str, Any]:
    titles = [title for found, title in CODES.values() if found == status]
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": "; ".join(titles) + ".", "content": {PROBLEM_JSON: {"schema": schema}}}


def _problem_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "A problem (RFC 9457).",
        "properties": {
            "type": {"type": "string", "pattern": "^urn:octavo-plugin:[a-z-]+$"},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string"},
        },
        "required": ["type", "status"],
    }


def _health() -> dict[str, Any]:
    answer = {"type": "object", "properties": {"status": {"const": "ok"}}, "required": ["status"]}
    return {
        "operationId": "plugin_health",
        "summary": "Whether the plugin works.",
        "responses": {
            "200": {"description": "It works.", "content": {JSON: {"schema": answer}}},
            "503": _problem_response(503),
        },
        "x-octavo-internal": True,
    }


def _hoisted(schema: Any, name: str, components: dict[str, Any]) -> Any:
    """The schema with its `$defs` moved to the components: `#/...` means the whole document there."""
    if not isinstance(schema, dict) or "$defs" not in schema:
        return schema
    for key, value in schema["$defs"].items():
        components[f"{name}_{key}"] = _moved(value, name)
    return _moved({k: v for k, v in schema.items() if k != "$defs"}, name)


def _moved(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        found = {key: _moved(item, name) for key, item in value.items()}
        ref = value.get("$ref")
        if isinstance(ref, str) and (match := re.fullmatch(r"#/\$defs/(\w+)", ref)):
            found["$ref"] = f"#/components/schemas/{name}_{match[1]}"
        return found
    return [_moved(item, name) for item in value] if isinstance(value, list) else value


def to_bytes(value: dict[str, Any]) -> bytes:
    """The document as it is sent, and as its sha256 is computed."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
