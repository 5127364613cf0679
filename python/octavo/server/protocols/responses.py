"""POST /v1/responses and /v1/responses/input_tokens, with the conversation of an earlier response."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Annotated, Any

from octavo.plugins.loop import Loop
from octavo.server.calls.toolbox import Toolbox
from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request
from octavo.server.fields.known_keys import ITEMS, unknown_keys
from octavo.server.fields.requests import ChatRequest, PackNames, Strict, read
from octavo.server.http import Call, Reply, json_reply
from octavo.server.messages import prompt_of
from octavo.server.plugins import host_of
from octavo.server.protocols.openai_chat import begin, begin_rounds
from octavo.server.protocols.response_items import Conversation
from octavo.server.protocols.response_output import Asked, Listed, Responses
from octavo.server.protocols.stored_responses import continued
from octavo.server.response import Response
from octavo.server.response_store import StoredItem, stored_item
from octavo.server.rounds import RoundReader, Rounds
from octavo.server.routes import Route
from pydantic import Field

log = logging.getLogger("octavo.server")

# Fields that need more than a store of responses, with remedies.
_REFUSED = {
    "conversation": "use previous_response_id",
    "background": "read the response as a stream",
    "prompt": "no prompts are stored here: send instructions and input",
}


class ResponsesFields(Strict):
    """The fields of a request but its input."""

    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    max_tool_calls: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    pack: PackNames | None = None

    def unknown_keys(self) -> Iterator[str]:
        yield from (f"text.{name}" for name in self.text or () if name not in ("format", "verbosity"))
        yield from unknown_keys(self.tools, "tools", ITEMS)
        yield from unknown_keys(getattr(self, "input", None), "input", ITEMS, default="message")


class ResponsesRequest(ResponsesFields):
    """POST /v1/responses"""

    input: str | list[dict[str, Any]]


class InputTokensRequest(ResponsesFields):
    """POST /v1/responses/input_tokens: the body of a request, of which only what the model reads counts."""

    input: str | list[dict[str, Any]] | None = None


def responses(context: Context, call: Call) -> Response:
    request, target = context.read_with_target(ResponsesRequest, call)
    asked = Input(context, request, request.input, call)
    sampling = {
        "stream": request.stream,
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
    }
    try:
        chat = asked.chat(request, sampling)
        names = {"prompt": "input", "structured": "text.format"}
        rounds = asked.rounds(chat, request.max_tool_calls)
        if rounds is None:
            begun = begin(context, chat, call, names, target)
        else:
            begun = begin_rounds(context, rounds, call, names, target)
    except ApiError as error:
        raise asked.conversation.in_own_names(error) from error
    store = context.response_store.enabled and request.store is not False
    fields = {
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "store": store,
        "temperature": request.temperature,
        "text": request.text or {"format": {"type": "text"}},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_p": request.top_p,
        "truncation": "disabled",
        "metadata": request.metadata or {},
    }
    keep = _keeper(context, call.salt, asked) if store else None
    own_name = asked.conversation.tools.own_name
    plugins = None
    if rounds is not None:
        plugins = Listed(rounds.loop, tuple(asked.conversation.tools.mcp.listed(asked.conversation.mcp.listed)))
    return Responses(context, Asked(fields, own_name, keep, plugins), begun, stream=bool(request.stream))


def input_tokens(context: Context, call: Call) -> Reply:
    """The number of tokens that the model would read."""
    request, target = context.read_with_target(InputTokensRequest, call)
    asked = Input(context, request, request.input, call)
    try:
        chat = asked.chat(request, {})
        rounds = asked.rounds(chat)
        chat = chat if rounds is None else rounds.request
        prompt = prompt_of(context, chat, Toolbox(context, chat), target.packs)
        context.check_texts([prompt], "input")
    except ApiError as error:
        raise asked.conversation.in_own_names(error) from error
    count = len(context.llm.tokenize(prompt, add_special_tokens=False))
    return json_reply({"object": "response.input_tokens", "input_tokens": count})


class Input:
    """The items that the model reads: those of the earlier response, then those of the request.

    Raises:
        ApiError: 400, and 404 for an earlier response that is not stored.
    """

    def __init__(
        self, context: Context, request: ResponsesFields, given: str | list[dict[str, Any]] | None, call: Call
    ) -> None:
        self._context, self._owner = context, call.salt
        for name, remedy in _REFUSED.items():
            if (request.model_extra or {}).get(name):
                raise bad_request(f"{name} is not supported: {remedy}", name)
        self._earlier: tuple[StoredItem, ...] = ()
        earlier: list[dict[str, Any]] = []
        if request.previous_response_id is not None:
            stored = continued(context, call, request.previous_response_id)
            self._earlier, earlier = (*stored.input, *stored.output), stored.history
        own = [{"role": "user", "content": given}] if isinstance(given, str) else given or []
        self._own = [self._found(context, call, item) for item in own]
        if not self._own and not earlier:
            raise bad_request("input is empty: give a text, or items", "input")
        self.conversation = Conversation(context)
        if request.instructions:
            self.conversation.add_system(request.instructions, "instructions")
        for i, tool in enumerate(request.tools or ()):
            self.conversation.tools.add(tool, f"tools[{i}]")
        for item in earlier:
            self.conversation.add(item, "previous_response_id")
        for i, item in enumerate(self._own):
            self.conversation.add(item, f"input[{i}]")
        # Their turn is the last one.
        self._decided = self.conversation.decided()

    @staticmethod
    def _found(context: Context, call: Call, item: dict[str, Any]) -> dict[str, Any]:
        """The stored item that a reference names; any other item as it is."""
        if item.get("type") != "item_reference" or not isinstance(item.get("id"), str):
            return item
        return context.response_store.item(call.salt, item["id"]) or item

    @cached_property
    def items(self) -> tuple[StoredItem, ...]:
        """All items, to be stored."""
        return (*self._earlier, *map(stored_item, self._own))

    def rounds(self, chat: ChatRequest, max_calls: int | None = None) -> Rounds | None:
        """The rounds of a request that names plugins; None if it names none.

        Raises:
            ApiError: 400 for fields that are invalid beside plugins.
        """
        mcp = self.conversation.tools.mcp
        if not mcp.labels:
            return None
        context = self._context
        loop = Loop(
            host_of(context),
            mcp.offers,
            max_rounds=context.config.max_plugin_rounds,
            max_calls=max_calls,
            missing=mcp.missing,
            once=context.approved.of(self._owner),
        )
        return Rounds(context, chat, loop, RoundReader(loop.names, shown=True), self._decided)

    def chat(self, request: ResponsesFields, sampling: dict[str, Any]) -> ChatRequest:
        """The request as a chat request."""
        form = (request.text or {}).get("format")
        if isinstance(form, dict) and form.get("type") == "json_schema":
            inner = ("name", "schema", "strict", "description")
            # Other keys are refused, as in response_format.
            others = {k: v for k, v in form.items() if k not in inner}
            form = {**others, "json_schema": {k: v for k, v in form.items() if k in inner}}
        tools = self.conversation.tools
        return read(
            ChatRequest,
            {
                **sampling,
                "messages": self.conversation.messages,
                "parallel_tool_calls": request.parallel_tool_calls,
                "response_format": form,
                "tools": tools.chat or None,
                "tool_choice": tools.choice(request.tool_choice),
            },
        )


def _keeper(
    context: Context, owner: str | None, asked: Input
) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    def keep(response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        if not context.response_store.put(owner, response, asked.items, map(stored_item, items)):
            log.warning("response %s is larger than the store of responses: it is not stored", response["id"])

    return keep


ROUTES = [
    Route("POST", "/v1/responses", responses, "Answer an input", ResponsesRequest),
    Route("POST", "/v1/responses/input_tokens", input_tokens, "Count the tokens of an input", InputTokensRequest),
]
