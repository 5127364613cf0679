"""Routes: which handler answers which method and path."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from octavo.server.context import Context
from octavo.server.errors import ApiError
from octavo.server.http import Call, Reply
from octavo.server.requests import Strict
from octavo.server.response import Response

Handler: TypeAlias = Callable[[Context, Call], Reply | Response]


class Route(NamedTuple):
    """An endpoint.

    Attributes:
        path: `{name}` at its end matches the rest of a request's path.
        handler: runs in a thread, or on the event loop if the body is short.
        summary: for the OpenAPI document.
        request: model of the body, if the route reads one.
        documented: the OpenAPI document contains the route.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    request: type[Strict] | None = None
    documented: bool = True


class RouteTable:
    """Finds the route of a path.

    Raises:
        ValueError: two routes have the same path.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact = {route.path: route for route in self.routes}
        if len(self._exact) < len(self.routes):
            raise ValueError(f"two routes have the same path: {[r.path for r in self.routes]}")
        self._prefixes = [(route.path.partition("{")[0], route) for route in self.routes if "{" in route.path]

    def find(self, path: str) -> Route | None:
        """The route of `path`; None if there is none."""
        found = self._exact.get(path)
        if found is None:
            matches = (r for prefix, r in self._prefixes if path.startswith(prefix) and len(path) > len(prefix))
            found = next(matches, None)
        return found

    def handler(self, method: str, path: str) -> Handler:
        """The handler of a request.

        Raises:
            ApiError: 404, 405.
        """
        found = self.find(path)
        if found is None:
            raise ApiError(404, f"there is nothing at {path[:200]!r}", code="not_found")
        if method != found.method and not (method == "HEAD" and found.method == "GET"):
            message = f"{method} is not possible here: use {found.method}"
            raise ApiError(405, message, headers={"allow": found.method})
        return found.handler
