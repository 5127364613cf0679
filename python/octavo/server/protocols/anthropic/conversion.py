"""A request of Anthropic's API as a chat request."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request
from octavo.server.fields.requests import ChatRequest, read
from octavo.server.protocols.anthropic.blocks import needed, not_read, plain_text, result_text, skipped, system_text
from octavo.server.protocols.anthropic.errors import NO_THREADS, rename
from octavo.server.protocols.anthropic.requests import AnthropicTurn, Block, CountTokensRequest, MessagesRequest

_UNSUPPORTED = {
    "container": "nothing runs code here",
    "mcp_servers": "connect to them in the client, and send their tools in tools",
    "thread": "nothing is stored here; send all messages",
}


# Parts of a message that are texts.
_TEXTS = ("content", "reasoning_content")


@dataclass
class Converted:
    """A chat request, and where its parts come from.

    Attributes:
        places: for each message, its name in the original request.
        tools: for each tool, its index in the original request.
    """

    body: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    tools: list[int] = field(default_factory=list)
    # Texts of each message by name, until `join`
    _parts: list[dict[str, list[str]]] = field(default_factory=list)

    def chat(self) -> ChatRequest:
        """The validated request.

        Raises:
            ApiError: 400 with the names of the original request.
        """
        try:
            return read(ChatRequest, {**self.body, "messages": self.messages})
        except ApiError as error:
            raise self.renamed(error) from None

    def renamed(self, error: ApiError) -> ApiError:
        """`error` with the names of the original request."""
        return rename(error, self.places, self.tools)

    def add(self, message: dict[str, Any], place: str) -> None:
        """Adds a message. Turns of the same role in a row become one, as in Anthropic's API."""
        texts = {name: [message[name]] for name in _TEXTS if message.get(name)}
        last = self.messages[-1] if self.messages else {}
        if last.get("role") == message["role"] != "tool":
            for name, parts in texts.items():
                self._parts[-1].setdefault(name, []).extend(parts)
            if "tool_calls" in message:
                last.setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            self.messages.append(message)
            self.places.append(place)
            self._parts.append(texts)

    def join(self) -> None:
        """Joins the texts of each message, once all are there."""
        for message, parts in zip(self.messages, self._parts, strict=True):
            for name, texts in parts.items():
                message[name] = "\n".join(texts)


def convert(context: Context, request: CountTokensRequest) -> Converted:
    """The chat request that means the same.

    Raises:
        ApiError: 400 for what is not supported.
    """
    for name, remedy in _UNSUPPORTED.items():
        if getattr(request, name) not in (None, False, [], {}):
            code = NO_THREADS if name == "thread" else None
            raise bad_request(f"{name} is not supported: {remedy}", name, code)
    found = Converted()
    system = system_text(context, request.system)
    if system:
        found.add({"role": _system_role(context), "content": system}, "system")
    for i, turn in enumerate(request.messages):
        _add_turn(context, found, turn, f"messages[{i}]")
    found.join()
    _prefill(found)
    _thinking(context, found, request)
    _tools(context, found, request)
    _output(context, found, request)
    if isinstance(request, MessagesRequest):
        found.body |= {
            "max_tokens": max(request.max_tokens, 1),
            "stream": request.stream,
            "stop": request.stop_sequences,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
        }
    return found


def _add_turn(context: Context, found: Converted, turn: AnthropicTurn, where: str) -> None:
    role = _system_role(context) if turn.role == "system" else turn.role
    if isinstance(turn.content, str):
        found.add({"role": role, "content": turn.content}, where)
    elif role == "assistant":
        found.add(_assistant(context, turn.content, where), where)
    else:
        _add_blocks(context, found, role, turn.content, where)


def _system_role(context: Context) -> str:
    """The role of system messages. Without a place for them in the chat template the user says them."""
    if context.template_supports_system:
        return "system"
    context.warn_once("system", "the chat template has no system message: its text begins the turn of the user")
    return "user"


def _add_blocks(context: Context, found: Converted, role: str, blocks: list[Block], where: str) -> None:
    """Adds the turn of a user: results of tools are messages of their own, before the text."""
    texts = []
    for i, block in enumerate(blocks):
        here = f"{where}.content[{i}]"
        if block.get("type") == "tool_result" and role == "user":
            call = needed(block, "tool_use_id", here)
            result = {"role": "tool", "tool_call_id": call, "content": result_text(context, block, here)}
            found.add(result, here)
        else:
            text = plain_text(context, block, here)
            if text is not None:
                texts.append(text)
    if texts or not any(block.get("type") == "tool_result" for block in blocks):
        found.add({"role": role, "content": "\n".join(texts)}, where)


def _assistant(context: Context, blocks: list[Block], where: str) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(blocks):
        here = f"{where}.content[{i}]"
        kind = block.get("type")
        if kind == "text":
            texts.append(needed(block, "text", here))
        elif kind == "thinking":
            thoughts.append(needed(block, "thinking", here))
        elif kind == "tool_use":
            calls.append(_call(block, here))
        elif kind == "redacted_thinking":
            context.warn_once("redacted", "a redacted_thinking block is skipped: only Anthropic's models can read it")
        elif kind == "compaction":
            texts.append(plain_text(context, block, here) or "")
        elif not skipped(context, kind):
            raise not_read(kind, here)
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Block, where: str) -> dict[str, Any]:
    value = block.get("input")
    if not isinstance(value, dict):
        raise bad_request(f"{where}.input: an object is expected", f"{where}.input")
    function = {"name": needed(block, "name", where), "arguments": json.dumps(value, ensure_ascii=False)}
    return {"id": needed(block, "id", where), "type": "function", "function": function}


def _prefill(found: Converted) -> None:
    """Makes the model continue a last turn of the assistant."""
    last = found.messages[-1] if found.messages else {}
    if last.get("role") != "assistant":
        return
    if "tool_calls" in last:
        where = found.places[-1]
        raise bad_request(f"{where} ends with a tool_use: its tool_result is missing", where)
    if last["content"] or last.get("reasoning_content"):
        found.body["continue_final_message"] = True
    else:
        found.messages.pop()
        found.places.pop()


def _thinking(context: Context, found: Converted, request: CountTokensRequest) -> None:
    """Sets the switches of chat templates. Without `thinking` the template decides."""
    thinking = request.thinking
    if thinking is None:
        return
    enabled = thinking.type != "disabled"
    # Qwen and GLM have the first name, DeepSeek and Granite the second.
    found.body.setdefault("chat_template_kwargs", {}).update(enable_thinking=enabled, thinking=enabled)
    if not enabled:
        return
    if context.config.reasoning_parser is not None:
        found.body["thinking_token_budget"] = thinking.budget_tokens
        return
    context.warn_once(
        "thinking", "thinking is asked for: without --reasoning-parser the model's reasoning stays in its text"
    )
    if thinking.budget_tokens is not None:
        context.warn_once("budget_tokens", "thinking.budget_tokens is ignored: no parser of reasoning is set")


def _tools(context: Context, found: Converted, request: CountTokensRequest) -> None:
    tools: list[dict[str, Any]] = []
    limit = context.config.limits.tools
    if len(request.tools or []) > limit:
        raise bad_request(f"tools has {len(request.tools or [])} entries: at most {limit} are taken", "tools")
    skipped_names = []
    for i, tool in enumerate(request.tools or []):
        if tool.type not in (None, "custom"):
            context.warn_once(
                f"tool {tool.type[:64]}",
                "a tool of type %.64r is skipped: only tools with an input_schema are",
                tool.type,
            )
            skipped_names.append(tool.name)
            continue
        for name in ("name", "input_schema"):
            if getattr(tool, name) is None:
                raise bad_request(f"tools[{i}].{name} is missing", f"tools[{i}].{name}")
        function = {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
            "strict": tool.strict,
        }
        tools.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})
        found.tools.append(i)
    if tools:
        found.body["tools"] = tools
    choice = request.tool_choice
    if choice is None:
        return
    if choice.disable_parallel_tool_use:
        found.body["parallel_tool_calls"] = False
    if choice.type == "any" and not tools:
        raise bad_request("tool_choice is 'any': tools has no tool with an input_schema", "tool_choice")
    if choice.type == "tool":
        if choice.name is None:
            raise bad_request("tool_choice.name is missing", "tool_choice.name")
        if choice.name in skipped_names:
            message = f"tool_choice names {choice.name[:64]!r}, which is skipped: only tools with an input_schema are"
            raise bad_request(f"{message} supported", "tool_choice")
        found.body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        found.body["tool_choice"] = "required" if choice.type == "any" else choice.type


def _output(context: Context, found: Converted, request: CountTokensRequest) -> None:
    config = request.output_config
    form = request.output_format
    if config is not None:
        form = config.format or form
        for name in ("effort", "task_budget"):
            if getattr(config, name) is not None:
                context.warn_once(f"output_config.{name}", "output_config.%s is ignored", name)
    if form is None:
        return
    schema = {"name": "output", "schema": form.schema_}
    found.body["response_format"] = {"type": "json_schema", "json_schema": schema}
