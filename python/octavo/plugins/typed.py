"""Pydantic behind a small face: the schemas of arguments and results, and values checked against them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError, MissingDependencyError
from octavo.plugins import schema as schemas

if TYPE_CHECKING:
    from pydantic_core import ValidationError

try:
    from pydantic import ConfigDict, Field, TypeAdapter, create_model
    from pydantic.errors import PydanticUserError
    from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
    from pydantic_core import PydanticSerializationError, core_schema, to_jsonable_python
    from pydantic_core import ValidationError as PydanticValidationError
except ImportError:
    raise MissingDependencyError("pydantic is needed to write a plugin: pip install 'octavo[plugins]'") from None

# Names of parameters become names of fields with this prefix: no name of pydantic's models is in the way.
_PREFIX = "arg_"


class InvalidArguments(Exception):
    """Arguments that do not fit. `errors`: a pointer (RFC 6901) and a detail each."""

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors


class InvalidResult(Exception):
    """The function returned a value that does not fit its return type. The message has no part of the value."""


class Arguments:
    """The parameters of a function.

    Validation is strict: a text is no number, and an unknown argument is an error, in nested models too. A model that
    sets `extra` itself keeps its choice; then the other models of the operation keep pydantic's default.

    Args:
        parameters: name -> (type, default); `...` for a required one.

    Raises:
        InvalidRequestError: a type that has no JSON Schema.
    """

    def __init__(self, operation: str, parameters: Mapping[str, tuple[Any, Any]]) -> None:
        self.names = tuple(parameters)
        fields: dict[str, Any] = {}
        for name, (kind, default) in parameters.items():
            fields[_PREFIX + name] = (kind, Field(default=default, alias=name))
        try:
            config = ConfigDict(extra="forbid", title=operation, arbitrary_types_allowed=False)
            self._model = create_model("Arguments", __config__=config, **fields)
            adapter = TypeAdapter(self._model)
            self.schema, self._is_closed = _schema(adapter, "validation")
        except (PydanticUserError, TypeError, ValueError) as error:
            raise InvalidRequestError(
                f"the parameters of {operation} have no JSON Schema: {_first_line(error)}"
            ) from None
        self.schema.pop("title", None)
        self.schema.setdefault("properties", {})

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The function's keyword arguments, converted to its types.

        Raises:
            InvalidArguments: what does not fit, and where.
        """
        text = json.dumps(arguments, ensure_ascii=False).encode("utf-8", "backslashreplace")
        extra = "forbid" if self._is_closed else None
        try:
            found = self._model.model_validate_json(text, strict=True, extra=extra)
        except PydanticValidationError as error:
            raise InvalidArguments(_errors(error, arguments)) from None
        return {name: getattr(found, _PREFIX + name) for name in self.names}


class Result:
    """The return type of a function.

    Raises:
        InvalidRequestError: a type that has no JSON Schema.
    """

    def __init__(self, operation: str, kind: Any) -> None:
        self._operation = operation
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(kind)
            self.schema, _ = _schema(self._adapter, "serialization")
        except (PydanticUserError, TypeError, ValueError) as error:
            raise InvalidRequestError(f"the result of {operation} has no JSON Schema: {_first_line(error)}") from None

    def from_json(self, value: Any) -> Any:
        """The value as an object of the type. Raises InvalidResult as `to_json`."""
        return self._validate(value)

    def to_json(self, value: Any) -> Any:
        """The value as JSON.

        Raises:
            InvalidResult: it does not fit the type.
        """
        try:
            return self._adapter.dump_python(self._validate(value), mode="json", by_alias=True)
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise InvalidResult(
                f"{self._operation} returned a value that JSON cannot hold: {type(error).__name__}"
            ) from None

    def _validate(self, value: Any) -> Any:
        try:
            return self._adapter.validate_python(value)
        except PydanticValidationError as error:
            places = ", ".join(sorted({e["pointer"] or "the whole value" for e in _errors(error, value)})[:5])
            raise InvalidResult(f"{self._operation} returned a value that does not fit its type, at {places}") from None


class _Generator(GenerateJsonSchema):
    """Schemas without titles made from names. `closed`: models that do not choose `extra` refuse unknown members."""

    closed = True
    chosen = False

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return self._close(super().model_schema(schema), schema["cls"], "model_config")

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return self._close(super().dataclass_schema(schema), schema["cls"], "__pydantic_config__")

    def _close(self, found: JsonSchemaValue, cls: type[Any], config: str) -> JsonSchemaValue:
        extra = (getattr(cls, config, None) or {}).get("extra")
        if extra in ("allow", "ignore"):
            type(self).chosen = True
        elif extra is None and type(self).closed and self.mode == "validation" and found.get("type") == "object":
            found.setdefault("additionalProperties", False)
        return found


def _schema(adapter: TypeAdapter[Any], mode: JsonSchemaMode) -> tuple[dict[str, Any], bool]:
    """The schema, with references written out, and whether all of its models refuse unknown members."""
    generator = type("_Of", (_Generator,), {"closed": True, "chosen": False})
    found = adapter.json_schema(by_alias=True, mode=mode, schema_generator=generator)
    if generator.chosen:  # type: ignore[attr-defined]
        opened = type("_Of", (_Generator,), {"closed": False, "chosen": False})
        found = adapter.json_schema(by_alias=True, mode=mode, schema_generator=opened)
    return schemas.dereference(found), not generator.chosen  # type: ignore[attr-defined]


def _errors(error: ValidationError, value: Any) -> list[dict[str, str]]:
    """Pydantic's errors without the input's values: these may be secrets."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    listed = [{"pointer": schemas.pointer(_place(e["loc"], value)), "detail": e["msg"]} for e in found]
    return [e for i, e in enumerate(listed) if e not in listed[:i]]


def _place(loc: tuple[int | str, ...], value: Any) -> list[int | str]:
    """The path in the value: `loc` without the names of union members, which pydantic puts between."""
    path: list[int | str] = []
    for i, part in enumerate(loc):
        is_index = isinstance(value, list) and isinstance(part, int) and 0 <= part < len(value)
        if is_index or (isinstance(value, dict) and part in value):
            value = value[part]
        elif i < len(loc) - 1 or not isinstance(value, dict):
            continue
        path.append(part)
    return path


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def jsonable(value: Any) -> Any:
    """The value as JSON, for arguments that a converter returns.

    Raises:
        TypeError: a value that JSON has no form for.
    """
    try:
        return to_jsonable_python(value, by_alias=True)
    except (PydanticSerializationError, ValueError) as error:
        raise TypeError(f"a converter returned a value that JSON cannot hold: {type(error).__name__}") from None
