"""Answers that continue the last message: `continue_final_message`, and `prefix` or `partial` in that message."""

from __future__ import annotations

import re

from octavo.server.errors import bad_request
from octavo.server.fields.requests import ChatRequest, Message

FIELD = "continue_final_message"
# A text that begins a JSON value, at its start or in a code block.
_BEGUN_JSON = re.compile(r"(?:\A|```(?:json)?)\s*[\[{\"]")


def continues(request: ChatRequest) -> bool:
    """Whether the answer of `request` continues its last message.

    Raises:
        ApiError: 400 for fields that contradict each other, and for a message that cannot be continued.
    """
    wanted = _wanted(request)
    if not wanted:
        return False
    if request.add_generation_prompt:
        raise bad_request(
            f"{wanted} continues the last message and add_generation_prompt begins a new one: set only one of them to "
            "true",
            "add_generation_prompt",
        )
    where = f"messages[{len(request.messages) - 1}]"
    if request.messages[-1].tool_calls:
        message = f"{where}.tool_calls cannot be continued with {wanted}: only text can"
        raise bad_request(message, f"{where}.tool_calls")
    if request.messages[-1].content is None:
        raise bad_request(f"{where}.content is missing: {wanted} continues it", f"{where}.content")
    return True


def continued_text(request: ChatRequest) -> str:
    """The beginning of the answer, where `request` continues its last message; else ""."""
    if not _wanted(request):
        return ""
    content = request.messages[-1].content or ""
    return content if isinstance(content, str) else "".join(part.text or "" for part in content)


def _wanted(request: ChatRequest) -> str | None:
    """The name of the field that asks for it."""
    last = request.messages[-1]
    for i, message in enumerate(request.messages):
        where = _mark(message, i)
        if where and (message is not last or message.role != "assistant"):
            raise bad_request(f"{where} is true: only the last message can be continued, of the assistant", where)
    template = f"chat_template_kwargs.{FIELD}"
    inner = (request.chat_template_kwargs or {}).get(FIELD)
    if inner is not None and not isinstance(inner, bool):
        raise bad_request(f"{template} is no boolean", template)
    given: dict[str, bool | None] = {FIELD: request.continue_final_message, template: inner}
    own = _mark(last, len(request.messages) - 1)
    if own:
        given[own] = True
    yes = next((name for name, value in given.items() if value), None)
    no = next((name for name, value in given.items() if value is False), None)
    if yes and no:
        raise bad_request(f"{yes} is true and {no} is false: give one of them", no)
    return yes


def _mark(message: Message, index: int) -> str | None:
    """The name of the field by which `message` asks for its continuation."""
    found = next((name for name in ("prefix", "partial") if getattr(message, name)), None)
    return found and f"messages[{index}].{found}"


def check_format(request: ChatRequest, text: str) -> None:
    """Rejects an output format that holds a whole JSON value if `text`, which is continued, begins that value.

    Raises:
        ApiError: 400.
    """
    form, other = request.response_format, request.structured_outputs
    name = None
    if form is not None and form.type in ("json_object", "json_schema"):
        name = "response_format"
    elif other is not None and (other.json_ is not None or other.json_object):
        name = "structured_outputs"
    if name and _BEGUN_JSON.search(text):
        message = f"{name} holds a whole JSON value, and the message to continue has begun one: leave out one of them"
        raise bad_request(message, name)
