"""Names of tools, and the nearest names for a wrong one."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable

# OpenAI's limit for the name of a function.
LONGEST = 64


def tool_name(plugin: str, operation: str) -> str:
    """`plugin__operation`, at most 64 characters: a longer one ends with a digest of the whole."""
    name = f"{plugin}__{operation}"
    if len(name) <= LONGEST:
        return name
    return name[: LONGEST - 9] + "_" + hashlib.sha256(name.encode()).hexdigest()[:8]


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """At most three names that resemble a wrong one."""
    return difflib.get_close_matches(str(name), list(names), n=3, cutoff=0.5)
