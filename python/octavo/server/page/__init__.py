"""GET /: a small page to try a prompt and to see the metrics. The page is static and calls the API as a client."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from octavo.server.context import Context
from octavo.server.errors import ApiError
from octavo.server.http import Call, Reply
from octavo.server.routes import Route

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/page/text.js": ("text.js", "text/javascript; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
# Served without a key: the page asks for one.
PATHS = frozenset(_FILES)
# Only files and requests of this server: no inline code, no other origins, no frames.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page(context: Context, call: Call) -> Reply:
    """A file of the page.

    Raises:
        ApiError: 404.
    """
    found = _FILES.get(call.path) if context.config.page else None
    if found is None:
        raise ApiError(404, f"there is nothing at {call.path[:200]!r}", code="not_found")
    name, kind = found
    return Reply(200, _read(name), kind, _HEADERS)


@cache
def _read(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()


ROUTES = [
    # For people, not for API clients.
    Route("GET", "/", page, "The built-in page", documented=False),
    Route("GET", "/page/{file}", page, "A file of the built-in page", documented=False),
]
