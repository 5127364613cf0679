"""What every request must pass before anything else looks at it. Default: closed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from octavo.server.config import ServerConfig
from octavo.server.faults import ApiError
from octavo.server.page import PATHS

# Matched exactly: whatever else a path may mean to a router, it needs the key.
OPEN = frozenset({"/health", "/version"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\s]*)(:\d+)?")


@dataclass(frozen=True)
class Pass:
    """A request that may go on."""

    headers: dict[str, str]
    request_id: str
    salt: str | None


class Gate:
    """Sizes of headers, Host, keys. Knows no framework."""

    def __init__(self, config: ServerConfig) -> None:
        self._limits = config.limits
        self._hosts = None if config.allowed_hosts is None else {h.lower() for h in config.allowed_hosts}
        self._page = PATHS if config.page else frozenset()
        self._keys = [hashlib.sha256(key.encode()).digest() for key in config.api_keys]

    def request_id(self, given: str | None) -> str:
        """The client's own id if it is a harmless one, else a new one."""
        return given if given and _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"

    def check(self, method: str, path: str, fields: Iterable[tuple[str, str]]) -> Pass:
        """Checks the head of a request; `path` is relative to the application's root.

        Raises:
            ApiError: 400, 401, 403, 413, 431.
        """
        headers: dict[str, str] = {}
        count = size = 0
        for name, value in fields:
            count += 1
            size += len(name) + len(value)
            # A repeated header is joined, as RFC 9110 has it: a second Authorization does not replace the first.
            name = name.lower()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if count > self._limits.headers or size > self._limits.header_bytes:
            raise ApiError(
                431, f"{count} headers of {size} bytes: at most {self._limits.headers} and {self._limits.header_bytes}"
            )
        self._check_host(headers.get("host", ""))
        length = headers.get("content-length", "0")
        if not length.isdecimal() or not length.isascii() or len(length) > 18:
            raise ApiError(400, "the Content-Length is no number")
        if int(length) > self._limits.body_bytes:
            raise self.too_large()
        salt = self._key_salt(headers.get("authorization", ""))
        if salt is None and self._keys and path not in OPEN and not self._is_page(method, path):
            raise ApiError(
                401,
                "a valid API key is needed: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return Pass(headers, self.request_id(headers.get("x-request-id")), salt)

    def _is_page(self, method: str, path: str) -> bool:
        return method in ("GET", "HEAD") and path in self._page

    def too_large(self) -> ApiError:
        return ApiError(413, f"the body is longer than the {self._limits.body_bytes} bytes that are read")

    def _check_host(self, host: str) -> None:
        if self._hosts is None:
            return
        found = _HOST.fullmatch(host)
        if found is None or found.group(1).lower() not in self._hosts:
            raise ApiError(403, f"the Host header names {host[:80]!r}, which is not served: see --allowed-host")

    def _key_salt(self, authorization: str) -> str | None:
        """Which key was shown, as a salt that tells nothing of it; None without a valid one."""
        scheme, _, given = authorization.partition(" ")
        given = given.strip()
        if scheme.lower() == "basic":
            # For tools that know passwords only.
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return None
        elif scheme.lower() != "bearer":
            return None
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        # All keys are compared, each in constant time.
        matches = [hmac.compare_digest(digest, key) for key in self._keys]
        return f"key:{digest.hex()[:32]}" if any(matches) else None
