"""The ASGI application: FastAPI in front of the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
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
from octavo.server.service import ROUTES, Service

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
    for route in ROUTES:
        app.add_api_route(
            route.path.replace("{model}", "{model:path}"),
            _endpoint(service),
            methods=[route.method],
            include_in_schema=False,
        )
    app.add_exception_handler(HTTPException, _not_routed(service))
    app.openapi = lambda: document(service)  # type: ignore[method-assign]
    app.add_middleware(GateMiddleware, service=service)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.allowed_origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


def _endpoint(service: Service) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await _respond(service, request)

    return endpoint


def _not_routed(service: Service) -> Callable[[Request, Exception], Any]:
    async def handler(request: Request, _error: Exception) -> Response:
        # The service knows the same routes and says in OpenAI's form what is wrong with this one.
        return await _respond(service, request)

    return handler


async def _respond(service: Service, request: Request) -> Response:
    call: Call = request.scope[_CALL]
    try:
        if service.is_quick(call):
            return Outcome(service.respond(call), service)
        return Outcome(await run_in_threadpool(service.respond, call), service)
    except ApiError as error:
        return Outcome(error_reply(error), service)


class Outcome(Response):
    """A reply or an answer on its way out. A client that leaves cancels what runs for it, at once."""

    def __init__(self, outcome: Reply | Answer, service: Service) -> None:
        self.background = None
        self.status_code = 200
        self._outcome = outcome
        self._stall = service.config.limits.stream_stall_seconds
        # Since when a write waits for the client.
        self._writing: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(self._outcome, Reply):
            await _send_reply(send, self._outcome)
            return
        work = asyncio.create_task(self._answer(self._outcome, send))
        gone = asyncio.create_task(_until_disconnect(receive))
        try:
            while not work.done() and not gone.done():
                look = max(self._stall / 4, 0.01)
                await asyncio.wait({work, gone}, timeout=look, return_when=asyncio.FIRST_COMPLETED)
                if self._writing is not None and time.monotonic() - self._writing >= self._stall:
                    log.warning("a client has read nothing for %s s: its request is cancelled", self._stall)
                    break
        finally:
            self._outcome.generation.close()
            for task in (work, gone):
                if not task.done():
                    task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error

    async def _answer(self, answer: Answer, send: Send) -> None:
        async with contextlib.aclosing(answer.generation.anews(_PATIENCE)) as lots:  # type: ignore[type-var]
            if answer.stream:
                await self._stream(answer, lots, send)
                return
            try:
                async for news in lots:
                    answer.feed(news)
                reply = answer.reply()
            except Exception as error:
                reply = error_reply(as_api_error(error))
            self._writing = time.monotonic()
            await _send_reply(send, reply)

    async def _stream(self, answer: Answer, lots: AsyncIterator[Any], send: Send) -> None:
        started = False
        try:
            async for news in lots:
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": _raw(EVENT_STREAM)})
                await self._write(send, answer.feed(news) if news else PING)
            last = answer.end()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            fault = as_api_error(error)
            if not started:
                # Nothing has been sent: the status can still say it.
                await _send_reply(send, error_reply(fault))
                return
            last = answer.fault(fault)
        if not started:
            await send({"type": "http.response.start", "status": 200, "headers": _raw(EVENT_STREAM)})
        await self._write(send, last, more=False)

    async def _write(self, send: Send, data: bytes, *, more: bool = True) -> None:
        if data or not more:
            self._writing = time.monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": more})
            self._writing = None


def as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    log.error("an internal fault in an answer", exc_info=error)
    return from_octavo(error)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_reply(send: Send, reply: Reply) -> None:
    headers = {"content-type": reply.content_type, "content-length": str(len(reply.body)), **reply.headers}
    await send({"type": "http.response.start", "status": reply.status, "headers": _raw(headers)})
    await send({"type": "http.response.body", "body": reply.body})


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]


class GateMiddleware:
    """Lets in what may come in, with its body; nothing behind it sees anything else."""

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
        send = access.watching(send)
        try:
            passed = service.gate.check(scope["method"], path, fields)
            body = await self._body(receive, int(passed.headers.get("content-length", "0")))
        except ApiError as error:
            # The rest of a refused body is not waited for.
            reply = error_reply(error)
            await _send_reply(send, Reply(reply.status, reply.body, headers={**reply.headers, "connection": "close"}))
            access.end()
            return
        if body is None:
            return
        scope[_CALL] = Call(scope["method"], path, passed.headers, body, access.request_id, passed.salt)
        try:
            await self._app(scope, _again(body, receive), send)
        finally:
            access.end()

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
