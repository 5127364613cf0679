"""Small templates, one feature of Jinja each, and the values that they read. Both engines render them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).with_name("templates")

VALUES: dict[str, Any] = {
    "s": "Hello World",
    "e": "",
    "u": "Größe 東京 🙂 ß",
    "nil": None,
    "t": True,
    "f": False,
    "i": 42,
    "neg": -7,
    "x": 2.5,
    "big": 2**70,
    "huge": -(10**30),
    "tiny": 1e-7,
    "large": 1e16,
    "l": [3, 1, 2],
    "w": ["b", "A", "c", "a"],
    "m": {"b": 1, "a": [1, 2.0, None, True], "c": {"d": "it's"}},
    "z": [],
    "zm": {},
    "p": [{"k": "x", "v": 1}, {"k": "y", "v": 2}, {"k": "x", "v": 3}],
    "deep": [[1, [2, [3]]], [4]],
    "text": "first line\n  second line\n\nfourth\n",
    "html": "<b>a & 'b' \"c\"</b>",
    "number": "12",
    "tricky": 'it\'s "q" \\ \n\t\x07\u00a0é',
}

# One expression a line, and templates between lines of dashes.
EXPRESSIONS = (_FOLDER / "expressions.txt").read_text().splitlines()
STATEMENTS = (_FOLDER / "statements.txt").read_text().removesuffix("\n").split("\n---\n")

# Where Jinja2 writes the address of an object, or knows what is not known here.
LENIENT = [
    ("{{ m.get }}", "<built-in method get of dict object>"),
    ("{{ l | map('string') }}", "<generator object>"),
    ("{{ l | reverse }}", "<generator object>"),
    ("{{ 42 .is_integer() }}", "True"),
]
