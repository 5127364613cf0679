"""GET /v1/models: the model, its adapters, and the model with each knowledge pack."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from octavo.adapters import Adapter
from octavo.packs import Pack
from octavo.server.context import Context
from octavo.server.http import Call, Reply, json_reply
from octavo.server.routes import Route


def list_models(context: Context, call: Call) -> Reply:
    view = context.targets.view()
    cards = [_card(context, name) for name in context.names]
    cards += [_card(context, name) | _of_adapter(context, name, adapter) for name, adapter in view.adapters.items()]
    for base, pack in context.targets.pack_models(view):
        cards.append(_card(context, f"{base}+{pack.name}") | _of_packs(f"{base}+{pack.name}", base, [pack]))
    if _is_anthropic(call):
        models = [_anthropic(context, card["id"]) for card in cards]
        page = {"has_more": False, "first_id": models[0]["id"], "last_id": models[-1]["id"]}
        return json_reply({"data": models, **page})
    return json_reply({"object": "list", "data": cards})


def one_model(context: Context, call: Call) -> Reply:
    name = call.path.removeprefix("/v1/models/")
    view = context.targets.view()
    target = context.targets.named(name, view)
    card, headers = _card(context, name), {}
    adapter = view.adapters.get((target.adapter or "").partition("@")[0])
    if adapter is not None:
        card |= _of_adapter(context, name, adapter)
        # The state that If-Match of a load compares with.
        headers["etag"] = f'"{adapter.generation}"'
    if target.packs:
        card |= _of_packs(name, target.adapter or context.name, [view.packs[pack] for pack in target.packs])
    return json_reply(_anthropic(context, name) if _is_anthropic(call) else card, headers=headers)


def _is_anthropic(call: Call) -> bool:
    """The header of Anthropic's clients asks for their form."""
    return "anthropic-version" in call.headers


def _card(context: Context, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": context.created,
        "owned_by": "octavo",
        "root": context.name,
        "max_model_len": context.max_model_len,
    }


def _of_adapter(context: Context, name: str, adapter: Adapter) -> dict[str, Any]:
    """Fields of an adapter. `root` and `parent` are as in vLLM's lists, but `root` is never a path."""
    facts = {"generation": adapter.generation, "digest": adapter.digest, "rank": adapter.rank}
    return {"root": name, "parent": context.name, "adapter": facts}


def _of_packs(name: str, parent: str, packs: Iterable[Pack]) -> dict[str, Any]:
    """Fields of a model with packs."""
    facts = [{"name": pack.name, "digest": pack.digest, "form": pack.form, "tokens": pack.tokens} for pack in packs]
    return {"root": name, "parent": parent, "packs": facts}


def _anthropic(context: Context, name: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(context.created, UTC).isoformat().replace("+00:00", "Z")
    limits = {"max_input_tokens": context.max_model_len, "max_tokens": context.max_model_len}
    head = {"id": name, "type": "model", "display_name": name, "created_at": created}
    return {**head, "lifecycle": "active", **limits}


ROUTES = [
    Route("GET", "/v1/models", list_models, "The models served"),
    Route("GET", "/v1/models/{model}", one_model, "One model"),
]
