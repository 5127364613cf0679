"""What is tested: a plugin behind a URL, or one in the same process."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from octavo.errors import OctavoError
from octavo.plugins.exchange import Request
from octavo.plugins.host.egress import check_url
from octavo.plugins.host.source import PluginSource, Secret, redact

if TYPE_CHECKING:
    from octavo.plugins.plugin import Plugin

# An answer with more bytes is a fault of the plugin.
MAX_ANSWER_BYTES = 8 << 20
# Bytes of a body that a report shows.
_SHOWN_BYTES = 200
# A shorter value protects nothing, and cannot be taken out of a text without damage to it.
_SHORTEST_SECRET = 6


class TargetError(OctavoError):
    """The plugin gave no complete answer; the message names the address and the remedy."""


@dataclass(frozen=True)
class Reply:
    """An answer. Names of headers are in lower case.

    Attributes:
        secrets: values of the request that no report shows.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    secrets: Sequence[Secret] = field(default=(), repr=False)

    @property
    def shown(self) -> str:
        """The begin of the body for a report, without secrets."""
        # A cut before the secrets are removed could leave a part of one.
        return repr(redact(self.body.decode("utf-8", "replace"), self.secrets)[:_SHOWN_BYTES])

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
        self.secrets: Sequence[Secret] = _secrets(self._headers)

    def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        answer = self._plugin.handle(Request(method, path, {**self._headers, **(headers or {})}, body))
        names = {name.lower(): value for name, value in answer.headers.items()}
        return Reply(answer.status, names, answer.body, self.secrets)


class UrlTarget:
    """A plugin behind a URL. Each request has a connection of its own; redirects are not followed.

    Args:
        url: the base URL, http or https.
        headers: for each request, for instance `{"Authorization": "Bearer .."}`. No report shows their values.
        timeout: seconds for each operation on the connection.

    Raises:
        InvalidRequestError: the URL or a header cannot be used.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, timeout: float = 10.0) -> None:
        parts = urlsplit(check_url(url))
        assert parts.hostname
        self.name = url
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._base = parts.path.rstrip("/") + "/"
        # It refuses names and values that no header may have.
        self._headers = PluginSource(url, headers=dict(headers or {})).header_values()
        self.secrets: Sequence[Secret] = _secrets(self._headers)
        self._timeout = timeout

    def __repr__(self) -> str:
        # Headers may hold secrets.
        return f"UrlTarget({self.name!r})"

    def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        connection = self._connect()
        try:
            sent = {**self._headers, **(headers or {})}
            try:
                connection.request(method, self._base + path, body=body or None, headers=sent)
            except (BrokenPipeError, ConnectionResetError):
                # A service may refuse a body before it has read it, and close (RFC 9110, 15.5.14): read its answer.
                if connection.sock is None:
                    raise
            answer = connection.getresponse()
            text = answer.read(MAX_ANSWER_BYTES + 1)
            found = {name.lower(): value for name, value in answer.getheaders()}
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise TargetError(f"{method} {path} of {self.name}: no complete answer ({what}). Does it run?") from None
        finally:
            connection.close()
        if len(text) > MAX_ANSWER_BYTES:
            raise TargetError(f"{method} {path} of {self.name}: the answer has more than {MAX_ANSWER_BYTES} bytes")
        return Reply(answer.status, found, text, self.secrets)

    def _connect(self) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)


def _secrets(headers: Mapping[str, str]) -> list[Secret]:
    """The values of headers, and their parts: after `Bearer `, or of each cookie after its name."""
    found: dict[str, None] = {}
    for value in headers.values():
        parts = [value, *value.split()[1:], *(part.partition("=")[2] for part in value.split(";"))]
        found |= dict.fromkeys(part.strip() for part in parts)
    return [Secret(part) for part in found if len(part) >= _SHORTEST_SECRET]
