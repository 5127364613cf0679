"""Anthropic's API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from octavo.server.calls.toolbox import Toolbox
from octavo.server.context import Context
from octavo.server.errors import ApiError
from octavo.server.http import Call, Reply, json_reply
from octavo.server.messages import prompt_of
from octavo.server.protocols.anthropic.answer import Messages
from octavo.server.protocols.anthropic.conversion import convert
from octavo.server.protocols.anthropic.errors import anthropic_error
from octavo.server.protocols.anthropic.requests import CountTokensRequest, MessagesRequest
from octavo.server.protocols.openai_chat import begin
from octavo.server.response import Response
from octavo.server.routes import Route

# Names in the header that are read.
_MAX_BETAS = 32
_NAMES = {"prompt": "messages", "stop": "stop_sequences", "structured": "output_config.format"}


def messages(context: Context, call: Call) -> Response:
    request, target = context.read_with_target(MessagesRequest, call)
    _note_betas(context, call)
    found = convert(context, request)
    chat = found.chat()
    names = _NAMES if chat.response_format is not None else {**_NAMES, "structured": "tools"}
    try:
        begun = begin(context, chat, call, names, target)
    except ApiError as error:
        raise found.renamed(error) from None
    return Messages(request, begun)


def count_tokens(context: Context, call: Call) -> Reply:
    request, target = context.read_with_target(CountTokensRequest, call)
    _note_betas(context, call)
    found = convert(context, request)
    chat = found.chat()
    try:
        text = prompt_of(context, chat, Toolbox(context, chat), target.packs)
        context.check_texts([text], "messages")
    except ApiError as error:
        raise found.renamed(error) from None
    return json_reply({"input_tokens": len(context.llm.tokenize(text, add_special_tokens=False))})


def _note_betas(context: Context, call: Call) -> None:
    """Logs each name in the header of beta features once: it switches nothing here."""
    for name in call.headers.get("anthropic-beta", "").split(",")[:_MAX_BETAS]:
        if name.strip():
            context.warn_once(
                f"beta {name.strip()[:64]}", "%.64r in the header anthropic-beta has no effect", name.strip()
            )


ROUTES = [
    Route(
        "POST", "/v1/messages", messages, "Answer a conversation (Anthropic)", MessagesRequest, error=anthropic_error
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        count_tokens,
        "Count the tokens of a conversation (Anthropic)",
        CountTokensRequest,
        error=anthropic_error,
    ),
]
