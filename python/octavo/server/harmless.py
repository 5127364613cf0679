"""Texts of plugins in a prompt: no special token of the model, which would end the place that a text stands in."""

from __future__ import annotations

import json
import re
from typing import Any

from octavo.llm import LLM

# A string in JSON text.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
# An escape, or a character that may stay as it is.
_KEPT = re.compile(r"\\.|[A-Za-z0-9 ,:.\-]")
# Texts of a schema that describe it. What a call may hold is left as it is.
_DESCRIBES = frozenset({"description", "title", "$comment"})


def harmless_json(llm: LLM, text: str) -> str:
    """JSON text without special tokens: the characters that they are made of become JSON's escapes."""
    if not has_special(llm, text):
        return text
    escaped = _STRING.sub(lambda found: '"' + _escaped(found[0][1:-1]) + '"', text)
    if not has_special(llm, escaped):
        return escaped
    # A special token of plain letters: nothing of the strings stays as it is.
    return _STRING.sub(lambda found: json.dumps("".join(f"{ord(c):x} " for c in found[0][1:-1])), text)


def harmless_tool(llm: LLM, tool: dict[str, Any]) -> dict[str, Any]:
    """A tool whose descriptions have no special tokens."""
    if not has_special(llm, json.dumps(tool, ensure_ascii=False)):
        return tool
    clean: dict[str, Any] = _described(llm, tool)
    return clean


def _described(llm: LLM, value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _described(llm, inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_described(llm, inner) for inner in value]
    if key in _DESCRIBES and isinstance(value, str):
        while has_special(llm, value):
            # What stands around a special token may be the parts of another one.
            value = llm.detokenize(llm.tokenize(value, add_special_tokens=False), skip_special_tokens=True)
    return value


def _escaped(inside: str) -> str:
    out, at = [], 0
    while at < len(inside):
        kept = _KEPT.match(inside, at)
        out.append(kept[0] if kept else _escape(inside[at]))
        at += len(kept[0]) if kept else 1
    return "".join(out)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def has_special(llm: LLM, text: str) -> bool:
    """Whether the tokenizer finds a special token in `text`."""
    ids = llm.tokenize(text, add_special_tokens=False)
    return llm.detokenize(ids, skip_special_tokens=True) != llm.detokenize(ids, skip_special_tokens=False)
