"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from octavo.errors import InvalidRequestError

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(value: int | float | str | None, name: str = "kv_cache_memory") -> tuple[int | None, float | None]:
    """The option `name` as (bytes, fraction of the machine's memory), of which at most one is set.

    Takes bytes (an int from 1), a text such as "4GiB" or "512MB", or a fraction: a float above 0 and below 1.

    Raises:
        InvalidRequestError: for anything else.
    """
    if value is None:
        return None, None
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        unit = _UNITS.get((match[2] or "b").lower()) if match else None
        if match and unit and (match[2] or "." not in match[1]):
            return _at_least_one(float(match[1]) * unit, value, name), None
    elif isinstance(value, float) and 0.0 < value < 1.0:
        return None, value
    elif (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer()):
        return _at_least_one(value, value, name), None
    raise InvalidRequestError(
        f"{name} is {value!r}: a number of bytes, a text such as '4GiB' or '512MB', or a fraction above 0 and "
        "below 1 is expected"
    )


def _at_least_one(size: float, value: object, name: str) -> int:
    if 1 <= size < 2**63:
        return int(size)
    raise InvalidRequestError(f"{name} is {value!r}: a size from 1 byte on is expected")
