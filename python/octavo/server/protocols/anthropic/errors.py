"""Errors in Anthropic's form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from octavo.server.errors import ApiError
from octavo.server.http import Reply, json_reply

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# A full queue is a state of the server, not of the client's rate.
_OVERLOADED = 529
# Anthropic's client sends all messages instead after an error with this code.
NO_THREADS = "thread_unsupported_request"


def anthropic_error(error: ApiError, request_id: str) -> Reply:
    """The reply for `error`."""
    return json_reply({**error_body(error), "request_id": request_id}, _status(error), error.headers)


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON of `error`: a message that names the field, and a type."""
    status = _status(error)
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    body: dict[str, Any] = {"type": kind, "message": _message(error)}
    if error.code == NO_THREADS:
        body["details"] = {"error_code": NO_THREADS, "unsupported": ["thread"]}
    return {"type": "error", "error": body}


def _message(error: ApiError) -> str:
    if error.code != "context_length_exceeded":
        return error.message
    # Claude Code looks for these words: it then shortens the conversation.
    found = _TOO_LONG.search(error.message)
    numbers = f"{found[1]} tokens > {found[2]} maximum: " if found else ""
    return f"prompt is too long: {numbers}{error.message}"


def _status(error: ApiError) -> int:
    return _OVERLOADED if error.code == "queue_full" else error.status


_TOO_LONG = re.compile(r"(\d+) tokens and max_model_len is (\d+)")
# Names of fields in a chat request -> names in a request of this API.
_NAMES = (
    (re.compile(r"(tools\[\d+\])\.function\.parameters"), r"\1.input_schema"),
    (re.compile(r"(tools\[\d+\])\.function"), r"\1"),
    (re.compile(r"response_format\.json_schema\.schema"), "output_config.format.schema"),
    (re.compile(r"response_format(\.json_schema)?"), "output_config.format"),
    (re.compile(r"\bmax_completion_tokens\b"), "max_tokens"),
    (re.compile(r"^stop\b"), "stop_sequences"),
)
_MESSAGE = re.compile(r"\bmessages\[(\d+)\]")
_TOOL = re.compile(r"\btools\[(\d+)\]")


def rename(error: ApiError, messages: Sequence[str], tools: Sequence[int]) -> ApiError:
    """`error` of a chat request with the names of the request of this API.

    Args:
        messages: for each message of the chat request, where it comes from.
        tools: for each tool of the chat request, its index in the request.
    """

    def message(found: re.Match[str]) -> str:
        index = int(found[1])
        return messages[index] if index < len(messages) else found[0]

    def tool(found: re.Match[str]) -> str:
        index = int(found[1])
        return f"tools[{tools[index]}]" if index < len(tools) else found[0]

    def renamed(text: str) -> str:
        text = _TOOL.sub(tool, _MESSAGE.sub(message, text))
        for pattern, name in _NAMES:
            text = pattern.sub(name, text)
        return text

    error.message = renamed(error.message)
    error.param = None if error.param is None else renamed(error.param)
    return error
