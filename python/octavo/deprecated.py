"""Old names of arguments, accepted for one release."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from octavo.errors import InvalidRequestError

P = ParamSpec("P")
R = TypeVar("R")

_warned: set[str] = set()


def _level_of_caller() -> int:
    """The `stacklevel` of the first frame outside of this package, for a warning of the calling function."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "octavo":
        frame, level = frame.f_back, level + 1
    return level


def accept_params(function: Callable[P, R]) -> Callable[P, R]:
    """Accepts `params=` for the argument `sampling_params`, and warns about it once per process."""
    position = list(inspect.signature(function).parameters).index("sampling_params")

    def renamed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if "params" not in kwargs:
            return kwargs
        value = kwargs.pop("params")
        if "sampling_params" in kwargs or len(args) > position:
            raise InvalidRequestError("sampling_params and params are the same argument: give sampling_params only")
        if "params" not in _warned:
            _warned.add("params")
            warnings.warn("params is now called sampling_params", DeprecationWarning, stacklevel=_level_of_caller())
        return {**kwargs, "sampling_params": value}

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def acall(*args: P.args, **kwargs: P.kwargs) -> Any:
            return await function(*args, **renamed(args, kwargs))

        return cast("Callable[P, R]", acall)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **renamed(args, kwargs))

    return call
