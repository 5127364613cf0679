"""Cross-origin requests: the headers that pages may read, and the answers of the WSGI application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.server.access import ID_HEADERS

# Headers that pages of other origins may read.
EXPOSED_HEADERS = (*ID_HEADERS, "retry-after", "x-should-retry", "allow", "www-authenticate")
_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
_MAX_AGE_SECONDS = "600"


class Cors:
    """Decides which pages may call the server, as Starlette's middleware does for the ASGI application.

    Args:
        origins: of the pages; "*" is all.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)

    def _allowed(self, environ: dict[str, Any]) -> dict[str, str] | None:
        origin = environ.get("HTTP_ORIGIN")
        if not origin or not self._origins:
            return None
        if "*" in self._origins:
            return {"access-control-allow-origin": "*"}
        if origin in self._origins:
            return {"access-control-allow-origin": origin, "vary": "Origin"}
        return None

    def headers(self, environ: dict[str, Any]) -> dict[str, str]:
        """Headers of a response to the request of `environ`."""
        allowed = self._allowed(environ)
        return {} if allowed is None else {**allowed, "access-control-expose-headers": ", ".join(EXPOSED_HEADERS)}

    def preflight(self, environ: dict[str, Any]) -> tuple[int, dict[str, str]] | None:
        """Status and headers of the answer to a browser's question; None for other requests."""
        asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD")
        if environ["REQUEST_METHOD"] != "OPTIONS" or not asked or not environ.get("HTTP_ORIGIN") or not self._origins:
            return None
        allowed = self._allowed(environ)
        if allowed is None:
            return 400, {"vary": "Origin"}
        headers = {
            **allowed,
            "access-control-allow-methods": _METHODS,
            "access-control-max-age": _MAX_AGE_SECONDS,
        }
        wanted = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS")
        if wanted:
            headers["access-control-allow-headers"] = wanted
        return 200, headers
