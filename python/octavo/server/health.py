"""GET /health, /ready and /version"""

from __future__ import annotations

from octavo import __version__
from octavo.server.context import Context
from octavo.server.errors import ApiError
from octavo.server.http import Call, Reply, json_reply
from octavo.server.routes import Route


def health(context: Context, _call: Call) -> Reply:
    """Liveness: the process answers, and a loaded engine makes progress."""
    if context.lazy_llm.state in ("new", "loading"):
        return json_reply({"status": context.lazy_llm.state})
    state, cause = _state(context)
    return json_reply({"status": state, **({"cause": cause} if cause else {})}, 200 if state == "ready" else 503)


def ready(context: Context, call: Call) -> Reply:
    """Readiness: the model is loaded and makes progress. The first request starts loading it."""
    context.lazy_llm.start()
    if context.lazy_llm.state in ("new", "loading"):
        return json_reply({"status": "loading"}, 503, {"retry-after": "1"})
    return health(context, call)


def _state(context: Context) -> tuple[str, str]:
    try:
        return context.llm.health(context.config.health_seconds)
    except ApiError as error:
        return "dead", error.message


def version(_context: Context, _call: Call) -> Reply:
    """The version of octavo."""
    return json_reply({"version": __version__})


ROUTES = [
    Route("GET", "/health", health, "Whether the server lives"),
    Route("GET", "/ready", ready, "Whether the server is ready for requests"),
    Route("GET", "/version", version, "The version of octavo"),
]
