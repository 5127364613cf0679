"""Which web pages may call a plugin: checks against foreign pages, and CORS headers for permitted ones."""

from __future__ import annotations

import re
from collections.abc import Collection

from octavo.plugins import protocol
from octavo.plugins.exchange import Request, Response
from octavo.plugins.problems import ProblemError

# Origins of pages that this machine serves.
_LOCAL = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")
_EXPOSED = ", ".join(
    (protocol.PROTOCOL_HEADER, protocol.DIGEST_HEADER, protocol.REPLAY_HEADER, "Deprecation", "Sunset", "Retry-After")
)
_PREFLIGHT_SECONDS = 600


class Origins:
    """The origins whose pages may call. `*` permits all; pages of this machine always may, without CORS headers."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = frozenset(allowed)

    def check(self, request: Request) -> None:
        """Refuses requests that a foreign page makes in a user's browser, also by rebinding a name.

        Raises:
            ProblemError: forbidden.
        """
        origin = request.header("origin")
        if origin is None or self._permits(origin) or _LOCAL.fullmatch(origin):
            return
        raise ProblemError("forbidden", f"pages of {origin[:200]!r} may not call: name it in allowed_origins")

    def headers(self, request: Request) -> dict[str, str]:
        """The CORS headers of the answer; none for a page that is not named."""
        origin = request.header("origin")
        if origin is None or not self._permits(origin):
            return {}
        return {"access-control-allow-origin": origin, "vary": "Origin", "access-control-expose-headers": _EXPOSED}

    def preflight(self, request: Request) -> Response | None:
        """The answer to a browser's question before a call; None: the request is none."""
        method = request.header("access-control-request-method")
        if request.method != "OPTIONS" or method is None or not self.headers(request):
            return None
        fields = {
            "access-control-allow-methods": "GET, POST",
            "access-control-max-age": str(_PREFLIGHT_SECONDS),
        }
        if asked := request.header("access-control-request-headers"):
            fields["access-control-allow-headers"] = asked
        return Response(204, fields)

    def _permits(self, origin: str) -> bool:
        return "*" in self._allowed or origin in self._allowed
