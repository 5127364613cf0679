"""A deadline for work on the processor: a schema or a value from a plugin may take very long to read or check.

Code that walks over such data calls `step`. The host sets the deadline around it; elsewhere there is none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

# Steps between two readings of the clock. A step takes about a microsecond.
_EACH = 256


class OutOfTimeError(Exception):
    """The deadline passed in the middle of the work."""


class _Limit:
    def __init__(self, left: Callable[[], float]) -> None:
        self._left = left
        self._steps = 0

    def take(self, count: int) -> None:
        self._steps += count
        if self._steps >= _EACH:
            self._steps = 0
            if self._left() <= 0:
                raise OutOfTimeError


_limit: ContextVar[_Limit | None] = ContextVar("octavo_plugins_limit", default=None)


@contextlib.contextmanager
def time_limit(left: Callable[[], float]) -> Iterator[None]:
    """Work inside of this ends with `OutOfTimeError` when no time is left.

    Args:
        left: the seconds until the deadline.
    """
    token = _limit.set(_Limit(left))
    try:
        yield
    finally:
        _limit.reset(token)


def step(count: int = 1) -> None:
    """Notes that `count` steps of work begin.

    Raises:
        OutOfTimeError: the deadline has passed.
    """
    limit = _limit.get()
    if limit is not None:
        limit.take(count)
