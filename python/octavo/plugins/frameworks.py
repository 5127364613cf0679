"""A plugin as a part of a Flask or FastAPI application. The framework is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.errors import MissingDependencyError

if TYPE_CHECKING:
    from octavo.plugins.asgi import AsgiApp, Message, Receive, Send
    from octavo.plugins.wsgi import WsgiApp


def blueprint(app: WsgiApp, name: str) -> Any:
    """A `flask.Blueprint` that answers all paths below its prefix."""
    try:
        import flask
    except ImportError:
        raise MissingDependencyError("Flask is needed for a blueprint: pip install flask") from None

    found = flask.Blueprint(name.replace(".", "_"), __name__)

    def answer(path: str = "") -> Any:
        environ = {**flask.request.environ, "PATH_INFO": _latin1("/" + path)}
        return flask.Response.from_app(app, environ, buffered=True)

    def take_every_method(state: Any) -> None:
        endpoint = f"{state.name_prefix}.{state.name}.plugin".lstrip(".")
        for rule in state.app.url_map.iter_rules(endpoint):
            # Flask takes no such rule, werkzeug does.
            rule.methods = None

    for rule in ("/", "/<path:path>"):
        # Flask's own answers to OPTIONS and to other methods would be no problems of the protocol.
        found.add_url_rule(rule, "plugin", answer, methods=["POST"], provide_automatic_options=False)
    found.record(take_every_method)
    return found


def router(app: AsgiApp) -> Any:
    """A `fastapi.APIRouter` that answers all paths below its prefix."""
    try:
        import fastapi
    except ImportError:
        raise MissingDependencyError("FastAPI is needed for a router: pip install fastapi") from None

    found = fastapi.APIRouter()
    # An application, not a function, is asked for every method.
    found.add_route("/{path:path}", _Routed(app), include_in_schema=False)  # type: ignore[arg-type]
    return found


class _Routed:
    """An ASGI application behind a route: the path is what the route leaves over."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = "/" + scope["path_params"]["path"].lstrip("/")
        await self._app({**scope, "path": path, "root_path": ""}, receive, send)


def _latin1(path: str) -> str:
    """A path as WSGI carries it."""
    return path.encode("utf-8", "replace").decode("latin-1")
