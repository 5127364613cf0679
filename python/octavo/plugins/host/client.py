"""Sends the requests of one call to one plugin: headers, secrets, redirects, the deadline and the count of requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin

from octavo.errors import InvalidRequestError
from octavo.plugins.host.egress import origin, show_origin
from octavo.plugins.host.outcome import Failure, Status
from octavo.plugins.host.source import PluginSource
from octavo.plugins.host.transport import HttpAnswer, HttpRequest, Transport, TransportError
from octavo.plugins.values import ANSWER_LEVELS, json_fault

_MAX_REDIRECTS = 3
_URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~"
_REDIRECTS = (301, 302, 303, 307, 308)
_STATUS: Mapping[str, Status] = {
    "refused": "refused",
    "connect": "unavailable",
    "timeout": "timeout",
    "broken": "unavailable",
    "too_large": "too_large",
    "protocol": "bad_response",
}


@dataclass
class Budget:
    """What one call may spend, and has spent.

    Attributes:
        deadline: when the call must end, on the host's clock.
        started: when the call began.
        requests: the HTTP requests until now.
        warnings: for the outcome.
    """

    clock: Callable[[], float]
    deadline: float
    started: float = 0.0
    requests: int = 0
    warnings: list[str] = field(default_factory=list)

    def left(self) -> float:
        """Seconds until the deadline; never below 0."""
        return max(self.deadline - self.clock(), 0.0)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


class Client:
    """HTTP to one plugin. It stays within the origin of the registered URL. Thread-safe."""

    def __init__(self, name: str, source: PluginSource, transport: Transport | None) -> None:
        self.name = name
        self.source = source
        self._transport = transport
        self._origin = origin(source.url)

    def url(self, path: str) -> str:
        """The URL of a path below the plugin's base.

        Raises:
            Failure: `refused`: it cannot be read, or has another origin.
        """
        return self._joined(self.source.url, path, "the URL")

    def _joined(self, base: str, path: str, what: str) -> str:
        """The URL of a reference, with characters outside ASCII percent-encoded (RFC 3987, section 3.1)."""
        try:
            found = urljoin(base, quote(_bytes(path), safe=_URL_CHARACTERS))
        except ValueError:
            raise Failure("refused", f"{what} of plugin {self.name!r} cannot be read: {path[:80]!r}") from None
        self.check_origin(found, what)
        return found

    def check_origin(self, url: str, what: str) -> None:
        """Refuses another origin than the registered one.

        Raises:
            Failure: `refused`.
        """
        try:
            same = origin(url) == self._origin
        except ValueError:
            raise Failure("refused", f"{what} of plugin {self.name!r} cannot be read") from None
        if not same:
            raise Failure(
                "refused",
                f"{what} of plugin {self.name!r} leads to {show_origin(url)[:200]}, not to its own"
                f" {show_origin(self.source.url)}: register that URL if it is right",
            )

    def send(
        self, budget: Budget, method: str, url: str, headers: Mapping[str, str], body: bytes | None, limit: int
    ) -> HttpAnswer:
        """One request, with the source's headers; redirects within the origin are followed.

        Raises:
            Failure: there is no complete answer, or a redirect that may not be followed.
        """
        sent = {"Accept": "application/json, application/problem+json", "User-Agent": "octavo", **headers}
        own = {name.lower() for name in self.source.headers}
        try:
            sent = {k: v for k, v in sent.items() if k.lower() not in own} | self.source.header_values()
        except InvalidRequestError as error:
            raise Failure("internal", f"the headers of the plugin {self.name!r}: {error}") from None
        for _ in range(_MAX_REDIRECTS + 1):
            answer = self._once(budget, HttpRequest(method, url, sent, body, budget.deadline, limit))
            if answer.status not in _REDIRECTS:
                return answer
            url = self._redirected(method, url, answer)
        raise Failure("bad_response", f"the plugin {self.name!r} redirects without end", sent=True)

    def _redirected(self, method: str, url: str, answer: HttpAnswer) -> str:
        target = answer.header("location") or ""
        if not target:
            raise Failure("bad_response", f"the plugin {self.name!r} redirects to nowhere", sent=True)
        target = self._joined(url, target, "a redirect")
        # Only 307 and 308 keep the method and the body (RFC 9110, section 15.4).
        if method != "GET" and answer.status not in (307, 308):
            detail = f"the plugin {self.name!r} redirects a {method} with status {answer.status}: use 307 or 308"
            raise Failure("bad_response", detail, sent=True)
        return target

    def _once(self, budget: Budget, request: HttpRequest) -> HttpAnswer:
        if budget.left() <= 0:
            raise Failure("timeout", f"the time for the plugin {self.name!r} was over")
        if self._transport is None:
            raise Failure("internal", f"the plugin {self.name!r} is an MCP server: it has no HTTP of its own")
        budget.requests += 1
        try:
            return self._transport.send(request)
        except TransportError as error:
            detail = f"the plugin {self.name!r} at {show_origin(self.source.url)}: {error.detail}"
            raise Failure(_STATUS[error.kind], detail, sent=error.sent) from None


def read_json(answer: HttpAnswer, what: str, levels: int = ANSWER_LEVELS) -> Any:
    """The JSON value of an answer.

    Args:
        levels: it may nest so deep.

    Raises:
        Failure: `bad_response`: another content type, no JSON, or not UTF-8.
    """
    kind = content_type(answer)
    if kind != "application/json" and not kind.endswith("+json"):
        raise Failure("bad_response", f"{what} has the content type {kind[:80]!r}, not application/json", sent=True)
    encoding = answer.header("content-encoding")
    if encoding and encoding.strip().lower() != "identity":
        raise Failure("bad_response", f"{what} has the content encoding {encoding[:80]!r}, not asked for", sent=True)
    try:
        value = json.loads(answer.body.decode("utf-8"), parse_constant=_no_constant)
        reason = json_fault(value, levels)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else str(error)[:120]
    if reason is not None:
        raise Failure("bad_response", f"{what} is no JSON in UTF-8: {reason}", sent=True, damaged=True)
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _bytes(text: str) -> bytes:
    """The bytes of a header's text, which the transport reads as latin-1; a text from elsewhere is UTF-8."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def content_type(answer: HttpAnswer) -> str:
    """The media type, in lower case, without parameters."""
    return (answer.header("content-type") or "").partition(";")[0].strip().lower()
