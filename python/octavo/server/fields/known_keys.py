"""Keys of the objects that requests hold as plain dicts. Other keys have no effect, and the log names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# By type of the object. Objects of other types are handled, or refused, where they are read.
Keys = Mapping[str, frozenset[str]]

# Lists in these keys hold further objects.
_LISTS = ("content", "summary", "output", "tools", "source")


def _keys(names: str) -> frozenset[str]:
    return frozenset(["type", *names.split()])


_PART = _keys("text annotations logprobs prompt_cache_breakpoint refusal")
_TOOL = "allowed_callers defer_loading description name"
ITEMS: Keys = {
    "message": _keys("id role content status phase"),
    "reasoning": _keys("id summary content encrypted_content status"),
    "function_call": _keys("id call_id name namespace arguments caller status"),
    "function_call_output": _keys("id call_id name namespace output caller status"),
    "custom_tool_call": _keys("id call_id name namespace input caller status"),
    "custom_tool_call_output": _keys("id call_id name output caller status"),
    "additional_tools": _keys("id role tools"),
    "function": _keys(f"{_TOOL} parameters strict output_schema"),
    "custom": _keys(f"{_TOOL} format"),
    "mcp": _keys(
        "server_label server_description allowed_tools require_approval allowed_callers defer_loading"
        # Refused by name.
        " server_url connector_id tunnel_id authorization headers"
    ),
    "mcp_call": _keys("id server_label name arguments output error status approval_request_id sent_arguments repairs"),
    "mcp_list_tools": _keys("id server_label tools error"),
    "mcp_approval_request": _keys("id server_label name arguments"),
    "mcp_approval_response": _keys("id approval_request_id approve reason"),
    **dict.fromkeys(["input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"], _PART),
}
BLOCKS: Keys = {
    "text": _keys("text cache_control citations"),
    "thinking": _keys("thinking signature"),
    "redacted_thinking": _keys("data"),
    "tool_use": _keys("id name input cache_control caller toolset_name"),
    "tool_result": _keys("tool_use_id content is_error cache_control toolset_name"),
    "search_result": _keys("source title content cache_control citations"),
    "document": _keys("source title context text cache_control citations"),
}


def unknown_keys(values: Any, path: str, keys: Keys, default: str | None = None) -> Iterator[str]:
    """Paths of the keys that the objects of the list `values` do not have.

    Args:
        default: type of an object that names none.
    """
    for value in values if isinstance(values, list) else ():
        if not isinstance(value, dict):
            continue
        kind = value.get("type") or default
        known = keys.get(kind) if isinstance(kind, str) else None
        if known is None:
            continue
        yield from (f"{path}[].{name}" for name in value if name not in known)
        for name in _LISTS:
            yield from unknown_keys(value.get(name), f"{path}[].{name}", keys)
