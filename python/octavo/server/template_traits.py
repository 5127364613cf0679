"""What the model's chat template makes of tool calls. Found by rendering short conversations."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from octavo.errors import OctavoError
from octavo.llm import LLM

# How a template reads the arguments of a call: as an object, as JSON text, or not at all.
CallForm: TypeAlias = Literal["object", "text", "none"]

_ARGUMENTS = {"probe_key": "probe_value"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "probe",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string"}}},
    },
}
# An id that every known template takes, and ids of octavo and of foreign clients.
_SAFE_ID = "abcdefghi"
_OTHER_IDS = ("call-0123456789abcdef01234567", "c1", "toolu_01" + "x" * 56)


def call_form(llm: LLM, *, with_tools: bool) -> CallForm:
    """How the template shows an earlier call with its result. "none": it leaves one of them out, or refuses them."""
    forms: tuple[tuple[CallForm, Any], ...] = (("object", _ARGUMENTS), ("text", '{"probe_key": "probe_value"}'))
    for form, arguments in forms:
        text = _render(llm, _SAFE_ID, arguments, with_tools=with_tools)
        if text is not None and "probe_value" in text and "probe_result" in text:
            return form
    return "none"


def shows_results(llm: LLM) -> bool:
    """Whether the template shows the result of a call that stands in the assistant's text."""
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "probe"},
        {"role": "assistant", "content": "probe"},
        {"role": "tool", "tool_call_id": _SAFE_ID, "name": "probe_tool", "content": "probe_result"},
    ]
    try:
        return "probe_result" in llm.render_chat(turns, tools=[_TOOL])
    except OctavoError:
        return False


def needs_short_ids(llm: LLM) -> bool:
    """Whether the template refuses ids that other clients make."""
    for arguments in (_ARGUMENTS, '{"probe_key": "probe_value"}'):
        if _render(llm, _SAFE_ID, arguments, with_tools=True) is not None:
            return any(_render(llm, other, arguments, with_tools=True) is None for other in _OTHER_IDS)
    return False


def needs_alternation(llm: LLM) -> bool:
    """Whether the template refuses two turns of the user in a row."""
    turn = {"role": "user", "content": "probe"}
    try:
        llm.render_chat([turn])
    except OctavoError:
        return False
    try:
        llm.render_chat([turn, turn])
    except OctavoError:
        return True
    return False


def _render(llm: LLM, call_id: str, arguments: Any, *, with_tools: bool) -> str | None:
    call = {"id": call_id, "type": "function", "function": {"name": "probe_tool", "arguments": arguments}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "probe"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "name": "probe_tool", "content": "probe_result"},
    ]
    try:
        return llm.render_chat(turns, tools=[_TOOL] if with_tools else None)
    except OctavoError:
        return None
