"""The service: HTTP requests in, replies and responses out. The ASGI and WSGI applications adapt it."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable

from octavo.errors import OctavoError
from octavo.llm import LLM
from octavo.server.auth import ADMIN_PATHS, Auth
from octavo.server.config import ServerConfig
from octavo.server.context import Context
from octavo.server.errors import ApiError, from_octavo
from octavo.server.http import Call, Reply
from octavo.server.response import Response
from octavo.server.routes import Route, RouteTable

log = logging.getLogger("octavo.server")

# A request with a shorter body is handled on the event loop: a thread would cost more than the work.
_QUICK_BYTES = 8 << 10
# Fields whose grammar may be slow to compile, those that ask plugins, and the one that brings a long conversation.
# (Such text in another place only costs the use of a thread.)
_SLOW = re.compile(
    rb'"(?:tools|plugins|response_format|structured_outputs|guided_|json_schema|regex|format|output_config|output_format|text'
    rb"|previous_response_id|\\u)"
)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# Longer paths are no routes.
_LONGEST_PATH = 200

# Route name in logs and metrics for paths without a route.
OTHER = "other"


class Service:
    """A server without sockets.

    Args:
        source: an LLM, or how to make one; see `octavo.server.create_app`.
        routes: see `octavo.server.discover.all_routes`.
    """

    def __init__(
        self, source: LLM | str | Callable[[], LLM] | None, config: ServerConfig, routes: Iterable[Route]
    ) -> None:
        self.config = config
        self.context = Context(source, config)
        self.auth = Auth(config)
        self._table = RouteTable(r for r in routes if config.takes_adapters or not r.admin)
        self._count_lock = threading.Lock()

    @property
    def routes(self) -> tuple[Route, ...]:
        """All routes."""
        return self._table.routes

    def is_quick(self, call: Call) -> bool:
        """Whether `respond` takes about a millisecond at most: a short body, and no grammar to compile."""
        if len(call.body) >= _QUICK_BYTES or call.path in ADMIN_PATHS or not self.context.lazy_llm.settled:
            return False
        return not _SLOW.search(call.body)

    def respond(self, call: Call) -> Reply | Response:
        """Runs the handler of `call`.

        Raises:
            ApiError: the error to send.
        """
        if call.path in ADMIN_PATHS and not self.config.takes_adapters:
            message = "this server takes no adapters at run time: start it with --lora-root and --admin-api-key"
            raise ApiError(404, message, code="not_found")
        handler = self._table.handler(call.method, call.path)
        try:
            return handler(self.context, call)
        except ApiError:
            raise
        except OctavoError as error:
            raise from_octavo(error) from error
        except Exception as error:
            log.exception("an internal fault in %s %s (%s)", call.method, call.path, call.request_id)
            raise from_octavo(error) from error

    def route_of(self, path: str) -> str:
        """The route of `path`, or `OTHER`: unknown paths must not create new metric series."""
        found = self._table.find(path)
        return OTHER if found is None else found.path

    def error_reply(self, error: ApiError, path: str, request_id: str) -> Reply:
        """`error` in the form of the API at `path`."""
        return self._table.error_form(path[:_LONGEST_PATH])(error, request_id)

    def count_request(self, method: str, route: str, status: int) -> None:
        """Counts an answered request."""
        with self._count_lock:
            self.context.http_requests[method if method in _METHODS else "other", route, status] += 1

    def close(self) -> None:
        """Closes the LLM if the service made it. Idempotent."""
        self.context.lazy_llm.close()
