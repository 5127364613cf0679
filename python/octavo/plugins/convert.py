"""Older API majors: converters of one step each, chained, and the table of what each major has."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.plugins import schema as schemas
from octavo.plugins.manifest import Deprecation, OperationEntry
from octavo.plugins.operation import Operation, Typed, check_schemas, invalid_arguments
from octavo.plugins.protocol import MAJORS_KEPT
from octavo.plugins.typed import Arguments, InvalidArguments, Result, jsonable


class Converter:
    """One step between two API majors; `@plugin.convert` makes it. Both directions are pure functions.

    The function takes the arguments of its major, and returns those of the next one, as a dict. `@name.result` adds the
    way down. Calling the converter calls the function, for tests.
    """

    def __init__(
        self, function: Callable[..., Any], typed: Typed, major: int, to: str, deprecated: Deprecation | None
    ) -> None:
        self.id = typed.id
        self.major = major
        self.to = to
        self.arguments = typed.arguments
        self.deprecated = deprecated
        self.description = inspect.cleandoc(getattr(function, "__doc__", None) or "")
        self._function = function
        self._down: tuple[Callable[[Any], Any], Result, Result] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def result(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Registers how a result of the next major becomes one of this major.

        The type of the one parameter is what the next major returns; the return type is the old schema.

        Raises:
            InvalidRequestError: not exactly one parameter, or a type without a schema.
        """
        name = f"result of {self.id} in major {self.major}"
        try:
            # The local names where the function is defined, for annotations that are text.
            signature = inspect.signature(function, eval_str=True, locals=dict(sys._getframe(1).f_locals))
        except (NameError, TypeError, SyntaxError) as error:
            raise InvalidRequestError(f"the types of the {name} cannot be read: {error}") from None
        if len(signature.parameters) != 1:
            raise InvalidRequestError(f"the {name} is converted by a function of one parameter, the newer result")
        taken = next(iter(signature.parameters.values())).annotation
        kinds = [Any if kind is inspect.Signature.empty else kind for kind in (taken, signature.return_annotation)]
        self._down = (function, Result(name, kinds[0]), Result(name, kinds[1]))
        check_schemas(name, self._down[2].schema)
        return function

    @property
    def result_schema(self) -> Any:
        """The older result's schema; None: results are unchanged."""
        return self._down[2].schema if self._down else None

    def up(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the next major, as JSON, from checked ones of this major."""
        found = self._function(**arguments)
        if not isinstance(found, Mapping):
            raise TypeError(f"the converter of {self.id} for major {self.major} returned no dict of arguments")
        return {str(name): jsonable(value) for name, value in found.items()}

    def down(self, value: Any) -> Any:
        """A result of this major, as JSON, from one of the next major."""
        if self._down is None:
            return value
        function, taken, given = self._down
        return given.to_json(function(taken.from_json(value)))


@dataclass(frozen=True)
class Endpoint:
    """An operation in one API major.

    Attributes:
        entry: with the schemas of this major.
        steps: the converters up to the current major, the oldest first.
    """

    entry: OperationEntry
    operation: Operation
    steps: tuple[Converter, ...] = ()

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the operation's function, from arguments of this major.

        Raises:
            ProblemError: invalid-arguments.
        """
        stages: list[Arguments] = [*(step.arguments for step in self.steps), self.operation.arguments]
        try:
            found = stages[0].check(arguments)
        except InvalidArguments as error:
            raise invalid_arguments(error.errors) from None
        for step, stage in zip(self.steps, stages[1:], strict=True):
            try:
                found = stage.check(step.up(found))
            except InvalidArguments as error:
                # The client's arguments fit its major, but what they ask for is gone.
                words = f"major {step.major + 1} does not support this: "
                errors = [{"pointer": "", "detail": f"{words}{e['pointer']} {e['detail']}"} for e in error.errors]
                raise invalid_arguments(errors) from None
        return found

    def result(self, value: Any) -> Any:
        """What the function returned, as a JSON value of this major.

        Raises:
            InvalidResult: the function, or a converter, returned a value that does not fit its type.
        """
        found = self.operation.result.to_json(value)
        for step in reversed(self.steps):
            found = step.down(found)
        return found


Table = dict[tuple[str, int], Endpoint]


def build_table(major: int, operations: Iterable[Operation], converters: Iterable[Converter]) -> Table:
    """(id, API major) -> endpoint, for the current major and the older ones that are still served.

    An operation without a converter exists unchanged in an older major if its `since` lies in that major or before.

    Raises:
        InvalidRequestError: a converter that converts to nothing, or belongs to a major that is not served.
    """
    table: Table = {}
    for operation in operations:
        table[operation.id, major] = _current(operation, major)
    oldest = max(0, major - MAJORS_KEPT + 1)
    given = list(converters)
    for converter in given:
        if not oldest <= converter.major < major:
            raise InvalidRequestError(
                f"the converter of {converter.id} is for major {converter.major}: "
                + (f"only majors {oldest} to {major - 1} can have one" if oldest < major else "there is no older major")
            )
    for older in range(major - 1, oldest - 1, -1):
        here = [converter for converter in given if converter.major == older]
        for converter in here:
            table[converter.id, older] = _converted(converter, table)
        renamed = {converter.to for converter in here if converter.to != converter.id}
        for (name, found), endpoint in list(table.items()):
            unchanged = found == older + 1 and (name, older) not in table and name not in renamed
            if unchanged and endpoint.operation.since[0] <= older:
                entry = dataclasses.replace(endpoint.entry, major=older)
                table[name, older] = dataclasses.replace(endpoint, entry=entry)
    return dict(sorted(table.items(), key=lambda item: (-item[0][1], item[0][0])))


def _current(operation: Operation, major: int) -> Endpoint:
    arguments, result = operation.arguments.schema, operation.result.schema
    entry = OperationEntry(
        id=operation.id,
        major=major,
        digest=schemas.digest(arguments, result),
        since=f"{operation.since[0]}.{operation.since[1]}",
        consequential=operation.consequential,
        idempotent=operation.idempotent,
        aliases=operation.aliases,
        deprecated=operation.deprecated,
        description=operation.description,
        arguments=arguments,
        result=result,
    )
    return Endpoint(entry, operation)


def _converted(converter: Converter, table: Table) -> Endpoint:
    newer = table.get((converter.to, converter.major + 1))
    where = f"the converter of {converter.id} for major {converter.major}"
    if newer is None:
        raise InvalidRequestError(
            f"{where} converts to {converter.to}, which major {converter.major + 1} does not have: name it with to="
        )
    if newer.operation.since[0] > converter.major and converter.to == converter.id:
        raise InvalidRequestError(
            f"{where} contradicts since={newer.entry.since!r}: an operation with a converter existed then"
        )
    if (converter.id, converter.major) in table:
        raise InvalidRequestError(f"{where} is defined twice: keep one")
    arguments = converter.arguments.schema
    result = newer.entry.result if converter.result_schema is None else converter.result_schema
    entry = dataclasses.replace(
        newer.entry,
        id=converter.id,
        major=converter.major,
        digest=schemas.digest(arguments, result),
        aliases={},
        deprecated=converter.deprecated or newer.entry.deprecated,
        description=converter.description or newer.entry.description,
        arguments=arguments,
        result=result,
    )
    return Endpoint(entry, newer.operation, (converter, *newer.steps))
