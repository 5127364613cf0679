"""The ASGI application: FastAPI in front of the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
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
from octavo.server.answer import Answer
from octavo.server.config import ServerConfig
from octavo.server.faults import ApiError, from_octavo
from octavo.server.http import EVENT_STREAM, PING, Call, Reply, error_reply
from octavo.server.openapi import document
from octavo.server.service import OTHER, Service

log = logging.getLogger("octavo.server")

# Seconds without news after which a stream says that it lives; also the longest wait before it begins.
_PATIENCE = 10.0
_CALL = "octavo.call"


def build(source: LLM | str | Callable[[], LLM] | None, config: ServerConfig) -> FastAPI:
    """The application; see `octavo.server.create_app`."""
    service = Service(source, config)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # Only an application that is not mounted in another one gets here.
        service.engine.start()
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(title="octavo", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.octavo = service
    # FastAPI routes what others add to the application; the service's own routes are answered in front of it, since its
    # way to an endpoint takes longer than all that the service does for a request.
    app.add_exception_handler(HTTPException, _not_routed(service))
    app.openapi = lambda: document(service)  # type: ignore[method-assign]
    app.add_middleware(GateMiddleware, service=service)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.allowed_origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


def _not_routed(service: Service) -> Callable[[Request, Exception], Any]:
    async def handler(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # Raised by a route that others have added, or by FastAPI's own for the schema.
        fault = ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
        if "endpoint" not in request.scope:
            try:
                service.respond(request.scope[_CALL])
            except ApiError as nothing:
                fault = nothing
        reply = error_reply(fault)
        return Response(reply.body, reply.status, dict(reply.headers), reply.content_type)

    return handler


class Outgoing:
    """An answer on its way out. A client that leaves cancels what runs for it, at once."""

    def __init__(self, answer: Answer, access: Access, send: Send, stall: float) -> None:
        self._answer = answer
        self._access = access
        self._send = send
        self._stall = stall
        # Since when a write waits for the client.
        self._writing: float | None = None
        # The client has left or reads nothing, and the task was cancelled for that.
        self._left = False
        self._over = False

    async def run(self, receive: Receive) -> None:
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        watcher = self._loop.create_task(self._watch(receive))
        self._timer = self._loop.call_later(self._look, self._check_stall)
        try:
            await self._feed()
        except asyncio.CancelledError:
            if not self._left or (self._task is not None and self._task.uncancel()):
                raise
        finally:
            self._over = True
            self._answer.generation.close()
            self._timer.cancel()
            watcher.cancel()

    async def _watch(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception as error:
            # Whatever it was, nobody reads any more.
            log.debug("a connection has failed", exc_info=error)
        self._leave()

    @property
    def _look(self) -> float:
        """Seconds between two looks at whether the client reads."""
        return max(self._stall / 4, 0.01)

    def _check_stall(self) -> None:
        if self._writing is not None and time.monotonic() - self._writing >= self._stall:
            log.warning("a client has read nothing for %s s: its request is cancelled", self._stall)
            self._leave()
        else:
            self._timer = self._loop.call_later(self._look, self._check_stall)

    def _leave(self) -> None:
        if not self._over and not self._left and self._task is not None:
            self._left = True
            self._task.cancel()

    async def _feed(self) -> None:
        answer = self._answer
        async with contextlib.aclosing(answer.generation.anews(_PATIENCE)) as lots:  # type: ignore[type-var]
            if answer.stream:
                await self._stream(lots)
                return
            try:
                async for news in lots:
                    answer.feed(news)
                reply = answer.reply()
            except Exception as error:
                reply = error_reply(as_api_error(error))
            self._writing = time.monotonic()
            await _send_reply(self._send, self._access, reply)

    async def _stream(self, lots: AsyncIterator[Any]) -> None:
        answer = self._answer
        started = False
        try:
            async for news in lots:
                if not started:
                    started = True
                    await self._send(self._access.start(200, EVENT_STREAM))
                await self._write(answer.feed(news) if news else PING)
            last = answer.end()
        except Exception as error:
            fault = as_api_error(error)
            if not started:
                # Nothing has been sent: the status can still say it.
                await _send_reply(self._send, self._access, error_reply(fault))
                return
            last = answer.fault(fault)
        if not started:
            await self._send(self._access.start(200, EVENT_STREAM))
        await self._write(last, more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        if data or not more:
            self._writing = time.monotonic()
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            self._writing = None


def as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    log.error("an internal fault in an answer", exc_info=error)
    return from_octavo(error)


async def _send_reply(send: Send, access: Access, reply: Reply) -> None:
    headers = {"content-type": reply.content_type, "content-length": str(len(reply.body)), **reply.headers}
    await send(access.start(reply.status, headers))
    await send({"type": "http.response.body", "body": reply.body})


class GateMiddleware:
    """Lets in what may come in, with its body, and answers the service's own routes. What is behind sees the rest."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._bodies_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # No websockets here.
            await send({"type": "websocket.close", "code": 1008})
            return
        service = self._service
        path = scope["path"]
        root = scope.get("root_path", "")
        path = path[len(root) :] if root and path.startswith(root) else path
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        given = next((value for name, value in fields if name == "x-request-id"), None)
        access = Access(service, scope["method"], path, service.gate.request_id(given))
        try:
            passed = service.gate.check(scope["method"], path, fields)
            body = await self._body(receive, int(passed.headers.get("content-length", "0")))
        except ApiError as error:
            # The rest of a refused body is not waited for.
            reply = error_reply(error)
            reply = Reply(reply.status, reply.body, headers={**reply.headers, "connection": "close"})
            await _send_reply(send, access, reply)
            access.end()
            return
        if body is None:
            return
        call = Call(scope["method"], path, passed.headers, body, access.request_id, passed.salt)
        try:
            if access.route != OTHER:
                await self._answer(call, access, receive, send)
            else:
                scope[_CALL] = call
                await self._app(scope, _again(body, receive), access.watching(send))
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
            outcome = error_reply(error)
        if isinstance(outcome, Reply):
            await _send_reply(send, access, outcome)
        else:
            await Outgoing(outcome, access, send, service.config.limits.stream_stall_seconds).run(receive)

    async def _body(self, receive: Receive, announced: int) -> bytes | None:
        """The whole body; None if the client has left.

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
                # What is announced is not allocated: only what has come counts.
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
                    raise self._service.gate.too_large()
                held += len(part)
                self._bodies_bytes += len(part)
                if self._bodies_bytes > limits.bodies_bytes:
                    raise ApiError(429, "too many large bodies at once: try again", headers={"retry-after": "1"})
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self._bodies_bytes -= held


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body once more, then what comes after it."""
    given = False

    async def inner() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return inner
