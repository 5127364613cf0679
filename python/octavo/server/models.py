"""GET /v1/models"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from octavo.server.context import Context
from octavo.server.http import Call, Reply, json_reply
from octavo.server.routes import Route


def list_models(context: Context, call: Call) -> Reply:
    if _is_anthropic(call):
        models = [_anthropic(context, name) for name in context.names]
        page = {"has_more": False, "first_id": models[0]["id"], "last_id": models[-1]["id"]}
        return json_reply({"data": models, **page})
    return json_reply({"object": "list", "data": [_model(context, name) for name in context.names]})


def one_model(context: Context, call: Call) -> Reply:
    name = call.path.removeprefix("/v1/models/")
    context.check_model(name)
    return json_reply(_anthropic(context, name) if _is_anthropic(call) else _model(context, name))


def _is_anthropic(call: Call) -> bool:
    """The header of Anthropic's clients asks for their form."""
    return "anthropic-version" in call.headers


def _model(context: Context, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": context.created,
        "owned_by": "octavo",
        "root": context.name,
        "max_model_len": context.max_model_len,
    }


def _anthropic(context: Context, name: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(context.created, UTC).isoformat().replace("+00:00", "Z")
    limits = {"max_input_tokens": context.max_model_len, "max_tokens": context.max_model_len}
    head = {"id": name, "type": "model", "display_name": name, "created_at": created}
    return {**head, "lifecycle": "active", **limits}


ROUTES = [
    Route("GET", "/v1/models", list_models, "The models served"),
    Route("GET", "/v1/models/{model}", one_model, "One model"),
]
