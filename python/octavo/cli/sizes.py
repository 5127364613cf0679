"""Sizes in words."""

from __future__ import annotations


def size(count: int) -> str:
    """A number of bytes with a unit, and the exact number."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit} ({count:,})"
    return f"{count} bytes"
