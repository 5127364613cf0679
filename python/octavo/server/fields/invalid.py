"""The 400 for a request that its model rejects: the path of the wrong value, and a plain sentence about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from octavo.server.errors import ApiError, bad_request

# Maximum length of a rejected value in an error message.
_SHOWN = 80


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


# Types of pydantic's errors -> what is expected. A test holds the table complete.
_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_VALUES: dict[str, Callable[[dict[str, Any]], str]] = {
    "literal_error": lambda c: c["expected"],
    "string_pattern_mismatch": lambda c: f"a string that matches {c['pattern']}",
    "string_too_short": lambda c: f"a string of at least {_plural(c['min_length'], 'character')}",
    "string_too_long": lambda c: f"a string of at most {_plural(c['max_length'], 'character')}",
    "string_unicode": lambda c: "a string of valid Unicode",
    "too_short": lambda c: f"a list of at least {_plural(c['min_length'], 'item')}",
    "too_long": lambda c: f"a list of at most {_plural(c['max_length'], 'item')}",
    "greater_than": lambda c: f"a number above {_number(c['gt'])}",
    "greater_than_equal": lambda c: f"at least {_number(c['ge'])}",
    "less_than": lambda c: f"a number below {_number(c['lt'])}",
    "less_than_equal": lambda c: f"at most {_number(c['le'])}",
    "finite_number": lambda c: "a finite number",
}


# All types of errors that the request models can have, besides "missing".
EXPECTED = (*_TYPES, *_VALUES)


def invalid(body: dict[str, Any], error: ValidationError, names: dict[str, str]) -> ApiError:
    """The refusal of `body`.

    Args:
        names: path of a field -> the name that the client gave to it.
    """
    found = [_Found(body, e) for e in error.errors(include_url=False)]
    # Each branch of a union reports errors. The deepest error belongs to the branch that fits best. At one depth, a
    # wrong value fits better than a wrong type, then the later entry of a list, then the branch with fewer errors.
    counts = Counter(f.branch for f in found)
    best = max(f.fit(counts) for f in found)
    found = [f for f in found if f.fit(counts) == best]
    worst, path = found[0].error, found[0].path
    name = _name(path, names)
    if worst["type"] == "missing":
        return bad_request(f"{name} is missing", name)
    expected = _either(list(dict.fromkeys(_expected(f.error) for f in found if f.path == path)))
    shown = repr(worst["input"])
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    return bad_request(f"{name} is {shown}: {expected} is expected", name)


def _expected(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in _VALUES:
        return _VALUES[kind](error.get("ctx", {}))
    return "another value"


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else ", ".join(choices[:-1]) + " or " + choices[-1]


def _name(path: list[int | str], names: dict[str, str]) -> str:
    name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    for own in sorted(names, key=len, reverse=True):
        if name == own or name.startswith((f"{own}.", f"{own}[")):
            return names[own] + name[len(own) :]
    return name


class _Found:
    """One error of a validation.

    Attributes:
        path: place in the document.
        branch: the branches of unions on the way, which are not part of the document.
    """

    def __init__(self, body: Any, error: ErrorDetails) -> None:
        self.error = error
        self.path: list[int | str] = []
        branch: tuple[int | str, ...] = ()
        here = body
        loc = error["loc"]
        for i, step in enumerate(loc):
            last = i == len(loc) - 1
            if isinstance(here, dict) and isinstance(step, str) and (step in here or (last and not self.path)):
                here = here.get(step)
            elif isinstance(here, list) and isinstance(step, int) and step < len(here):
                here = here[step]
            elif not (last and isinstance(here, dict) and isinstance(step, str) and _is_field(step)):
                branch = loc[: i + 1]
                continue
            self.path.append(step)
        self.branch = branch

    def fit(self, counts: Counter[tuple[int | str, ...]]) -> tuple[int, bool, list[int], int]:
        """How well the branch of this error fits the document."""
        indices = [step for step in self.path if isinstance(step, int)]
        return len(self.path), self.error["type"] not in _TYPES, indices, -counts[self.branch]


def _is_field(step: str) -> bool:
    """Whether `step` is a field. Names of union branches are types, such as "list[int]" or "str"."""
    return step.isidentifier() and step.islower() and step not in ("str", "int", "float", "bool")
