"""Validates values against JSON Schemas, without network access and without patterns that take forever."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import MissingDependencyError
from octavo.plugins.schema import SchemaError, pointer

# More errors of one value are not listed.
MAX_FAULTS = 32
_LONGEST_DETAIL = 300


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
    _check(text)


def matches(schema: Any, value: Any) -> bool:
    """Whether `value` fits `schema`. Raises as `faults`."""
    return not faults(schema, value)


def _fault(error: Any) -> Fault:
    keyword = str(error.validator)
    detail = str(error.message)
    if len(detail) > _LONGEST_DETAIL:
        detail = detail[:_LONGEST_DETAIL] + "..."
    return Fault(pointer(error.absolute_path), detail, keyword, error.validator_value)


@functools.lru_cache(maxsize=1024)
def _check(text: str) -> None:
    """Checks a schema, as JSON. Schemas come again with each call, and this takes longer than the values."""
    schema, checker = json.loads(text), _validator_class()
    try:
        error = next(checker(checker.META_SCHEMA, registry=_meta_registry()).iter_errors(schema), None)
    except RecursionError:
        raise SchemaError("the schema nests too deep to be checked: make it flatter") from None
    if error is not None:
        where = pointer(error.absolute_path) or "its root"
        raise SchemaError(f"the schema is invalid at {where}: {str(error.message)[:_LONGEST_DETAIL]}")


@functools.cache
def _validator_class() -> Any:
    try:
        import jsonschema
    except ImportError:
        raise MissingDependencyError(
            "jsonschema is needed to check arguments of plugins: pip install 'octavo[plugins]'"
        ) from None
    validator = jsonschema.Draft202012Validator
    patterns = {"pattern": _pattern, "patternProperties": _pattern_properties}
    return jsonschema.validators.extend(validator, patterns)


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
