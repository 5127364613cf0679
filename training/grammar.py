"""A tiny text grammar: ``[a|b|c]`` chooses one, nested at will; ``{slot}`` is filled from a table."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


def expand(template: str, rng: random.Random) -> str:
    """Resolves all choices, innermost first. An empty option is allowed: ``[very |]big``."""
    while True:
        match = _CHOICE.search(template)
        if match is None:
            return template
        template = template[: match.start()] + rng.choice(match[1].split("|")) + template[match.end() :]


def fill(template: str, slots: Mapping[str, str], rng: random.Random) -> str:
    """Resolves choices, then slots. A slot's name with a capital first letter capitalises the value.

    Raises KeyError for a slot that is not in the table.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name in slots:
            return slots[name]
        text = slots[name[0].lower() + name[1:]]
        return text[0].upper() + text[1:]

    return _SLOT.sub(value, expand(template, rng))


def with_article(noun: str) -> str:
    """``apple`` -> ``an apple``, ``kite`` -> ``a kite``."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def join_words(words: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + " and " + words[-1]
