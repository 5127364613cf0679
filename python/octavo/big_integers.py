"""Integers beyond 64 bits in what a chat template renders. The engine's JSON has none: it would make them floats."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

# An integer beyond 64 bits has at least 19 digits.
_LONG = re.compile(r"[0-9]{19,}")
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1


def render_exactly(render: Callable[[str], str], request: str) -> str:
    """`render(request)`, with every integer of the JSON text `request` in the result as it is.

    Each long integer is a short text while the template renders, and becomes a number again afterwards.
    """
    if not _LONG.search(request):
        return render(request)
    names: dict[str, str] = {}

    def hide(digits: str) -> int | str:
        if len(digits) < 4000 and _SMALLEST <= int(digits) <= _LARGEST:
            return int(digits)
        name = f"octavo-integer-{len(names)}-{digits[-9:]}"
        names[name] = digits
        return name

    hidden = json.dumps(json.loads(request, parse_int=hide), ensure_ascii=False)
    text = render(hidden if names else request)
    for name, digits in names.items():
        # `tojson` has put quotes around it.
        text = text.replace(f'"{name}"', digits).replace(f"'{name}'", digits).replace(name, digits)
    return text


def exact_integers(text: bytes, value: object) -> object:
    """`value`, which `text` is as JSON, with its integers beyond 64 bits as they are written."""
    return json.loads(text) if _LONG.search(text.decode("latin-1")) else value
