"""The schemas of a plugin's last release, and which changes since then break its callers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.plugins.conformance.context import Context
from octavo.plugins.conformance.target import Reply
from octavo.plugins.protocol import JSON, MANIFEST_PATH, api_version

if TYPE_CHECKING:
    from octavo.plugins.plugin import Plugin

_MEMBERS = ("digest", "consequential", "aliases", "arguments", "result")
_MAJORS_KEPT = 2


class _Documents:
    """A plugin's manifest and document, whatever its `authorize` asks for."""

    def __init__(self, plugin: Plugin) -> None:
        self.name, self._plugin = plugin.name, plugin

    def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        value = self._plugin.manifest() if path == MANIFEST_PATH else self._plugin.openapi()
        return Reply(200, {"content-type": JSON}, json.dumps(value).encode())


def release(plugin: Plugin) -> dict[str, Any]:
    """`{"version": "1.0.0", "operations": {"v1/get_forecast": {"digest": .., "arguments": .., ..}}}`."""
    context = Context(_Documents(plugin))
    operations = {}
    for entry in context.manifest.operations:
        arguments, result = context.schemas(entry)
        aliases = {name: list(former) for name, former in entry.aliases.items()}
        values = (entry.digest, entry.consequential, aliases, arguments, result)
        operations[f"v{entry.major}/{entry.id}"] = dict(zip(_MEMBERS, values, strict=True))
    return {"version": plugin.version, "operations": operations}


def read(path: Path) -> dict[str, Any]:
    """The file of a release.

    Raises:
        InvalidRequestError: it cannot be read, or is no such file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} cannot be read: {error}") from None
    operations = value.get("operations") if isinstance(value, dict) else None
    if not isinstance(operations, dict) or api_version(str(value.get("version"))) is None:
        raise InvalidRequestError(f"{path} has no version and operations of a release")
    if not all(_is_entry(name, entry) for name, entry in operations.items()):
        raise InvalidRequestError(f"{path} has an operation without digest, flags or schemas")
    return dict(value)


def _is_entry(name: str, entry: object) -> bool:
    known = name.startswith("v") and name.partition("/")[0][1:].isdecimal()
    return known and isinstance(entry, dict) and set(_MEMBERS) <= entry.keys() and isinstance(entry["aliases"], dict)


def changes(released: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What a release may not do, one sentence each.

    A major in the window keeps its operations, their arguments or aliases of them, types and results. Other changes of
    a schema need a higher minor.

    Args:
        released, current: as `release` returns.
    """
    old_version, version = api_version(str(released["version"])), api_version(str(current["version"]))
    assert old_version is not None
    assert version is not None
    found = []
    if version < old_version:
        found.append(f"the version {current['version']} is lower than the released {released['version']}")
    for path, old in released["operations"].items():
        new = current["operations"].get(path)
        if new is None:
            if int(path.partition("/")[0][1:]) >= version[0] - _MAJORS_KEPT:
                found.append(f"{path} is gone: callers of version {released['version']} need it; add a converter")
            continue
        found += [f"{path}: {what}: this needs the next major, and a converter" for what in _broken(old, new)]
        if any(old[name] != new[name] for name in ("digest", "consequential")) and version <= old_version:
            found.append(
                f"the schema of {path} changed, and the version {current['version']} is not higher than"
                f" {released['version']} by a minor or a major: raise it"
            )
    return found


def _broken(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What callers of the old schema cannot use any more."""
    before, after = _properties(old["arguments"]), _properties(new["arguments"])
    former = {alias: name for name, aliases in new["aliases"].items() for alias in aliases}
    for name, schema in before.items():
        kept = name if name in after else former.get(name)
        if kept is None:
            yield f"the argument {name} is gone, and no alias names it"
        elif kept not in after or not _types(schema) <= _types(after[kept]):
            yield f"the argument {name} has another type"
    for name, aliases in old["aliases"].items():
        for alias in sorted(set(aliases) - former.keys() - after.keys()):
            yield f"{name} has lost its alias {alias}"
    # A result may grow, and each part may have fewer types.
    if not _types(new["result"]) <= _types(old["result"]):
        yield "the result has another type"
    results = _properties(new["result"])
    for name, schema in _properties(old["result"]).items():
        if name not in results:
            yield f"the result has lost {name}"
        elif not _types(results[name]) <= _types(schema):
            yield f"{name} of the result has another type"


def _properties(schema: Any) -> dict[str, Any]:
    found = schema.get("properties") if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else {}


_ALL_TYPES = frozenset(("null", "boolean", "integer", "fraction", "string", "array", "object"))


def _types(schema: Any) -> frozenset[str]:
    """The types that a schema accepts at most; a number is an integer or has a fraction."""
    if not isinstance(schema, dict):
        return frozenset() if schema is False else _ALL_TYPES
    found = _ALL_TYPES
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        found = frozenset(each for kind in kinds for each in (("integer", "fraction") if kind == "number" else (kind,)))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            found &= frozenset[str]().union(*map(_types, schema[key]))
    return found
