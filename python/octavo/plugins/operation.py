"""An operation: a typed function, the schemas of its arguments and its result, and its description."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.plugins.exchange import Request
from octavo.plugins.manifest import Deprecation, OperationEntry
from octavo.plugins.problems import ProblemError
from octavo.plugins.protocol import api_version, is_operation_id
from octavo.plugins.schema import SchemaError, canonical_json, digest
from octavo.plugins.typed import Arguments, Result

# More errors of one call are not listed.
MAX_ERRORS = 32


@dataclass(frozen=True)
class Operation:
    """An operation of the current API major.

    Attributes:
        function: sync or async.
        request_parameter: the parameter that gets the `Request`; None if there is none.
        since: (major, minor) of the version that brought it.
        aliases: argument -> its former names.
    """

    id: str
    function: Callable[..., Any]
    arguments: Arguments
    result: Result
    description: str
    request_parameter: str | None
    since: tuple[int, int]
    consequential: bool = False
    idempotent: bool = False
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    deprecated: Deprecation | None = None

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)


@dataclass(frozen=True)
class Typed:
    """The parts of a typed function: its parameters as a schema, and its return type as one."""

    id: str
    arguments: Arguments
    result: Result
    request_parameter: str | None


def read_function(function: Callable[..., Any], name: str | None, scope: Mapping[str, Any]) -> Typed:
    """Reads the types of a function.

    Args:
        name: the id; None: the function's name.
        scope: local names where the function is defined, for annotations that are text.

    Raises:
        InvalidRequestError: names the parameter and the remedy.
    """
    if not callable(function):
        raise InvalidRequestError(f"an operation must be a function, not {type(function).__name__}")
    found = name if name is not None else getattr(function, "__name__", "")
    if not is_operation_id(found):
        raise InvalidRequestError(
            f"the operation's name is {found[:80]!r}: a letter and at most 63 letters, digits and _ are expected"
        )
    try:
        signature = inspect.signature(function, eval_str=True, globals=_globals(function), locals=dict(scope))
    except (NameError, TypeError, SyntaxError) as error:
        raise InvalidRequestError(
            f"the types of {found} cannot be read: {error}. Define them before the function, in its module"
        ) from None
    plain: dict[str, tuple[Any, Any]] = {}
    request_parameter = None
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InvalidRequestError(
                f"parameter {parameter} of {found} has no name in a call: use plain or keyword-only parameters"
            )
        if parameter.annotation is Request:
            request_parameter = parameter.name
        elif parameter.annotation is parameter.empty:
            raise InvalidRequestError(f"parameter {parameter.name} of {found} has no type: annotate it, Any if need be")
        else:
            default = ... if parameter.default is parameter.empty else parameter.default
            plain[parameter.name] = (parameter.annotation, default)
    returned = Any if signature.return_annotation is signature.empty else signature.return_annotation
    typed = Typed(found, Arguments(found, plain), Result(found, returned), request_parameter)
    check_schemas(found, typed.arguments.schema, typed.result.schema)
    return typed


def check_schemas(name: str, *schemas: Any) -> None:
    """Checks that the schemas can be served: JSON has a form for them, and they have a digest.

    Raises:
        InvalidRequestError: a default such as `inf`, or a schema that is too large.
    """
    try:
        for schema in schemas:
            canonical_json(schema)
            digest(schema, None)
    except SchemaError as error:
        raise InvalidRequestError(
            f"the schema of {name} cannot be served: {error}. Defaults must be finite numbers, None if need be"
        ) from None


def make_operation(
    function: Callable[..., Any],
    typed: Typed,
    *,
    version: tuple[int, int],
    since: str | None,
    aliases: Mapping[str, Any] | None,
    consequential: bool,
    idempotent: bool | None,
    deprecated: Deprecation | None,
) -> Operation:
    """Checks the options of `@plugin.operation` and makes the operation. `version`: the plugin's own.

    Raises:
        InvalidRequestError: names the option and the remedy.
    """
    first = version if since is None else api_version(since)
    if first is None:
        raise InvalidRequestError(f"since of {typed.id} is {since!r}: a version such as 1.0 is expected")
    if first > version:
        raise InvalidRequestError(f"since of {typed.id} is {since}, above the plugin's version: raise the version")
    for option, value in (("consequential", consequential), ("idempotent", idempotent or False)):
        if not isinstance(value, bool):
            raise InvalidRequestError(f"{option} of {typed.id} is {value!r}: True or False is expected")
    if deprecated is not None and not isinstance(deprecated, Deprecation):
        raise InvalidRequestError(
            f"deprecated of {typed.id} is {deprecated!r}: Deprecation.on('2026-12-01', sunset='2027-06-01') is expected"
        )
    return Operation(
        id=typed.id,
        function=function,
        arguments=typed.arguments,
        result=typed.result,
        description=inspect.cleandoc(getattr(function, "__doc__", None) or ""),
        request_parameter=typed.request_parameter,
        since=first,
        consequential=consequential,
        # What changes nothing outside may be repeated.
        idempotent=not consequential if idempotent is None else idempotent,
        aliases=_aliases(typed, aliases or {}),
        deprecated=deprecated,
    )


def _aliases(typed: Typed, given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    names = typed.arguments.names
    found: dict[str, tuple[str, ...]] = {}
    taken: dict[str, str] = {}
    for name, former in given.items():
        if name not in names:
            raise InvalidRequestError(
                f"aliases of {typed.id} names {name!r}, which is no parameter: use one of {', '.join(names) or 'none'}"
            )
        found[name] = (former,) if isinstance(former, str) else tuple(former)
        for old in found[name]:
            if not isinstance(old, str) or old in names or old in taken:
                raise InvalidRequestError(
                    f"alias {old!r} of {name} in {typed.id} must be a former name that no other parameter has or had"
                )
            taken[old] = name
    return found


def accept(arguments: dict[str, Any], entry: OperationEntry) -> tuple[dict[str, Any], list[str]]:
    """Arguments under their current names, and what the caller should know: a deprecation, former names.

    Two names of one argument are not renamed, thus refused. Neither are those of consequential operations: their
    arguments are exactly what the caller sent.
    """
    renamed, notes = dict(arguments), [_deprecation_note(entry, entry.deprecated)] if entry.deprecated else []
    for name, former in () if entry.consequential else entry.aliases.items():
        used = [old for old in former if old in renamed]
        if len(used) == 1 and name not in renamed:
            renamed[name] = renamed.pop(used[0])
            notes.append(f"argument {used[0]} is now called {name}")
    return renamed, notes


def _deprecation_note(entry: OperationEntry, found: Deprecation) -> str:
    parts = [f"{entry.id} in major {entry.major} is deprecated since {_day(found.since)}"]
    parts += [f"ends {_day(found.sunset)}"] if found.sunset is not None else []
    parts += [f"use {found.use}"] if found.use else []
    return "; ".join(parts)


def _day(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def _globals(function: Callable[..., Any]) -> dict[str, Any]:
    return getattr(inspect.unwrap(function), "__globals__", {})


def invalid_arguments(errors: list[dict[str, str]]) -> ProblemError:
    """The problem for arguments that do not fit; each error has a `pointer` and a `detail`."""
    first = errors[0]
    where = first["pointer"] or "the arguments"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ProblemError("invalid-arguments", f"{where}: {first['detail']}{more}", errors=errors[:MAX_ERRORS])
