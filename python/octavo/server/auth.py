"""Checks of every request before its handler runs: header sizes, Host, API key. Default: rejected."""

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
from octavo.server.errors import ApiError
from octavo.server.page import PATHS

# Paths that need no key. Matched exactly: every other spelling needs the key.
PUBLIC_PATHS = frozenset({"/health", "/version"})
# Paths that need a key of administrators, and take no other one.
ADMIN_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
# Headers of Anthropic's and of Azure's clients for the key.
KEY_HEADERS = ("x-api-key", "api-key")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\s]*)(:\d+)?")


@dataclass(frozen=True)
class Accepted:
    """The checked head of a request. `salt`: see `Call.salt`."""

    headers: dict[str, str]
    request_id: str
    salt: str | None


class Auth:
    """Checks the heads of requests, independent of the web framework."""

    def __init__(self, config: ServerConfig) -> None:
        self._limits = config.limits
        self._hosts = None if config.allowed_hosts is None else {h.lower() for h in config.allowed_hosts}
        self._page = PATHS if config.page else frozenset()
        self._keys = [_digest(key) for key in config.api_keys]
        self._admin_keys = [_digest(key) for key in config.admin_api_keys]

    def request_id(self, given: str | None) -> str:
        """The client's own id if it has a valid form, else a new one."""
        return given if given and _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"

    def check(self, method: str, path: str, fields: Iterable[tuple[str, str]]) -> Accepted:
        """Checks the head of a request; `path` is relative to the application's root.

        Raises:
            ApiError: 400, 401, 403, 413, 431.
        """
        headers: dict[str, str] = {}
        count = size = 0
        for name, value in fields:
            count += 1
            size += len(name) + len(value)
            # Repeated headers are joined (RFC 9110): a second Authorization does not replace the first.
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
        if self._admin_keys and path in ADMIN_PATHS:
            self._check_admin(headers)
            return Accepted(headers, self.request_id(headers.get("x-request-id")), None)
        salt = self._salt(headers)
        if salt is None and self._keys and path not in PUBLIC_PATHS and not self._is_page(method, path):
            raise ApiError(
                401,
                "a valid API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return Accepted(headers, self.request_id(headers.get("x-request-id")), salt)

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

    def _salt(self, headers: dict[str, str]) -> str | None:
        """A salt for the key of a request, which does not reveal the key; None without a valid key."""
        found = _matches(headers, self._keys)
        return None if found is None else f"key:{found.hex()[:32]}"

    def _check_admin(self, headers: dict[str, str]) -> None:
        """Rejects a request without a key of administrators.

        Raises:
            ApiError: 403 with an ordinary key, else 401.
        """
        if _matches(headers, self._admin_keys) is not None:
            return
        if _matches(headers, self._keys) is not None:
            raise ApiError(
                403, "this key may not change adapters: a key of administrators is needed", code="no_admin_key"
            )
        raise ApiError(
            401,
            "a key of administrators is needed: send the one of --admin-api-key as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _matches(headers: dict[str, str], keys: list[bytes]) -> bytes | None:
    """The digest of a key in `headers` that is one of `keys`."""
    if not keys:
        return None
    given = [_authorized(headers.get("authorization", "")), *(headers.get(name) for name in KEY_HEADERS)]
    # Clients may send a key for another service beside the right one: one valid key is enough.
    found = None
    for digest in (_digest(key.strip()) for key in given if key is not None):
        # All keys are compared, each in constant time.
        matches = [hmac.compare_digest(digest, key) for key in keys]
        found = digest if any(matches) and found is None else found
    return found


def _authorized(authorization: str) -> str | None:
    """The key of an Authorization header; None if there is none."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given
    if scheme.lower() == "basic":
        # For tools that send passwords only.
        try:
            return base64.b64decode(given.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return None
    return None
