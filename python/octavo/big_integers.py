"""Integers beyond 64 bits in JSON, which parsers that know only 64 bits make floats of."""

from __future__ import annotations

import json
import re

# An integer beyond 64 bits has at least 19 digits.
_LONG = re.compile(r"[0-9]{19,}")


def exact_integers(text: bytes, value: object) -> object:
    """`value`, which `text` is as JSON, with its integers beyond 64 bits as they are written."""
    return json.loads(text) if _LONG.search(text.decode("latin-1")) else value
