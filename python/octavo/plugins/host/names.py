"""Names of tools, and the nearest names for a wrong one."""

from __future__ import annotations

import difflib
import hashlib
import re
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


def identifier(text: str, first: str) -> str:
    """An id of letters, digits and `_`, at most 64 long. The same text gives the same id.

    Args:
        first: stands before a text that does not begin with a letter.
    """
    name = re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")
    if not name or not name[0].isalpha():
        name = f"{first}_{name}".rstrip("_")
    if len(name) > LONGEST:
        name = name[: LONGEST - 9] + "_" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    return name
