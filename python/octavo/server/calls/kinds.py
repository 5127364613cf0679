"""The tools of a request as functions: which are offered, and which may or must be called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from octavo.server.context import Context
from octavo.server.errors import bad_request
from octavo.server.fields.requests import ChosenTool, Custom, Tool

# The only argument of a custom tool, which the model sees as a function.
INPUT = "input"


@dataclass(frozen=True)
class Offered:
    """Tools as functions.

    Attributes:
        functions: in the form of OpenAI's chat API.
        custom: names of those that are custom tools for the client.
        skipped: types of tools that are not offered to the model.
    """

    functions: list[dict[str, Any]]
    custom: frozenset[str]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What the model may do with the tools.

    Attributes:
        names: functions that may be called; None: all.
        single: exactly one call.
    """

    mode: Literal["none", "auto", "required"]
    names: frozenset[str] | None = None
    single: bool = False


def offered(context: Context, tools: list[Tool]) -> Offered:
    """`tools` as functions. Built-in tools of other servers are skipped, with a warning in the log.

    Raises:
        ApiError: 400 for a tool without its definition.
    """
    functions: list[dict[str, Any]] = []
    custom = set()
    skipped: list[str] = []
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if tool.type == "function":
            if tool.function is None:
                raise bad_request(f"{where}.function is missing", f"{where}.function")
            functions.append({"type": "function", "function": tool.function.model_dump(exclude_none=True)})
        elif tool.type == "custom":
            if tool.custom is None:
                raise bad_request(f"{where}.custom is missing", f"{where}.custom")
            functions.append({"type": "function", "function": _bridge(context, tool.custom)})
            custom.add(tool.custom.name)
        else:
            skipped.append(tool.type)
            context.warn_once(
                f"tool {tool.type}",
                "a tool of type %.64r is skipped: only functions and custom tools are called here",
                tool.type,
            )
    return Offered(functions, frozenset(custom), tuple(skipped))


def _bridge(context: Context, tool: Custom) -> dict[str, Any]:
    """A custom tool as a function with one text."""
    form = tool.format or {}
    held: dict[str, Any] = {"type": "string"}
    described = [tool.description] if tool.description else []
    if form.get("type") == "grammar":
        # A grammar cannot hold inside a JSON string. The model reads it.
        described.append(f"The input follows this {form.get('syntax', '')} grammar:\n{form.get('definition', '')}")
        context.warn_once("custom grammar", "the grammar of a custom tool is shown to the model, and not enforced")
    parameters = {"type": "object", "properties": {INPUT: held}, "required": [INPUT], "additionalProperties": False}
    text = "\n\n".join(described)
    return {"name": tool.name, **({"description": text} if text else {}), "parameters": parameters}


def choice_of(given: Literal["none", "auto", "required"] | ChosenTool | None, tools: Offered) -> Choice:
    """The meaning of `tool_choice`.

    Raises:
        ApiError: 400 for a tool that cannot be called.
    """
    names = frozenset(t["function"]["name"] for t in tools.functions)
    if isinstance(given, ChosenTool):
        if given.type == "allowed_tools":
            return _allowed(given, names, tools)
        return Choice("required", frozenset({_named(given, names)}), single=True)
    if given == "required" and not names:
        raise _nothing_to_call(tools)
    return Choice(given or "auto") if names else Choice("none")


def _allowed(given: ChosenTool, names: frozenset[str], tools: Offered) -> Choice:
    allowed = given.allowed_tools
    if allowed is None:
        raise bad_request("tool_choice.allowed_tools is missing", "tool_choice.allowed_tools")
    chosen = set()
    for i, tool in enumerate(allowed.tools):
        kind = tool.get("type")
        if kind not in ("function", "custom"):
            if kind not in tools.skipped:
                where = f"tool_choice.allowed_tools.tools[{i}]"
                raise bad_request(f"{where} is of type {str(kind)[:80]!r}, which tools lacks", "tool_choice")
            continue
        inner = tool.get(kind)
        name = inner.get("name") if isinstance(inner, dict) else tool.get("name")
        if not isinstance(name, str) or name not in names:
            raise bad_request(f"tool_choice allows {str(name)[:80]!r}, which tools lacks", "tool_choice")
        chosen.add(name)
    if not chosen:
        if allowed.mode == "required":
            raise _nothing_to_call(tools)
        return Choice("none")
    return Choice(allowed.mode, frozenset(chosen))


def _named(given: ChosenTool, names: frozenset[str]) -> str:
    found = given.function if given.type == "function" else given.custom if given.type == "custom" else None
    if given.type not in ("function", "custom"):
        message = f"tool_choice is of type {given.type!r}: name a function or a custom tool, which the client runs"
        raise bad_request(message, "tool_choice")
    if found is None:
        raise bad_request(f"tool_choice.{given.type} is missing", f"tool_choice.{given.type}")
    if found.name not in names:
        raise bad_request(f"tool_choice names {found.name!r}, which tools lacks", "tool_choice")
    return found.name


def _nothing_to_call(tools: Offered) -> Exception:
    if tools.skipped:
        kinds = ", ".join(dict.fromkeys(tools.skipped))
        return bad_request(f"tool_choice wants a call, but tools has only {kinds}: give a function", "tool_choice")
    return bad_request("tool_choice is 'required': tools are missing", "tool_choice")


def custom_input(arguments: str) -> str:
    """The input of a custom tool from the arguments of its function; the text itself if it cannot be read."""
    try:
        value = json.loads(arguments, strict=False)[INPUT]
    except (ValueError, RecursionError, KeyError, TypeError):
        return arguments
    return value if isinstance(value, str) else arguments
