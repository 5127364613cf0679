"""Where a plugin is, and what the host may do with it. Secrets are values that no text shows."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn
from urllib.parse import quote

from octavo.errors import InvalidRequestError
from octavo.plugins.host.egress import check_url

Approval = Literal["never", "consequential", "always"]

TIMEOUT_S = 10.0
# The longest answer that is read, and the longest document: a public service's document may be large.
RESPONSE_BYTES = 1 << 20
DOCUMENT_BYTES = 8 << 20
CONCURRENCY = 16
# A shorter secret cannot be removed from texts without damage to them, and protects nothing.
_SHORTEST_SECRET = 6
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?", re.ASCII)
# The host sets these itself.
_OWN_HEADERS = {
    *("host", "content-length", "transfer-encoding", "connection", "te", "upgrade", "trailer", "content-type"),
    *("accept-encoding", "idempotency-key", "octavo-protocol", "octavo-digest"),
}
# A document may not have arguments that set these: they steer the connection, or carry credentials.
_NEVER_ARGUMENTS = (_OWN_HEADERS - {"idempotency-key"}) | {"cookie", "expect", "forwarded", "keep-alive", "via"}
_NEVER_PREFIXES = ("proxy-", "sec-", "x-forwarded-", "octavo-")
# Names of headers whose values are credentials, also where they are given as plain text.
_CREDENTIAL = re.compile(
    r"auth(?!or\b)|cookie|token|secret|key|password|passwd|session|credential|signature", re.IGNORECASE
)


class Secret:
    """A value that no repr, log, error, trace or prompt shows. Only the host reads it, to send it.

    Make one with `Secret.env("MAPS_TOKEN", prefix="Bearer ")`, which reads the variable at each request.
    """

    __slots__ = ("_name", "_prefix", "_seen", "_value")

    def __init__(self, value: str, *, prefix: str = "") -> None:
        """A secret from a value.

        Raises:
            InvalidRequestError: a value that is too short, or cannot be in a header.
        """
        self._name, self._prefix, self._value = "", prefix, value
        self._seen: tuple[str, ...] = ()
        self.reveal()

    @classmethod
    def env(cls, name: str, *, prefix: str = "") -> Secret:
        """A secret from an environment variable, read at each request.

        Args:
            name: the variable's name.
            prefix: text before the value, `"Bearer "`.

        Raises:
            InvalidRequestError: the variable is not set, is too short, or cannot be in a header.
        """
        secret = cls.__new__(cls)
        secret._name, secret._prefix, secret._value, secret._seen = name, prefix, "", ()
        secret.reveal()
        return secret

    def reveal(self) -> str:
        """The whole value, with the prefix. Send it; never log it.

        Raises:
            InvalidRequestError: the variable is not set any more, or holds what cannot be sent.
        """
        value = os.environ.get(self._name) if self._name else self._value
        if value is None:
            raise InvalidRequestError(f"the environment variable {self._name!r} is not set: set it to the secret")
        if value not in self._seen:
            self._check(value)
            # Older values too may come back.
            self._seen = (value, *self._seen[:3])
        return self._prefix + value

    def forms(self) -> list[str]:
        """The texts in which the secret may come back: as it is, percent-encoded, in base64."""
        found: set[str] = set()
        for value in self._seen:
            found |= {value, quote(value, safe=""), base64.b64encode(value.encode()).decode().rstrip("=")}
        return sorted(found, key=len, reverse=True)

    def _check(self, value: str) -> None:
        where = f"of the environment variable {self._name!r}" if self._name else "that was given"
        if not isinstance(value, str) or len(value) < _SHORTEST_SECRET:
            raise InvalidRequestError(
                f"the secret {where} has fewer than {_SHORTEST_SECRET} characters: use a longer one"
            )
        if not _HEADER_VALUE.fullmatch(self._prefix + value):
            raise InvalidRequestError(
                f"the secret {where} has a character that no header may have, or a space at its end: remove line"
                " breaks, spaces and characters outside ASCII"
            )

    @property
    def label(self) -> str:
        """What stands in a text in place of the secret."""
        return f"[secret {self._name}]" if self._name else "[secret]"

    def __repr__(self) -> str:
        return f"Secret.env({self._name!r})" if self._name else "Secret(...)"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied out of the process: make it anew where it is used")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self


@dataclass(frozen=True)
class PluginSource:
    """Where a plugin is, and what the host may do with it.

    Attributes:
        url: the base URL of the plugin, or of any service with an OpenAPI document.
        headers: sent with each request; values are texts or `Secret`s. Plain texts under the name of a credential, such
            as `Authorization` or `X-Api-Key`, are taken out of what a plugin sends back, too.
        api: the plugin's own major version to use; None: the highest that works.
        timeout: seconds for one call, all its requests together.
        operations: the ids that may be called; None: all.
        approval: which calls wait for an approval: those with effects, all or none.
        allow_private: whether a public name may have a private address.
        openapi: the URL of the OpenAPI document, relative to `url`; None: the manifest's, else `openapi.json`.
        response_bytes: the longest answer that is read.
        concurrency: calls at a time; more wait, within their deadline.
    """

    url: str
    headers: Mapping[str, str | Secret] = field(default_factory=dict)
    api: int | None = None
    timeout: float = TIMEOUT_S
    operations: Sequence[str] | None = None
    approval: Approval = "consequential"
    allow_private: bool = False
    openapi: str | None = None
    response_bytes: int = RESPONSE_BYTES
    concurrency: int = CONCURRENCY
    kind: Literal["http", "mcp", "mcp_stdio"] = "http"
    command: Sequence[str] = ()
    env: Mapping[str, str | Secret] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind != "mcp_stdio":
            object.__setattr__(self, "url", check_url(self.url))
        if not isinstance(self.timeout, (int, float)) or not math.isfinite(self.timeout) or self.timeout <= 0:
            raise InvalidRequestError(f"timeout={self.timeout!r}: give a number of seconds above 0")
        if self.api is not None and (isinstance(self.api, bool) or not isinstance(self.api, int) or self.api < 0):
            raise InvalidRequestError(f"api={self.api!r}: give a major version such as 1, or None")
        if self.approval not in ("never", "consequential", "always"):
            raise InvalidRequestError(f"approval={self.approval!r}: give 'never', 'consequential' or 'always'")
        for name in ("response_bytes", "concurrency"):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidRequestError(f"{name}={value!r}: give a whole number above 0")
        if isinstance(self.operations, str):
            raise InvalidRequestError(f"operations={self.operations!r}: give a list of operation ids")
        self._check_headers()

    @classmethod
    def mcp(cls, url: str, **options: Any) -> PluginSource:
        """An MCP server at a URL (Streamable HTTP). The options are those of `PluginSource`."""
        return cls(url, kind="mcp", **options)

    @classmethod
    def mcp_stdio(
        cls, command: str, args: Sequence[str] = (), env: Mapping[str, str | Secret] | None = None, **options: Any
    ) -> PluginSource:
        """An MCP server that the host starts as a process and speaks to over its standard streams.

        Args:
            command: the program.
            args: its arguments.
            env: variables of its environment, beside the few that the SDK passes on.
        """
        return cls("", kind="mcp_stdio", command=(command, *args), env=dict(env or {}), **options)

    def _check_headers(self) -> None:
        for name, value in self.headers.items():
            if not isinstance(name, str) or not _HEADER.fullmatch(name):
                raise InvalidRequestError(f"{name!r} is no header name: use letters, digits and '-'")
            if name.lower() in _OWN_HEADERS:
                raise InvalidRequestError(f"the header {name!r} is the host's own: leave it out")
            # The value may be a secret that was given as plain text: the message must not show it.
            if not isinstance(value, Secret) and not (isinstance(value, str) and _HEADER_VALUE.fullmatch(value)):
                raise InvalidRequestError(f"the value of the header {name!r} has a character that no header may have")

    def secrets(self) -> list[Secret]:
        """The secrets of the headers and of the environment, and plain values whose names are those of credentials."""
        found = []
        for name, value in [*self.headers.items(), *self.env.items()]:
            if isinstance(value, Secret):
                found.append(value)
            elif _CREDENTIAL.search(name):
                found += _plain_secrets(value)
        return found

    def header_values(self) -> dict[str, str]:
        """The headers to send, with the secrets in them."""
        return {k: v.reveal() if isinstance(v, Secret) else v for k, v in self.headers.items()}

    def __repr__(self) -> str:
        # A header's value may be a secret that was given as plain text.
        where = self.url if self.kind != "mcp_stdio" else self.command[0]
        return f"PluginSource({where!r}, kind={self.kind!r}, headers={sorted(self.headers)!r})"


def may_be_header(name: str) -> bool:
    """Whether a document may have a header of this name as an argument."""
    lower = name.lower()
    return bool(_HEADER.fullmatch(name)) and lower not in _NEVER_ARGUMENTS and not lower.startswith(_NEVER_PREFIXES)


def _plain_secrets(value: str) -> list[Secret]:
    """The parts of a credential in plain text: after `Bearer `, or of each cookie after its name."""
    parts = [value, *value.split()[1:], *(part.partition("=")[2] for part in value.split(";"))]
    parts = [part.strip() for part in dict.fromkeys(parts)]
    return [Secret(part) for part in parts if len(part) >= _SHORTEST_SECRET and _HEADER_VALUE.fullmatch(part)]


def redact(value: Any, secrets: Sequence[Secret]) -> Any:
    """A JSON value without the secrets: a server may echo what it got, and the model must not see it."""
    if not secrets:
        return value
    # Headers and percent-encodings may come back in another case.
    marks = [
        (re.compile(re.escape(form), re.IGNORECASE), secret.label) for secret in secrets for form in secret.forms()
    ]
    return _redact(value, marks)


def _redact(value: Any, marks: list[tuple[re.Pattern[str], str]]) -> Any:
    if isinstance(value, str):
        for pattern, label in marks:
            value = pattern.sub(label.replace("\\", ""), value)
        return value
    if isinstance(value, dict):
        return {_redact(key, marks): _redact(item, marks) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact(item, marks) for item in value]
    return value
