"""What is tested: a plugin behind a URL, or one in the same process."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from octavo.errors import InvalidRequestError, OctavoError
from octavo.plugins.exchange import Request

if TYPE_CHECKING:
    from octavo.plugins.plugin import Plugin

# An answer with more bytes is a fault of the plugin.
MAX_ANSWER_BYTES = 8 << 20


class TargetError(OctavoError):
    """The plugin gave no complete answer; the message names the address and the remedy."""


@dataclass(frozen=True)
class Reply:
    """An answer. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class Target(Protocol):
    """Sends one request to a plugin. `path` is relative to the base URL, without a slash in front."""

    name: str

    def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        """Sends a request.

        Raises:
            TargetError: there is no complete answer.
        """
        ...


class PluginTarget:
    """A plugin of octavo's SDK in the same process, without a server."""

    def __init__(self, plugin: Plugin, headers: Mapping[str, str] | None = None) -> None:
        self.name = plugin.name
        self._plugin, self._headers = plugin, dict(headers or {})

    def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        answer = self._plugin.handle(Request(method, path, {**self._headers, **(headers or {})}, body))
        return Reply(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.body)


class UrlTarget:
    """A plugin behind a URL. Each request has a connection of its own; redirects are not followed.

    Args:
        url: the base URL, http or https.
        headers: for each request, for instance `{"Authorization": "Bearer .."}`.
        timeout: seconds for each operation on the connection.

    Raises:
        InvalidRequestError: the URL cannot be used.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, timeout: float = 10.0) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidRequestError(f"{url!r} is no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequestError(f"{url!r} is no URL of a plugin: give http://host:port/path or https://...")
        if parts.username or parts.password:
            raise InvalidRequestError("a URL with a user or a password is not used: give the credentials as a header")
        self.name = url
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._base = parts.path.rstrip("/") + "/"
        self._headers = dict(headers or {})
        self._timeout = timeout

    def __repr__(self) -> str:
        # Headers may hold secrets.
        return f"UrlTarget({self.name!r})"

    def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        connection = self._connect()
        try:
            sent = {**self._headers, **(headers or {})}
            connection.request(method, self._base + path, body=body or None, headers=sent)
            answer = connection.getresponse()
            text = answer.read(MAX_ANSWER_BYTES + 1)
            found = {name.lower(): value for name, value in answer.getheaders()}
        except (OSError, http.client.HTTPException) as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise TargetError(f"{method} {path} of {self.name}: no complete answer ({what}). Does it run?") from None
        finally:
            connection.close()
        if len(text) > MAX_ANSWER_BYTES:
            raise TargetError(f"{method} {path} of {self.name}: the answer has more than {MAX_ANSWER_BYTES} bytes")
        return Reply(answer.status, found, text)

    def _connect(self) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
