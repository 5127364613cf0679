"""How models write tool calls: what marks them, which grammar holds them, which parser reads them back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.errors import OctavoError
from octavo.llm import LLM
from octavo.server.parsing import Bare, Marked, Parser


@dataclass(frozen=True)
class Format:
    """One way to write calls.

    Attributes:
        begin: the mark before a call, or before the list of calls; "" without one.
        end: the mark after a call.
        is_list: the calls stand in one JSON list.
        key: under which the arguments stand.
    """

    name: str
    begin: str
    end: str
    is_list: bool
    key: str
    parser: Callable[[], Parser]


_HERMES = ("<tool_call>", "</tool_call>")

FORMATS = {
    f.name: f
    for f in (
        # Hermes 2, Qwen 2.5 and 3
        Format("hermes", *_HERMES, False, "arguments", lambda: Marked(*_HERMES)),
        # Mistral 7B v0.3 and later
        Format("mistral", "[TOOL_CALLS]", "", True, "arguments", lambda: Marked("[TOOL_CALLS]", "")),
        # Llama 3.1 and 3.2
        Format("llama3_json", "", "", False, "parameters", lambda: Bare()),
    )
}
_PROBE = {"name": "probe_tool", "description": "probe", "parameters": {"type": "object", "properties": {}}}


def detect(llm: LLM) -> Format | None:
    """The format that the model's chat template speaks of when it is given a tool; None: it knows no tools."""
    tools = [{"type": "function", "function": _PROBE}]
    turns = [{"role": "user", "content": "probe"}]
    try:
        text = llm.render_chat(turns, tools=tools)
    except OctavoError:
        return None
    if "probe_tool" not in text:
        return None
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "probe_tool", "arguments": {}}}
    # Without that the description of the tools has to do.
    with contextlib.suppress(OctavoError):
        text += llm.render_chat([*turns, {"role": "assistant", "content": "", "tool_calls": [call]}], tools=tools)
    marked = next((f for f in FORMATS.values() if f.begin and f.begin in text), None)
    return marked or (FORMATS["llama3_json"] if '"parameters"' in text else FORMATS["hermes"])


def grammar(llm: LLM, form: Format, tools: list[dict[str, Any]], *, forced: bool, parallel: bool) -> str:
    """The Lark grammar of a text with calls of `tools`.

    Args:
        forced: at least one call and nothing else; else calls may stand anywhere in free text.
        parallel: more than one call may come.
    """
    bodies = "\n    | ".join(f"%json {json.dumps(_call_schema(form, tool), ensure_ascii=False)}" for tool in tools)
    mark = _literal(llm, form.begin) if form.begin else '""'
    if form.is_list:
        more = '("," " "? body)*' if parallel else ""
        call = f'"[" body {more} "]"'
    elif form.end:
        call = f'"\\n" body "\\n" {_literal(llm, form.end)}'
    else:
        call = "body"
    again = form.end and parallel
    if forced:
        start = f"{mark} {call}" + (f' ("\\n" {mark} {call})*' if again else "")
    elif mark.startswith("<"):
        # The mark is one token, which no text can spell.
        start = f"TEXT ({mark} {call})" + ("* TEXT?" if again else "?")
    elif form.begin:
        start = f"(lead {call})" + ("*" if again else "?") + " TAIL?"
    else:
        # Without a mark only the first character tells.
        start = "body | OTHER"
    lines = [f"start: {start}", f"body: {bodies}"]
    if not forced:
        if mark.startswith("<"):
            lines.append("TEXT: /(.|\\n)*/")
        elif form.begin:
            escaped = "".join(f"\\{c}" if c in "[]()/.|\\?*+{}" else c for c in form.begin)
            lines += [
                f"lead[lazy]: /(.|\\n)*{escaped}/",
                f"TAIL: /(.|\\n)*/ & ~/(.|\\n)*{escaped}(.|\\n)*/",
            ]
        else:
            lines.append("OTHER: /[^{ \\n](.|\\n)*/")
    return "\n".join(lines) + "\n"


def _call_schema(form: Format, tool: dict[str, Any]) -> dict[str, Any]:
    schema = tool.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool["name"]}, form.key: _own_definitions(schema, form.key)},
        "required": ["name", form.key],
        "additionalProperties": False,
        # One way to write it: a weak model would else fill its answer with spaces.
        "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    }


def _own_definitions(value: Any, key: str) -> Any:
    """`#/...` of a schema that has become a part of another one."""
    if isinstance(value, dict):
        moved = {k: _own_definitions(v, key) for k, v in value.items()}
        ref = moved.get("$ref")
        if isinstance(ref, str) and ref.startswith("#") and "$id" not in value:
            moved["$ref"] = f"#/properties/{key}{ref[1:]}"
        return moved
    if isinstance(value, list):
        return [_own_definitions(v, key) for v in value]
    return value


def _literal(llm: LLM, text: str) -> str:
    """`text` in a grammar: by its token where it is a special one, which no text can spell."""
    ids = llm.tokenize(text, add_special_tokens=False)
    if len(ids) == 1 and llm.detokenize(ids, skip_special_tokens=True) == "":
        return f"<[{ids[0]}]>"
    return json.dumps(text)


def is_special(llm: LLM, form: Format) -> bool:
    """Whether the marks are special tokens, which a text without these would lack."""
    return any(mark and _literal(llm, mark).startswith("<[") for mark in (form.begin, form.end))
