"""Routes: which handler answers which method and path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from octavo.server.context import Context
from octavo.server.errors import ApiError
from octavo.server.fields.requests import Strict
from octavo.server.http import Call, Reply, error_reply
from octavo.server.near_paths import nearest
from octavo.server.response import Response

Handler: TypeAlias = Callable[[Context, Call], Reply | Response]
# Error, id of the request -> the reply.
ErrorForm: TypeAlias = Callable[[ApiError, str], Reply]


def openai_error(error: ApiError, _request_id: str) -> Reply:
    """The form of an error that most routes have."""
    return error_reply(error)


class Route(NamedTuple):
    """An endpoint.

    Attributes:
        path: `{name}` at its end matches the rest of a request's path; elsewhere it matches one segment. Several routes
            may share a path if their methods differ.
        handler: runs in a thread, or on the event loop if the body is short.
        summary: for the OpenAPI document.
        request: model of the body, if the route reads one.
        documented: the OpenAPI document contains the route.
        error: form of this route's errors, also of those that are found before the handler runs.
        admin: it needs a key of administrators.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    request: type[Strict] | None = None
    documented: bool = True
    error: ErrorForm = openai_error
    admin: bool = False


class RouteTable:
    """Finds the route of a path.

    Raises:
        ValueError: two routes have the same method and path.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._by_path: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            methods = self._by_path.setdefault(route.path, {})
            if route.method in methods:
                raise ValueError(f"two routes have the same path and method: {route.method} {route.path}")
            methods[route.method] = route
        # The path with the most text of its own is the closest match.
        named = sorted((p for p in self._by_path if "{" in p), key=lambda p: -len(re.sub(r"{\w+}", "", p)))
        self._patterns = [(_pattern(path), self._by_path[path]) for path in named]

    def _methods(self, path: str) -> dict[str, Route]:
        """The routes at `path` by method."""
        found = self._by_path.get(path)
        if found is None:
            found = next((methods for pattern, methods in self._patterns if pattern.fullmatch(path)), {})
        return found

    def find(self, path: str) -> Route | None:
        """A route of `path`; None if there is none."""
        return next(iter(self._methods(path).values()), None)

    def error_form(self, path: str) -> ErrorForm:
        """The form of errors at `path`. A path below a route, or nearly a route, has the route's form."""
        head = path
        while head:
            found = self.find(head)
            if found is not None:
                return found.error
            head = head.rpartition("/")[0]
        near = self._nearest(path)
        found = None if near is None else self.find(near)
        return openai_error if found is None else found.error

    def _nearest(self, path: str) -> str | None:
        return nearest(path, [route.path for route in self.routes if route.documented and "{" not in route.path])

    def handler(self, method: str, path: str) -> Handler:
        """The handler of a request.

        Raises:
            ApiError: 404, 405.
        """
        methods = self._methods(path)
        if not methods:
            near = self._nearest(path)
            hint = "" if near is None else f": did you mean {near}?"
            raise ApiError(404, f"there is nothing at {path[:200]!r}{hint}", code="not_found")
        found = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if found is None:
            raise ApiError(
                405, f"{method} is not possible here: use {' or '.join(methods)}", headers={"allow": ", ".join(methods)}
            )
        return found.handler


def _pattern(path: str) -> re.Pattern[str]:
    """A path with names as a regular expression."""
    *parts, last = re.split(r"{\w+}", path)
    return re.compile("[^/]+".join(map(re.escape, parts)) + ("[^/]+" if last else ".+") + re.escape(last), re.DOTALL)
