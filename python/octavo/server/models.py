"""GET /v1/models"""

from __future__ import annotations

from typing import Any

from octavo.server.context import Context
from octavo.server.http import Call, Reply, json_reply
from octavo.server.routes import Route


def list_models(context: Context, _call: Call) -> Reply:
    return json_reply({"object": "list", "data": [_model(context, name) for name in context.names]})


def one_model(context: Context, call: Call) -> Reply:
    name = call.path.removeprefix("/v1/models/")
    context.check_model(name)
    return json_reply(_model(context, name))


def _model(context: Context, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": context.created,
        "owned_by": "octavo",
        "root": context.name,
        "max_model_len": context.max_model_len,
    }


ROUTES = [
    Route("GET", "/v1/models", list_models, "The models served"),
    Route("GET", "/v1/models/{model}", one_model, "One model"),
]
