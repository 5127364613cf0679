"""The routes of a server: octavo's own, then those of other packages.

A package adds routes through an entry point of the group `octavo.server_protocols`, which names a list of `Route`:

    [project.entry-points."octavo.server_protocols"]
    my_api = "my_package.my_api:ROUTES"
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points

from octavo.server import adapters, health, metrics, models, page, tokenize, tokenizer_info
from octavo.server.protocols import (
    anthropic,
    embeddings,
    openai_chat,
    openai_completions,
    rerank,
    responses,
    stored_responses,
)
from octavo.server.routes import Route

log = logging.getLogger("octavo.server")

ENTRY_POINTS = "octavo.server_protocols"
_PROTOCOLS = (openai_chat, openai_completions, responses, stored_responses, anthropic, embeddings, rerank)
_MODULES = (*_PROTOCOLS, models, adapters, tokenize, tokenizer_info, health, metrics, page)


def all_routes() -> list[Route]:
    """Routes of octavo and of all installed entry points.

    A route of another package cannot replace one that exists; such a route is ignored, with a warning in the log.
    """
    routes = [route for module in _MODULES for route in module.ROUTES]
    paths = {route.path for route in routes}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        for route in point.load():
            if route.path in paths:
                log.warning("the route %s of %s is ignored: the path is taken", route.path, point.value)
                continue
            paths.add(route.path)
            routes.append(route)
    return routes
