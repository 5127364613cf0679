"""GET /v1/models"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.server.http import Call, Reply, json_reply

if TYPE_CHECKING:
    from octavo.server.service import Service


def list_models(service: Service, _call: Call) -> Reply:
    return json_reply({"object": "list", "data": [_model(service, name) for name in service.names]})


def one_model(service: Service, call: Call) -> Reply:
    name = call.path.removeprefix("/v1/models/")
    service.check_model(name)
    return json_reply(_model(service, name))


def _model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "octavo",
        "root": service.name,
        "max_model_len": service.max_model_len,
    }
