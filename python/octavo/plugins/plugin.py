"""`Plugin`: typed functions as operations of a service, under any framework or none."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, overload

from octavo.errors import InvalidRequestError
from octavo.plugins import frameworks, openapi, protocol
from octavo.plugins.asgi import AsgiApp
from octavo.plugins.convert import Converter, build_table
from octavo.plugins.exchange import Request, Response, problem_response
from octavo.plugins.handle import Handler, Served
from octavo.plugins.idempotency import IdempotencyStore, MemoryStore
from octavo.plugins.manifest import Deprecation, Limits, Manifest, OperationEntry
from octavo.plugins.operation import Operation, make_operation, read_function
from octavo.plugins.problems import Problem
from octavo.plugins.running import Runner
from octavo.plugins.wsgi import WsgiApp

log = logging.getLogger("octavo.plugins")

_Function = TypeVar("_Function", bound=Callable[..., Any])

DEFAULT_CONCURRENCY = 64


class Plugin:
    """A plugin.

        plugin = Plugin("weather", version="2.1.0")

        @plugin.operation(since="1.0", aliases={"city": ["town"]})
        def get_forecast(city: str, days: Annotated[int, Field(ge=1, le=7)] = 3) -> Forecast:
            "The forecast for a city."

    Serve `plugin.asgi_app` or `plugin.wsgi_app`, mount one of them, or use `plugin.router()` in FastAPI and
    `plugin.blueprint()` in Flask.

    Args:
        name: a letter, then at most 63 letters, digits, `_` and `-`.
        version: major.minor.patch. The major is the API major, `2` in `v2/invoke/...`.
        description: one or two sentences for people and models.
        limits: of a body and of an operation's time.
        concurrency: operations that run at once; further requests get 503.
        authorize: a plain function, not async. True lets a request pass, all else answers 401. See `bearer`.
        health: a plain function, not async. It raises, or returns a false value other than None, while the plugin does
            not work.
        allowed_origins: web pages that may call and read answers (CORS), such as `https://example.org`; `*` permits
            all. Pages of other origins are refused, except those of this machine.
        idempotency: where answers to requests with an Idempotency-Key are kept; None: in memory, one hour. Several
            processes of one plugin must share a `SqliteStore`, else a retry that another process gets runs again.

    Raises:
        InvalidRequestError: an argument that cannot be right.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str,
        description: str = "",
        limits: Limits | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        authorize: Callable[[Request], bool] | None = None,
        health: Callable[[], object] | None = None,
        allowed_origins: Collection[str] = (),
        idempotency: IdempotencyStore | None = None,
    ) -> None:
        if not isinstance(name, str) or not protocol.is_plugin_name(name):
            raise InvalidRequestError(
                f"name is {name!r}: a letter, then at most 63 letters, digits, _ and - are expected, without __"
                " and with no _ at its end"
            )
        found = protocol.api_version(version) if isinstance(version, str) else None
        if found is None:
            raise InvalidRequestError(f"version is {version!r}: a text such as '2.1.0' is expected")
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
            raise InvalidRequestError(f"concurrency is {concurrency!r}: an integer of at least 1 is expected")
        self.name = name
        self.version = version
        self.description = description
        self.limits = limits if limits is not None else Limits()
        self._version = found
        self._operations: dict[str, Operation] = {}
        self._converters: list[Converter] = []
        for option, function in (("authorize", authorize), ("health", health)):
            _check_plain(option, function)
        self._authorize, self._health = authorize, health
        if isinstance(allowed_origins, str):
            raise InvalidRequestError(f"allowed_origins is {allowed_origins!r}: a list of origins is expected")
        self._origins = frozenset(allowed_origins)
        self._store = idempotency if idempotency is not None else MemoryStore()
        self._runner = Runner(self.limits.timeout_s, concurrency)
        self._lock = threading.Lock()
        self._built: tuple[Handler, Manifest, dict[str, Any]] | None = None

    @overload
    def operation(self, function: _Function, /) -> _Function: ...

    @overload
    def operation(
        self,
        function: None = None,
        /,
        *,
        since: str | None = None,
        name: str | None = None,
        aliases: Mapping[str, Any] | None = None,
        consequential: bool = False,
        idempotent: bool | None = None,
        deprecated: Deprecation | None = None,
    ) -> Callable[[_Function], _Function]: ...

    def operation(
        self,
        function: _Function | None = None,
        /,
        *,
        since: str | None = None,
        name: str | None = None,
        aliases: Mapping[str, Any] | None = None,
        consequential: bool = False,
        idempotent: bool | None = None,
        deprecated: Deprecation | None = None,
    ) -> Callable[[_Function], _Function] | _Function:
        """Makes a typed function an operation; the docstring is its description. The function stays as it is.

        A parameter of the type `Request` gets the request, and is no argument.

        Args:
            since: the version that brought it, `1.0`. None: this version.
            name: the id; None: the function's name.
            aliases: argument -> its former names, which non-consequential operations still accept.
            consequential: it changes something outside: hosts ask for approval, and repair no argument.
            idempotent: repeating a call has no further effect; None: what is not consequential is idempotent.
            deprecated: `Deprecation.on("2026-12-01", sunset="2027-06-01", use="get_weather")`.

        Raises:
            InvalidRequestError: a parameter without a type, a type without a schema, an option that cannot be right.
        """
        scope = dict(sys._getframe(1).f_locals)

        def register(function: _Function) -> _Function:
            typed = read_function(function, name, scope)
            if typed.id in self._operations:
                raise InvalidRequestError(f"{self.name} has two operations called {typed.id}: rename one")
            operation = make_operation(
                function,
                typed,
                version=self._version,
                since=since,
                aliases=aliases,
                consequential=consequential,
                idempotent=idempotent,
                deprecated=deprecated,
            )
            self._check_open("an operation")
            self._operations[typed.id] = operation
            return function

        return register if function is None else register(function)

    def convert(
        self, *, major: int, name: str | None = None, to: str | None = None, deprecated: Deprecation | None = None
    ) -> Callable[[Callable[..., Any]], Converter]:
        """Makes a typed function the step from an older API major to the next one.

        The signature is the older schema. The function returns the arguments of major + 1. `@name.result` adds the step
        down for results; without it they are unchanged.

        Args:
            major: the older major. Majors N-1 and N-2 are served beside the plugin's own, N.
            name: the operation's id in the older major; None: the function's name.
            to: the id in the next major, if it was renamed.
            deprecated: of the operation in this major.

        Raises:
            InvalidRequestError: as `operation`.
        """
        scope = dict(sys._getframe(1).f_locals)

        def register(function: Callable[..., Any]) -> Converter:
            typed = read_function(function, name, scope)
            self._check_open("a converter")
            converter = Converter(function, typed, major, to if to is not None else typed.id, deprecated)
            self._converters.append(converter)
            return converter

        return register

    def handle(self, request: Request) -> Response:
        """Answers a request. It never raises: faults become problems (RFC 9457)."""
        handler = self._handler()
        return handler.handle(request) if isinstance(handler, Handler) else handler

    async def ahandle(self, request: Request) -> Response:
        """As `handle`; async operations run on the caller's event loop."""
        handler = self._handler()
        return await handler.ahandle(request) if isinstance(handler, Handler) else handler

    def manifest(self) -> dict[str, Any]:
        """The manifest, as it is served."""
        return self._build()[1].to_json()

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI 3.1 document, as it is served."""
        return self._build()[2]

    @property
    def asgi_app(self) -> AsgiApp:
        """The plugin as an ASGI application. It needs no lifespan."""
        return AsgiApp(self.ahandle, self.limits.body_bytes)

    @property
    def wsgi_app(self) -> WsgiApp:
        """The plugin as a WSGI application."""
        return WsgiApp(self.handle, self.limits.body_bytes)

    def blueprint(self) -> Any:
        """The plugin as a Flask blueprint: `app.register_blueprint(plugin.blueprint(), url_prefix="/weather")`.

        Raises:
            MissingDependencyError: Flask is not installed.
        """
        return frameworks.blueprint(self.wsgi_app, self.name)

    def router(self) -> Any:
        """The plugin as a FastAPI router: `app.include_router(plugin.router(), prefix="/weather")`.

        Raises:
            MissingDependencyError: FastAPI is not installed.
        """
        return frameworks.router(self.asgi_app)

    def close(self) -> None:
        """Ends the plugin's threads; operations that run are waited for a few seconds. A later request starts new ones.

        It is needed in tests alone: they keep no process alive.
        """
        self._runner.close()

    def __enter__(self) -> Plugin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Plugin({self.name!r}, version={self.version!r}, operations={list(self._operations)})"

    def _check_open(self, what: str) -> None:
        if self._built is not None:
            raise InvalidRequestError(f"{self.name} already serves: define {what} before the first request")

    def _handler(self) -> Handler | Response:
        """The handler; the answer to all requests of a plugin whose definitions contradict each other."""
        try:
            return self._build()[0]
        except Exception:
            log.exception("the plugin %s cannot serve", self.name)
            problem = Problem("internal", "the plugin cannot serve: its log has the cause")
            headers = {"cache-control": "no-store", protocol.PROTOCOL_HEADER.lower(): protocol.supported_list()[0]}
            return problem_response(problem, headers)

    def _build(self) -> tuple[Handler, Manifest, dict[str, Any]]:
        if self._built is None:
            with self._lock:
                if self._built is None:
                    self._built = self._make()
        return self._built

    def _make(self) -> tuple[Handler, Manifest, dict[str, Any]]:
        table = build_table(self._version[0], self._operations.values(), self._converters)
        document = openapi.document(self.name, self.version, self.description, table)
        body = openapi.to_bytes(document)
        manifest = Manifest(
            name=self.name,
            version=self.version,
            protocol=protocol.SUPPORTED,
            majors=tuple(sorted({major for _, major in table} | {self._version[0]})),
            operations=tuple(_listed(endpoint.entry) for endpoint in table.values()),
            openapi_sha256=hashlib.sha256(body).hexdigest(),
            mcp=protocol.MCP_PATH,
            health=protocol.HEALTH_PATH,
            limits=self.limits,
        )
        bodies = {protocol.OPENAPI_PATH: body, protocol.MANIFEST_PATH: openapi.to_bytes(manifest.to_json())}
        documents = {path: (data, f'"{hashlib.sha256(data).hexdigest()[:32]}"') for path, data in bodies.items()}
        served = Served(self.name, self.version, self.description, table, documents)
        handler = Handler(served, self.limits, self._runner, self._store, self._authorize, self._health, self._origins)
        return handler, manifest, document


def _check_plain(option: str, function: object) -> None:
    """A coroutine is a true value, thus an async check would always pass, or never."""
    if function is None:
        return
    if not callable(function):
        raise InvalidRequestError(f"{option} is {function!r}: a function is expected")
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise InvalidRequestError(f"{option} is an async function: a plain function is expected")


def _listed(entry: OperationEntry) -> OperationEntry:
    """The entry as the manifest has it: the OpenAPI document has the schemas."""
    import dataclasses

    return dataclasses.replace(entry, description="", arguments=None, result=None)


def bearer(*tokens: str) -> Callable[[Request], bool]:
    """A check of `Authorization: Bearer ...` for `Plugin(authorize=...)`, in constant time. Tokens are in no repr.

    Raises:
        InvalidRequestError: no token, or an empty one, which every request would have.
    """
    if not tokens or not all(isinstance(token, str) and token.strip() for token in tokens):
        raise InvalidRequestError("bearer needs a token that is not empty: is the environment variable set?")
    known = [token.strip().encode() for token in tokens]

    def authorize(request: Request) -> bool:
        kind, _, given = (request.header("authorization") or "").partition(" ")
        found = given.strip().encode("utf-8", "replace")
        matching = sum(hmac.compare_digest(found, token) for token in known)
        return kind.lower() == "bearer" and matching > 0

    return authorize
