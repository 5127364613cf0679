"""Sends one HTTP request within one deadline, and reads at most so many bytes of its answer.

The deadline spans the resolution, the connection, TLS, the headers and the body: a server that sends one byte a second
does not pass it. The name is resolved once, each address is checked, and the connection goes to the checked address.
Redirects are answers like others: nothing follows them here. Proxies of the environment are not used.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from octavo.errors import MissingDependencyError
from octavo.plugins.forks import after_fork
from octavo.plugins.host.egress import EgressError, Resolve, resolve, system_resolve

if TYPE_CHECKING:
    import httpcore

_KEEP_IDLE_S = 15.0


@dataclass(frozen=True)
class HttpRequest:
    """One request.

    Attributes:
        deadline: when the answer must be complete, in seconds of the host's clock.
        limit: the most bytes of the answer's body that are read.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None
    deadline: float = float("inf")
    limit: int = 1 << 20

    def __repr__(self) -> str:
        # Headers and bodies may hold secrets.
        return f"HttpRequest({self.method} {self.url.partition('?')[0]})"


@dataclass(frozen=True)
class HttpAnswer:
    """One answer. Names of headers are in lower case; values of repeated headers are joined by commas."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The header's value by its name, in any case; None if it is missing."""
        found = self.headers.get(name.lower())
        if found is None:
            found = next((v for k, v in self.headers.items() if k.lower() == name.lower()), None)
        return found

    def __repr__(self) -> str:
        return f"HttpAnswer({self.status}, {len(self.body)} bytes)"


Kind = Literal["refused", "connect", "timeout", "broken", "too_large", "protocol"]


class TransportError(Exception):
    """A request without a complete answer.

    Attributes:
        kind: `refused` by the egress rules; `connect`: no connection; `timeout`; `broken`: the connection ended in the
            middle; `too_large`: more bytes than the limit; `protocol`: no HTTP.
        sent: whether the server may have got the request.
    """

    def __init__(self, kind: Kind, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.kind: Kind = kind
        self.detail = detail
        self.sent = sent


class Transport(Protocol):
    """What the host needs of HTTP. Tests and simulators bring their own."""

    def send(self, request: HttpRequest) -> HttpAnswer:
        """Sends a request and reads the whole answer.

        Raises:
            TransportError: there is no complete answer.
        """
        ...


class _Exchange(threading.local):
    """The request that this thread sends now."""

    deadline: float = float("inf")
    clock: Callable[[], float] = staticmethod(time.monotonic)
    connected: bool = False
    active: bool = False


_now = _Exchange()


def _seconds_left() -> float:
    return max(_now.deadline - _now.clock(), 0.0)


class _Quiet(logging.Filter):
    """Drops what the HTTP library logs of the host's requests: at level DEBUG it logs headers, which hold secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _now.active


def quiet(*libraries: str) -> None:
    """Installs the filter for the loggers of HTTP libraries."""
    for library in libraries:
        for part in ("connection", "http11", "proxy", "http2"):
            logger = logging.getLogger(f"{library}.{part}")
            if not any(isinstance(found, _Quiet) for found in logger.filters):
                logger.addFilter(_Quiet())


def quiet_thread() -> None:
    """All requests of this thread are the host's own."""
    quiet("httpcore", "httpcore2")
    _now.active = True


class HttpTransport:
    """The default transport, over httpcore. It keeps connections to one service. Thread-safe.

    Args:
        allow_private: whether a public name may resolve to a private address.
        connections: the most connections at a time.
        resolver: names to addresses; the system's if None.
        context: the TLS settings; None: the system's certificates.
        clock: seconds, of the deadlines of requests.

    Raises:
        MissingDependencyError: httpcore is not installed.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        connections: int = 16,
        resolver: Resolve | None = None,
        context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        try:
            import httpcore
        except ImportError:
            raise MissingDependencyError("httpcore is needed to call plugins: pip install 'octavo[plugins]'") from None
        self._core = httpcore
        quiet("httpcore")
        self._options: dict[str, Any] = {
            "ssl_context": context or ssl.create_default_context(),
            "max_connections": connections,
            "keepalive_expiry": _KEEP_IDLE_S,
            "network_backend": _backend(httpcore, resolver or system_resolve, allow_private),
        }
        self._reset()
        # Two processes on one connection would read each other's answers.
        after_fork(self, HttpTransport._reset)

    def _reset(self) -> None:
        self._pool = self._core.ConnectionPool(**self._options)

    def send(self, request: HttpRequest) -> HttpAnswer:
        core = self._core
        with _exchange(request.deadline, self._clock):
            left = _seconds_left()
            if left <= 0:
                raise TransportError("timeout", "the time was over before the request was sent", sent=False)
            times = {"connect": left, "read": left, "write": left, "pool": left}
            try:
                return self._exchange(request, times)
            except EgressError as error:
                raise TransportError("refused", str(error), sent=False) from None
            except core.PoolTimeout:
                detail = "all connections were in use until the time was over"
                raise TransportError("timeout", detail, sent=False) from None
            except (core.ConnectError, core.ConnectTimeout) as error:
                kind: Kind = "timeout" if isinstance(error, core.ConnectTimeout) else "connect"
                raise TransportError(kind, f"no connection: {_reason(error)}", sent=False) from None
            except core.TimeoutException:
                raise TransportError("timeout", "no complete answer in time", sent=_now.connected) from None
            except core.RemoteProtocolError as error:
                broken = "disconnected" in str(error) or "closed" in str(error)
                kind = "broken" if broken else "protocol"
                raise TransportError(kind, f"no complete answer: {_reason(error)}", sent=True) from None
            except (core.NetworkError, core.ProtocolError) as error:
                raise TransportError("broken", f"the connection broke: {_reason(error)}", sent=True) from None

    def _exchange(self, request: HttpRequest, times: dict[str, float]) -> HttpAnswer:
        headers = [(k.encode("ascii"), v.encode("latin-1")) for k, v in request.headers.items()]
        headers += [(b"Accept-Encoding", b"identity")]
        if request.body is not None:
            headers.append((b"Content-Length", str(len(request.body)).encode()))
        sending = self._pool.stream(
            request.method, request.url, headers=headers, content=request.body, extensions={"timeout": times}
        )
        with sending as answer:
            found: dict[str, str] = {}
            for raw, value in answer.headers:
                name, text = raw.decode("ascii", "replace").lower(), value.decode("latin-1")
                found[name] = f"{found[name]}, {text}" if name in found else text
            declared = found.get("content-length", "")
            if declared.isdigit() and int(declared) > request.limit:
                raise TransportError("too_large", _too_large(request.limit), sent=True)
            body = bytearray()
            for part in answer.iter_stream():
                body += part
                if len(body) > request.limit:
                    raise TransportError("too_large", _too_large(request.limit), sent=True)
            return HttpAnswer(answer.status, found, bytes(body))

    def close(self) -> None:
        """Closes the idle connections. Requests that run end with a `broken` error or their answer."""
        self._pool.close()


@contextlib.contextmanager
def _exchange(deadline: float, clock: Callable[[], float]) -> Iterator[None]:
    _now.deadline, _now.clock = deadline, clock
    _now.connected, _now.active = False, True
    try:
        yield
    finally:
        _now.active = False


def _too_large(limit: int) -> str:
    return f"the answer has more than {limit} bytes: ask for less, or raise response_bytes"


def _reason(error: BaseException) -> str:
    return str(error)[:200] or type(error).__name__


def _backend(core: Any, resolver: Resolve, allow_private: bool) -> httpcore.NetworkBackend:
    """The network of the pool: checked addresses, and times that end at the deadline of the thread's request."""

    class Stream(core.NetworkStream):  # type: ignore[misc]
        def __init__(self, inner: httpcore.NetworkStream) -> None:
            self._inner = inner
            _now.connected = True

        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            _now.connected = True
            return self._inner.read(max_bytes, _bounded(core.ReadTimeout))

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            _now.connected = True
            view = memoryview(buffer)
            # In pieces: the inner stream applies its time to each part that the socket accepts.
            for start in range(0, len(view), 65536):
                self._inner.write(bytes(view[start : start + 65536]), _bounded(core.WriteTimeout))

        def close(self) -> None:
            self._inner.close()

        def start_tls(
            self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
        ) -> httpcore.NetworkStream:
            return Stream(self._inner.start_tls(ssl_context, server_hostname, _bounded(core.ConnectTimeout)))

        def get_extra_info(self, info: str) -> Any:
            return self._inner.get_extra_info(info)

    class Backend(core.NetworkBackend):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inner = core.SyncBackend()

        def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Any = None,
        ) -> httpcore.NetworkStream:
            try:
                addresses = resolve(host.strip("[]"), port, _seconds_left(), allow_private, resolver)
            except TimeoutError as error:
                raise core.ConnectTimeout(str(error)) from None
            except (OSError, UnicodeError) as error:
                raise core.ConnectError(f"the name {host!r} cannot be resolved: {error}") from None
            return Stream(_first(core, self._inner, addresses, port, socket_options))

        def connect_unix_socket(self, *_: Any, **__: Any) -> Any:
            raise EgressError("a plugin is reached over TCP alone")

        def sleep(self, seconds: float) -> None:
            time.sleep(min(seconds, _seconds_left()))

    backend: httpcore.NetworkBackend = Backend()
    return backend


def _first(core: Any, inner: Any, addresses: list[str], port: int, options: Any) -> httpcore.NetworkStream:
    """A connection to the first address that accepts one; each gets its share of the time."""
    for at, address in enumerate(addresses):
        share = _bounded(core.ConnectTimeout) / (len(addresses) - at)
        try:
            stream: httpcore.NetworkStream = inner.connect_tcp(address, port, share, None, options)
            return stream
        except (core.ConnectError, core.ConnectTimeout):
            if at == len(addresses) - 1:
                raise
    raise core.ConnectError("no address")


def _bounded(late: Callable[[str], BaseException]) -> float:
    """The seconds until the deadline."""
    left = _seconds_left()
    if left <= 0:
        raise late("the time is over")
    return left
