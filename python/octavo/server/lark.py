"""Constraints as parts of a larger Lark grammar."""

from __future__ import annotations

import json
from typing import Any

from octavo import _core
from octavo.structured import JsonSchema, Regex, Structure

# White space between the tokens of JSON, as the engine allows it for a schema alone.
_WHITESPACE = {"whitespace_pattern": _core.JSON_WHITESPACE}


def lark_body(structured: Structure) -> str:
    """The right side of a rule for what `structured` holds."""
    _, text = structured.as_pair()
    if isinstance(structured, JsonSchema):
        return f"%json {json.dumps(_with_whitespace(text), ensure_ascii=False)}"
    if isinstance(structured, Regex):
        return f"/{_slashed(text)}/"
    # A comment in the last line must not hide the brace.
    return f"%lark {{\n{text}\n}}"


def lark_choice(structured: Structure) -> str:
    """`lark_body` for one of several rules that an output may begin with.

    JSON begins without white space there. It would be read as a part of every rule, and the parser goes on with one.
    """
    body = lark_body(structured)
    return f"%lark {{\nstart: body\nbody: {body}\n}}" if isinstance(structured, JsonSchema) else body


def _with_whitespace(text: str) -> dict[str, Any]:
    schema = json.loads(text)
    if isinstance(schema, dict):
        return {**schema, "x-guidance": _WHITESPACE}
    return {"allOf": [schema], "x-guidance": _WHITESPACE}


def _slashed(pattern: str) -> str:
    """`pattern` with its slashes and line breaks escaped, as a grammar needs them."""
    names = {"\n": "n", "\r": "r", "\t": "t", "/": "/"}
    out, escaped = [], False
    for char in pattern:
        # After a backslash the escape has begun already.
        out.append(char if char not in names else names[char] if escaped else f"\\{names[char]}")
        escaped = char == "\\" and not escaped
    return "".join(out)
