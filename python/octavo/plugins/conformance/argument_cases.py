"""Cases of wrong arguments: each property with another type and beyond its range, and required ones left out.

A faulty plugin may run such a call, thus only idempotent operations without consequences get one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from octavo.plugins.conformance.case import case
from octavo.plugins.conformance.context import Context, check_faults, problem
from octavo.plugins.validation import matches

_LONGEST_TEXT = 10_000
_VALUES: tuple[Any, ...] = ({"octavo_check": [None]}, "octavo check", -7.5, ["octavo check"], True, None)


@case("P-INVOKE-3")
def wrong_values_are_refused(context: Context) -> None:
    """Arguments of another type, out of their range, or without a required one are refused."""
    for entry, arguments in context.callable_entries():
        schema = context.schemas(entry)[0]
        for what, wrong in wrong_arguments(schema, arguments):
            text = f"{entry.id} with {what}"
            check_faults(problem(context.invoke(entry, wrong), "invalid-arguments", 422, text))


def wrong_arguments(schema: Any, arguments: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is wrong, and arguments that do not fit: none where something is required, and one fault of each kind."""
    if not matches(schema, {}):
        yield "no arguments", {}
    properties = schema.get("properties") if isinstance(schema, dict) else None
    for name, part in (properties or {}).items():
        for values in (_VALUES, *((value,) for value in _beyond(part))):
            made = ({**arguments, name: value} for value in values)
            wrong = next((each for each in made if not matches(schema, each)), None)
            if wrong is not None:
                yield f"{name} as {str(wrong[name])[:80]!r}", wrong


def _beyond(part: Any) -> Iterator[Any]:
    """Values right outside of the range of a property."""
    if not isinstance(part, dict):
        return
    if "minimum" in part:
        yield part["minimum"] - 1
    if "maximum" in part:
        yield part["maximum"] + 1
    if part.get("maxLength", _LONGEST_TEXT) < _LONGEST_TEXT:
        yield "a" * (part["maxLength"] + 1)
    if 0 < part.get("minLength", 0) <= _LONGEST_TEXT:
        yield "a" * (part["minLength"] - 1)
    if isinstance(part.get("enum"), list):
        yield "octavo check"


CASES = (wrong_values_are_refused,)
