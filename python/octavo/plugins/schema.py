"""JSON Schemas of operations: references, the canonical form, digests, and the validation of values. Pure: no I/O."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.plugins.steps import step

# Schemas with more nodes are refused: references can multiply a small document without end.
MAX_NODES = 50_000
MAX_REFERENCES = 1_000
# The digest of a recursive schema takes one round over its definitions for each of them.
MAX_RECURSIVE_NODES = 1_000_000
_MAX_DEPTH = 100

# Keywords whose value is a schema, a list of schemas, or a mapping of names to schemas.
_OF_OBJECTS = ("additionalProperties", "unevaluatedProperties", "propertyNames")
_OF_ARRAYS = ("items", "additionalItems", "unevaluatedItems", "contains")
ONE = frozenset((*_OF_OBJECTS, *_OF_ARRAYS, "not", "if", "then", "else", "contentSchema"))
MANY = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
NAMED = frozenset(("properties", "patternProperties", "dependentSchemas", "$defs", "definitions"))
# Keywords that change no valid value. A changed sentence is no drift.
_WORDS = ("title", "description", "examples", "example", "$comment", "externalDocs", "xml")
_NAMES = ("$schema", "$id", "$anchor", "$defs", "definitions")
_ANNOTATIONS = frozenset((*_WORDS, *_NAMES, "deprecated", "readOnly", "writeOnly"))
# Keywords whose lists are sets.
_SETS = frozenset(("required", "enum", "type", "allOf", "anyOf", "oneOf"))


class SchemaError(InvalidRequestError):
    """A schema that cannot be used; the message names the place and the remedy."""


def dereference(schema: Any, root: Any = None) -> Any:
    """The schema with each local reference replaced by its target.

    A recursive schema cannot be written out: its parts stay references, to `#/$defs/1` and so on of the result.

    Args:
        root: the document that `#/...` points into; None: `schema` itself.

    Raises:
        SchemaError: a reference that is not local or has no target, or a schema that is too large.
    """
    return _Expander(schema if root is None else root).whole(schema)


def canonical(schema: Any, root: Any = None) -> Any:
    """The canonical form: dereferenced, without descriptions, titles and examples; sets are sorted.

    Schemas with the same canonical form accept the same values and have the same defaults. The reference to a recursive
    schema becomes a hash of what it describes, thus neither names nor the order of definitions count.

    Raises:
        SchemaError: as `dereference`.
    """
    whole = dereference(schema, root)
    defs = whole.get("$defs", {}) if isinstance(whole, dict) else {}
    hashes = dict.fromkeys((f"#/$defs/{name}" for name in defs), "")
    if len(defs) * sum(1 for _ in _nodes(defs)) > MAX_RECURSIVE_NODES:
        raise SchemaError(f"the schema has {len(defs)} large definitions that refer to themselves: make it smaller")
    # Each round separates schemas that differ one reference further away.
    for _ in hashes:
        hashes = {ref: _hash(_canonical(defs[ref.rpartition("/")[2]], hashes)) for ref in hashes}
    return _canonical(whole, hashes)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; a number with an integer value has no fraction.

    Raises:
        SchemaError: `value` has a number that JSON has not (NaN, Infinity), or nests too deep.
    """
    try:
        return json.dumps(_numbers(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise SchemaError(f"the schema holds a value that JSON cannot hold: {error}") from None


def digest(arguments: Any, result: Any, root: Any = None) -> str:
    """`sha256:` and the digest of an operation: of the canonical schemas of its arguments and its result.

    Raises:
        SchemaError: as `dereference`.
    """
    return "sha256:" + _hash({"arguments": canonical(arguments, root), "result": canonical(result, root)})


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def _nodes(value: Any) -> Iterator[Any]:
    """All parts of a JSON value."""
    todo = [value]
    while todo:
        step()
        part = todo.pop()
        yield part
        todo += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def _recursive(uses: Mapping[str, list[str]]) -> set[str]:
    """The definitions that refer to themselves, directly or through others.

    Tarjan's strongly connected components (SIAM J. Comput. 1, 1972), without recursion.
    """
    found: set[str] = set()
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    open_: dict[str, None] = {}
    for root in uses:
        todo = [] if root in index else [(root, iter(uses[root]))]
        while todo:
            ref, rest = todo[-1]
            if ref not in index:
                index[ref] = low[ref] = len(index)
                open_[ref] = None
            for used in rest:
                step()
                if used == ref:
                    found.add(ref)
                if used not in index:
                    todo.append((used, iter(uses[used])))
                    break
                if used in open_:
                    low[ref] = min(low[ref], index[used])
            else:
                todo.pop()
                if todo:
                    low[todo[-1][0]] = min(low[todo[-1][0]], low[ref])
                if low[ref] == index[ref]:
                    component = [open_.popitem()[0]]
                    while component[-1] != ref:
                        component.append(open_.popitem()[0])
                    found |= set(component) if len(component) > 1 else set()
    return found


def pointer(path: Iterable[str | int]) -> str:
    """The JSON pointer (RFC 6901) of a path; "" is the whole value."""
    return "".join("/" + str(p).replace("~", "~0").replace("/", "~1") for p in path)


class _Expander:
    """Replaces references. Those to recursive schemas become references to `$defs`."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._nodes = 0
        # Recursive targets -> their names in `$defs`, in order of discovery.
        self.recursive: dict[str, str] = {}

    def whole(self, schema: Any) -> Any:
        self.recursive = {ref: str(i + 1) for i, ref in enumerate(self._recursive(schema))}
        result = self._schema(schema, 0)
        if not self.recursive:
            return result
        result = result if isinstance(result, dict) else {"allOf": [result]}
        return {**result, "$defs": {name: self._schema(self._target(r), 0) for r, name in self.recursive.items()}}

    def _recursive(self, schema: Any) -> list[str]:
        """The references that reach themselves."""
        uses: dict[str, list[str]] = {}
        todo = list(references(schema))[::-1]
        while todo:
            ref = todo.pop()
            if ref not in uses:
                uses[ref] = list(dict.fromkeys(references(self._target(ref))))
                todo += uses[ref][::-1]
                if len(uses) > MAX_REFERENCES:
                    raise SchemaError(f"the schema refers to more than {MAX_REFERENCES} definitions: make it smaller")
        recursive = _recursive(uses)
        return [ref for ref in uses if ref in recursive]

    def _schema(self, schema: Any, depth: int) -> Any:
        step()
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > _MAX_DEPTH:
            raise SchemaError(
                f"the schema has more than {MAX_NODES} parts, or nests deeper than {_MAX_DEPTH} levels, with its"
                " references written out: make it smaller"
            )
        if not isinstance(schema, dict):
            return schema
        ref = schema.get("$ref")
        rest = {k: v for k, v in schema.items() if k not in ("$ref", "$defs", "definitions")}
        below = {key: self._keyword(key, value, depth) for key, value in rest.items()}
        if not isinstance(ref, str):
            return below
        if ref in self.recursive:
            return {"$ref": f"#/$defs/{self.recursive[ref]}", **below}
        target = self._schema(self._target(ref), depth + 1)
        if not below:
            return target
        if isinstance(target, dict) and below.keys() <= _ANNOTATIONS | {"default"}:
            return {**target, **below}
        # Members beside a reference hold together with it, each for itself: `additionalProperties` sees its own object.
        return {"allOf": [target, below]}

    def _keyword(self, key: str, value: Any, depth: int) -> Any:
        if key in ONE and isinstance(value, (dict, bool)):
            return self._schema(value, depth + 1)
        if (key in MANY or key == "items") and isinstance(value, list):
            return [self._schema(item, depth + 1) for item in value]
        if key in NAMED and isinstance(value, dict):
            return {name: self._schema(item, depth + 1) for name, item in value.items()}
        return value

    def _target(self, ref: str) -> Any:
        if ref != "#" and not ref.startswith("#/"):
            raise SchemaError(
                f"the schema refers to {ref[:200]!r}: only references within the document, #/..., are used"
            )
        found = self._root
        for part in ref.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isascii() and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            else:
                raise SchemaError(f"the schema refers to {ref[:200]!r}, which the document does not have")
        if not isinstance(found, (dict, bool)):
            raise SchemaError(f"the schema refers to {ref[:200]!r}, which is no schema")
        return found


def parts(schema: Any) -> Iterator[Any]:
    """The schemas directly below a schema; values of `const`, `enum` and `default` are no schemas."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in ONE and isinstance(value, (dict, bool)):
            yield value
        elif (key in MANY or key == "items") and isinstance(value, list):
            yield from value
        elif key in NAMED and key not in ("$defs", "definitions") and isinstance(value, dict):
            yield from value.values()


def references(schema: Any) -> Iterator[str]:
    """The `$ref`s in a schema, without those of its unused definitions."""
    todo, seen = [schema], 0
    while todo:
        part = todo.pop()
        step()
        seen += 1
        if seen > MAX_NODES:
            raise SchemaError(f"the schema has more than {MAX_NODES} parts: make it smaller")
        if isinstance(part, dict) and isinstance(part.get("$ref"), str):
            yield part["$ref"]
        todo += parts(part)


def _canonical(schema: Any, hashes: Mapping[str, str]) -> Any:
    """`hashes`: reference -> hash of the recursive schema that it names."""
    step()
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _ANNOTATIONS or key.startswith("x-"):
            continue
        if key == "$ref" and isinstance(value, str):
            found[key] = hashes[value]
        elif key in ONE and isinstance(value, dict):
            found[key] = _canonical(value, hashes)
        elif (key in MANY or key == "items") and isinstance(value, list):
            found[key] = [_canonical(part, hashes) for part in value]
        elif key in NAMED and isinstance(value, dict):
            found[key] = {name: _canonical(part, hashes) for name, part in value.items()}
        elif key == "dependentRequired" and isinstance(value, dict):
            found[key] = {name: _sorted(part) for name, part in value.items()}
        else:
            found[key] = value
        if key in _SETS:
            found[key] = _sorted(found[key])
    if found.get("required") == []:
        del found["required"]
    return found


def _sorted(value: Any) -> Any:
    return sorted(value, key=canonical_json) if isinstance(value, list) else value


def _numbers(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else value
