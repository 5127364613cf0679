"""Validates values against JSON Schemas, without network access and without patterns that take forever."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import MissingDependencyError
from octavo.plugins.schema import SchemaError, canonical_json, parts, pointer
from octavo.plugins.steps import OutOfTimeError, step

# More errors of one value are not listed.
MAX_FAULTS = 32
_LONGEST_DETAIL = 300
# Schemas that passed their check: SHA-256 of their JSON, the latest ones. A schema itself may have megabytes.
_KEPT = 1024
_passed: OrderedDict[bytes, None] = OrderedDict()


@dataclass(frozen=True)
class Fault:
    """Why a value does not fit its schema.

    Attributes:
        pointer: where in the value, as a JSON pointer (RFC 6901); "" is the whole value.
        detail: what is wrong there.
        keyword: the schema's keyword that failed, such as `required`; "" if it is not known.
        expected: that keyword's value in the schema.
    """

    pointer: str
    detail: str
    keyword: str = ""
    expected: Any = field(default=None, compare=False)

    def to_json(self) -> dict[str, str]:
        return {"pointer": self.pointer, "detail": self.detail}


def faults(schema: Any, value: Any) -> list[Fault]:
    """Why `value` does not fit `schema`; empty if it fits. At most `MAX_FAULTS`.

    JSON Schema 2020-12. References must be local (`dereference` first). `format` is an annotation. Patterns are matched
    in linear time; a pattern that this cannot do, with look-around or back-references, is left to the plugin.

    Raises:
        SchemaError: the schema itself is invalid.
        OutOfTimeError: the deadline of the work has passed, see `octavo.plugins.steps`.
        MissingDependencyError: jsonschema is not installed.
    """
    checker = _validator_class()
    check_schema(schema)
    found: list[Fault] = []
    try:
        for error in checker(schema, registry=_registry()).iter_errors(value):
            found.append(_fault(error))
            if len(found) == MAX_FAULTS:
                break
    except RecursionError:
        return [Fault("", "the value or its schema nests too deep to be checked")]
    except OutOfTimeError:
        raise
    except Exception as error:
        # A reference without a target, or a keyword whose value has the wrong type.
        raise SchemaError(f"the schema cannot be used: {str(error)[:_LONGEST_DETAIL]}") from None
    return sorted(found, key=lambda fault: fault.pointer)


def check_schema(schema: Any) -> None:
    """Raises SchemaError if the schema itself is invalid. Raises as `faults`."""
    try:
        text = json.dumps(schema)
    except (RecursionError, TypeError, ValueError):
        raise SchemaError("the schema is no JSON, or nests too deep to be checked: make it flatter") from None
    # Schemas come again with each call, and their check takes longer than that of the values.
    mark = hashlib.sha256(text.encode()).digest()
    if mark in _passed:
        return
    _check(schema)
    _passed[mark] = None
    while len(_passed) > _KEPT:
        _passed.popitem(last=False)


def matches(schema: Any, value: Any) -> bool:
    """Whether `value` fits `schema`. Raises as `faults`."""
    return not faults(schema, value)


def _fault(error: Any) -> Fault:
    keyword = str(error.validator)
    detail = str(error.message)
    if len(detail) > _LONGEST_DETAIL:
        detail = detail[:_LONGEST_DETAIL] + "..."
    return Fault(pointer(error.absolute_path), detail, keyword, error.validator_value)


def _check(schema: Any) -> None:
    checker = _validator_class()
    try:
        error = next(checker(checker.META_SCHEMA, registry=_meta_registry()).iter_errors(schema), None)
    except RecursionError:
        raise SchemaError("the schema nests too deep to be checked: make it flatter") from None
    if error is not None:
        where = pointer(error.absolute_path) or "its root"
        raise SchemaError(f"the schema is invalid at {where}: {str(error.message)[:_LONGEST_DETAIL]}")
    _check_unevaluated(schema)


def _check_unevaluated(schema: Any) -> None:
    """jsonschema matches these two together by Python's `re`, which may take for ever."""
    todo, named = [schema], set()
    while todo:
        step()
        part = todo.pop()
        if isinstance(part, dict):
            named |= part.keys() & {"unevaluatedProperties", "patternProperties"}
            todo += [*parts(part), *_values(part.get("$defs")), *_values(part.get("definitions"))]
    if len(named) == 2:
        raise SchemaError("the schema has unevaluatedProperties and patternProperties: use one of the two")


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


@functools.cache
def _validator_class() -> Any:
    try:
        import jsonschema
    except ImportError:
        raise MissingDependencyError(
            "jsonschema is needed to check arguments of plugins: pip install 'octavo[plugins]'"
        ) from None
    own = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
        "enum": _enum,
    }
    validator = jsonschema.Draft202012Validator
    keywords = {name: _counted(own.get(name, keyword)) for name, keyword in validator.VALIDATORS.items()}
    return jsonschema.validators.extend(validator, keywords)


def _counted(keyword: Callable[..., Any]) -> Callable[..., Any]:
    """A keyword whose work counts: it goes over its own members in any case."""

    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        step(1 + (len(value) if isinstance(value, (dict, list)) else 0))
        return keyword(validator, value, instance, schema)

    return counted


@functools.cache
def _registry() -> Any:
    # An empty registry: jsonschema's own fetches remote references.
    import referencing

    return referencing.Registry()


@functools.cache
def _meta_registry() -> Any:
    import jsonschema_specifications

    return jsonschema_specifications.REGISTRY


def _pattern(validator: Any, pattern: Any, value: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if validator.is_type(value, "string") and _search(str(pattern), value) is False:
        yield ValidationError(f"{value[:80]!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], value: Any, _schema: Any) -> Iterator[Any]:
    if validator.is_type(value, "object"):
        for pattern, schema in patterns.items():
            for name, item in value.items():
                if _search(pattern, name):
                    yield from validator.descend(item, schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, additional: Any, value: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if not validator.is_type(value, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extras = []
    for name in value:
        step(1 + len(patterns))
        if name not in named and not any(_search(pattern, name) for pattern in patterns):
            extras.append(name)
    if isinstance(additional, dict):
        for name in extras:
            yield from validator.descend(value[name], additional, path=name)
    elif additional is False and extras:
        shown = ", ".join(repr(name[:80]) for name in extras[:8])
        verb = "was" if len(extras) == 1 else "were"
        yield ValidationError(f"Additional properties are not allowed ({shown} {verb} unexpected)")


def _unique_items(validator: Any, unique: Any, value: Any, _schema: Any) -> Iterator[Any]:
    """In linear time: jsonschema compares each item with each other one."""
    from jsonschema import ValidationError

    if not unique or not validator.is_type(value, "array"):
        return
    seen: set[str] = set()
    for item in value:
        step()
        text = canonical_json(item)
        if text in seen:
            yield ValidationError(f"{str(item)[:80]} stands twice: the items must differ")
            return
        seen.add(text)


def _enum(_validator: Any, options: Any, value: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if any(_equal(option, value) for option in options):
        return
    shown: list[str] = []
    for option in options:
        if sum(map(len, shown)) > _LONGEST_DETAIL:
            shown.append("...")
            break
        shown.append(repr(option)[:_LONGEST_DETAIL])
    yield ValidationError(f"{repr(value)[:80]} is not one of [{', '.join(shown)}]")


def _equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; `true` is not 1."""
    if isinstance(one, (dict, list)) or isinstance(other, (dict, list)):
        return type(one) is type(other) and len(one) == len(other) and canonical_json(one) == canonical_json(other)
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _search(pattern: str, text: str) -> bool | None:
    """Whether the pattern occurs in the text; None: the pattern cannot be matched in linear time."""
    compiled = _compiled(pattern)
    if compiled is None:
        return None
    from pydantic_core import ValidationError

    try:
        compiled.validate_python(text)
    except ValidationError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    """The pattern, for the regex engine of pydantic_core, whose time is linear in the text."""
    from pydantic_core import SchemaError as PatternError
    from pydantic_core import SchemaValidator, core_schema

    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except PatternError:
        return None
