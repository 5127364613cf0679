"""GET and DELETE /v1/responses/{id}, and the items that a stored response has read."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl

from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request
from octavo.server.http import Call, Reply, json_reply
from octavo.server.response_store import StoredResponse
from octavo.server.routes import Route

_PREFIX = "/v1/responses/"
# Items of one page: the default and the most.
_PAGE, _LARGEST_PAGE = 20, 100


def _found(context: Context, call: Call, response_id: str, param: str | None = None) -> StoredResponse:
    found = context.response_store.get(call.salt, response_id)
    if found is None:
        raise _not_here(context, response_id, param)
    return found


def _not_here(context: Context, response_id: str, param: str | None = None) -> ApiError:
    limits = context.config.limits
    if context.response_store.enabled:
        rule = (
            f"it never was, was deleted, or has expired; at most {limits.stored_responses} responses and "
            f"{limits.stored_responses_bytes} bytes are stored, for {limits.stored_responses_seconds:.0f} s after "
            "their last use: send the whole input"
        )
    else:
        rule = "this server stores no responses: send the whole input"
    code = "previous_response_not_found" if param else "response_not_found"
    return ApiError(404, f"there is no response {response_id[:80]!r} here: {rule}", param=param, code=code)


def continued(context: Context, call: Call, response_id: str) -> StoredResponse:
    """The response that another continues.

    Raises:
        ApiError: 404, and 400 for a response that cannot be continued.
    """
    found = _found(context, call, response_id, "previous_response_id")
    if found.status in ("in_progress", "failed"):
        raise bad_request(
            f"previous_response_id: the response is {found.status}: continue one that has ended", "previous_response_id"
        )
    return found


def retrieve(context: Context, call: Call) -> Reply:
    """A stored response."""
    query = dict(parse_qsl(call.query))
    if query.get("stream") == "true" or "starting_after" in query:
        message = "a stored response is not streamed: leave out stream and starting_after"
        raise bad_request(message, "stream" if "stream" in query else "starting_after")
    return Reply(200, _found(context, call, call.path.removeprefix(_PREFIX)).response)


def delete(context: Context, call: Call) -> Reply:
    """Forgets a stored response."""
    response_id = call.path.removeprefix(_PREFIX)
    if not context.response_store.delete(call.salt, response_id):
        raise _not_here(context, response_id)
    return json_reply({"id": response_id, "object": "response", "deleted": True})


def input_items(context: Context, call: Call) -> Reply:
    """The items that a stored response has read, those of earlier responses included."""
    found = _found(context, call, call.path.removeprefix(_PREFIX).removesuffix("/input_items"))
    query = dict(parse_qsl(call.query))
    limit, order = query.get("limit", str(_PAGE)), query.get("order", "desc")
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= _LARGEST_PAGE:
        raise bad_request(f"limit is {limit[:20]!r}: 1 to {_LARGEST_PAGE} is expected", "limit")
    if order not in ("asc", "desc"):
        raise bad_request(f"order is {order[:20]!r}: asc or desc is expected", "order")
    items = found.input if order == "asc" else found.input[::-1]
    if "after" in query:
        at = next((i for i, item in enumerate(items) if item.id == query["after"]), None)
        if at is None:
            raise bad_request(f"after is {query['after'][:80]!r}, which is no item of this response", "after")
        items = items[at + 1 :]
    page = items[: int(limit)]
    return json_reply(
        {
            "object": "list",
            "data": [json.loads(item.data) for item in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(items) > len(page),
        }
    )


def cancel(context: Context, call: Call) -> Reply:
    """Refused: only responses in the background can be cancelled."""
    _found(context, call, call.path.removeprefix(_PREFIX).removesuffix("/cancel"))
    raise bad_request("only a response in the background can be cancelled: close the connection of a stream instead")


ROUTES = [
    Route("GET", _PREFIX + "{id}", retrieve, "A stored response"),
    Route("DELETE", _PREFIX + "{id}", delete, "Forget a stored response"),
    Route("GET", _PREFIX + "{id}/input_items", input_items, "What a stored response has read"),
    Route("POST", _PREFIX + "{id}/cancel", cancel, "Refused: nothing runs in the background"),
]
