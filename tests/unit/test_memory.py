"""Sizes of memory as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from octavo.errors import InvalidRequestError
from octavo.parse_bytes import parse_bytes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, (None, None)),
        (4096, (4096, None)),
        (4096.0, (4096, None)),
        ("4096", (4096, None)),
        ("4GiB", (4 << 30, None)),
        ("4gib", (4 << 30, None)),
        (" 1.5 GiB ", (3 << 29, None)),
        ("512MB", (512_000_000, None)),
        ("3 KB", (3000, None)),
        ("7b", (7, None)),
        (0.5, (None, 0.5)),
        (0.001, (None, 0.001)),
    ],
)
def test_sizes(value: Any, expected: tuple[int | None, float | None]) -> None:
    assert parse_bytes(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", "GiB", "4 parsecs", "-4GiB", "4GiB extra", "1e9", "nan", "0", "0.1b", "99999999TiB"),
        *(0, -1, 0.0, -0.5, 1.5, float("nan"), float("inf"), 2**70, 10**400, True, [], {}, b"4GiB"),
    ],
    ids=repr,
)
def test_what_is_no_size(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="kv_cache_memory"):
        parse_bytes(value)
