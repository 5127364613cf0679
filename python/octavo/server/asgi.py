"""The ASGI application: FastAPI in front of the service."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo import __version__
from octavo.llm import LLM
from octavo.server.access import Access
from octavo.server.asgi_response import AsgiResponse, send_reply
from octavo.server.config import ServerConfig
from octavo.server.cors import EXPOSED_HEADERS
from octavo.server.discover import all_routes
from octavo.server.errors import ApiError
from octavo.server.http import Call, Reply
from octavo.server.openapi import document
from octavo.server.service import OTHER, Service

_CALL = "octavo.call"


def build(source: LLM | str | Callable[[], LLM] | None, config: ServerConfig) -> FastAPI:
    """The application; see `octavo.server.create_app`."""
    service = Service(source, config, all_routes())

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # Not called for an application that is mounted in another one.
        service.context.lazy_llm.start()
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(title="octavo", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.octavo = service
    # FastAPI answers only routes that others add to the application. The middleware answers the service's own routes,
    # because FastAPI's routing takes longer than all of the service's work for a request.
    app.add_exception_handler(HTTPException, _not_routed(service))
    app.openapi = lambda: document(service)  # type: ignore[method-assign]
    app.add_middleware(ServiceMiddleware, service=service)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.allowed_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    return app


def _not_routed(service: Service) -> Callable[[Request, Exception], Any]:
    async def handler(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # Raised by a route that others have added, or by FastAPI's route for the schema.
        fault = ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
        if "endpoint" not in request.scope:
            try:
                service.respond(request.scope[_CALL])
            except ApiError as nothing:
                fault = nothing
        call: Call = request.scope[_CALL]
        reply = service.error_reply(fault, call.path, call.request_id)
        return Response(reply.body, reply.status, dict(reply.headers), reply.content_type)

    return handler


class ServiceMiddleware:
    """Checks requests, reads their bodies, and answers the service's own routes. Other routes go to the inner app."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._bodies_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # Websockets are not supported.
            await send({"type": "websocket.close", "code": 1008})
            return
        service = self._service
        path = scope["path"]
        root = scope.get("root_path", "")
        path = path[len(root) :] if root and path.startswith(root) else path
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        given = next((value for name, value in fields if name == "x-request-id"), None)
        access = Access(service, scope["method"], path, service.auth.request_id(given))
        try:
            passed = service.auth.check(scope["method"], path, fields)
            body = await self._body(receive, int(passed.headers.get("content-length", "0")))
        except ApiError as error:
            # The rest of a rejected body is not read.
            reply = access.error_reply(error)
            reply = Reply(reply.status, reply.body, headers={**reply.headers, "connection": "close"})
            await send_reply(send, access, reply)
            access.end()
            return
        if body is None:
            return
        query = scope.get("query_string", b"").decode("latin-1")
        call = Call(scope["method"], path, passed.headers, body, access.request_id, passed.salt, query)
        try:
            if access.route != OTHER:
                await self._answer(call, access, receive, send)
            else:
                scope[_CALL] = call
                await self._app(scope, _replay(body, receive), access.wrap(send))
        finally:
            access.end()

    async def _answer(self, call: Call, access: Access, receive: Receive, send: Send) -> None:
        service = self._service
        try:
            if service.is_quick(call):
                outcome = service.respond(call)
            else:
                outcome = await run_in_threadpool(service.respond, call)
        except ApiError as error:
            outcome = access.error_reply(error)
        if isinstance(outcome, Reply):
            await send_reply(send, access, outcome)
        else:
            await AsgiResponse(outcome, access, send, service.config.limits.stream_stall_seconds).run(receive)

    async def _body(self, receive: Receive, announced: int) -> bytes | None:
        """The complete body; None if the client has disconnected.

        Raises:
            ApiError: 408, 413, 429.
        """
        limits = self._service.config.limits
        parts: list[bytes] = []
        size = 0
        deadline = time.monotonic() + limits.body_seconds
        held = 0
        try:
            while True:
                # Only received bytes count: the announced length is not allocated.
                left = deadline - time.monotonic()
                try:
                    async with asyncio.timeout(max(left, 0.0)):
                        message = await receive()
                except TimeoutError:
                    raise ApiError(408, f"the body did not arrive within {limits.body_seconds:.0f} s") from None
                if message["type"] == "http.disconnect":
                    return None
                part = message.get("body", b"")
                size += len(part)
                if size > limits.body_bytes:
                    raise self._service.auth.too_large()
                held += len(part)
                self._bodies_bytes += len(part)
                if self._bodies_bytes > limits.bodies_bytes:
                    raise ApiError(429, "too many large bodies at once: try again", headers={"retry-after": "1"})
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self._bodies_bytes -= held


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body again, then later messages."""
    given = False

    async def inner() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return inner
