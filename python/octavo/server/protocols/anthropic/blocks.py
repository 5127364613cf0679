"""Content blocks of Anthropic's API: what of them is text for the model."""

from __future__ import annotations

from typing import Any

from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request
from octavo.server.protocols.anthropic.requests import Block

# Blocks of tools that Anthropic's servers run, in the history of a conversation with them.
_OF_SERVERS = frozenset({"server_tool_use", "mcp_tool_use", "mcp_tool_result", "fallback"})
# Claude Code writes this line into its system message. It differs from request to request and is not for the model.
_BILLING = "x-anthropic-billing-header:"


def system_text(context: Context, system: str | list[Block] | None) -> str:
    """The system message."""
    if system is None or isinstance(system, str):
        return system or ""
    texts = [plain_text(context, block, f"system[{i}]") for i, block in enumerate(system)]
    return "\n".join(text for text in texts if text and not text.startswith(_BILLING))


def plain_text(context: Context, block: Block, where: str) -> str | None:
    """The text of a block of a user or system turn; None if the block is skipped.

    Raises:
        ApiError: 400 for a block that is not text.
    """
    kind = block.get("type")
    if kind == "text":
        return needed(block, "text", where)
    if kind == "compaction":
        return block["content"] if isinstance(block.get("content"), str) else None
    if kind == "document":
        return _document(context, block, where)
    if kind == "search_result":
        return _titled(needed(block, "title", where), _parts(context, block, "content", where))
    if skipped(context, kind):
        return None
    raise not_read(kind, where)


def result_text(context: Context, block: Block, where: str) -> str:
    """The text of a tool_result block. An image becomes a note: the conversation has to go on after it."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        text = content or ""
    elif isinstance(content, list):
        texts = []
        for i, part in enumerate(content):
            here = f"{where}.content[{i}]"
            texts.append(_result_part(context, part, here))
        text = "\n".join(t for t in texts if t)
    else:
        raise bad_request(f"{where}.content: a text or a list of blocks is expected", f"{where}.content")
    if block.get("is_error") is True and not text.lower().startswith("error"):
        # Chat templates have no field for it.
        text = f"Error: {text}" if text else "Error"
    return text


def _result_part(context: Context, part: Any, where: str) -> str | None:
    if not isinstance(part, dict):
        raise bad_request(f"{where}: a content block is expected", where)
    kind = part.get("type")
    if kind == "tool_reference":
        return f"[tool: {needed(part, 'tool_name', where)}]"
    try:
        return plain_text(context, part, where)
    except ApiError:
        if kind not in ("image", "document", "browser_state"):
            raise
        context.warn_once(f"result {kind}", "a %s in a tool_result is replaced by a note: this model reads text", kind)
        return f"[{kind}: not shown, this model reads text only]"


def _document(context: Context, block: Block, where: str) -> str:
    if isinstance(block.get("citations"), dict) and block["citations"].get("enabled"):
        raise bad_request(f"{where}.citations is not supported: leave it out", f"{where}.citations")
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if isinstance(source, dict) and kind == "text":
        text = needed(source, "data", f"{where}.source")
    elif isinstance(source, dict) and kind == "content":
        content = source.get("content")
        text = content if isinstance(content, str) else _parts(context, source, "content", f"{where}.source")
    else:
        message = f"{where}.source is of type {kind!r}: this model reads text only; send a source of type 'text'"
        raise bad_request(message, f"{where}.source")
    head = [block[name] for name in ("title", "context") if isinstance(block.get(name), str)]
    return _titled("\n".join(head), text)


def _titled(title: str, text: str) -> str:
    return f"{title}\n{text}" if title else text


def _parts(context: Context, block: Block, name: str, where: str) -> str:
    parts = block.get(name)
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise bad_request(f"{where}.{name}: a list of blocks is expected", f"{where}.{name}")
    texts = []
    for i, part in enumerate(parts):
        here = f"{where}.{name}[{i}]"
        if part.get("type") != "text":
            raise not_read(part.get("type"), here)
        texts.append(needed(part, "text", here))
    return "\n".join(texts)


def needed(block: Block, name: str, where: str) -> str:
    """A text of the block.

    Raises:
        ApiError: 400 if it is missing.
    """
    value = block.get(name)
    if not isinstance(value, str):
        message = f"{where}.{name} is missing" if value is None else f"{where}.{name}: a text is expected"
        raise bad_request(message, f"{where}.{name}")
    return value


def skipped(context: Context, kind: object) -> bool:
    """Whether a block of this type is left out of the prompt, with a warning in the log."""
    if not isinstance(kind, str) or not (kind in _OF_SERVERS or kind.endswith("_tool_result")):
        return False
    context.warn_once("blocks of servers", "a content block is skipped: %.64r is of a tool that Anthropic runs", kind)
    return True


def not_read(kind: object, where: str) -> ApiError:
    """The error for a block that the model cannot read."""
    return bad_request(f"{where} is of type {str(kind)[:40]!r}: this model reads text only", where)
