"""An MCP server as a plugin, through the official SDK: Streamable HTTP, or a process on its standard streams.

The SDK is asynchronous: one thread with an event loop serves the connection of one plugin. A broken connection is
opened again with the next call. The egress rules hold for the HTTP transport too.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

from octavo.errors import MissingDependencyError
from octavo.plugins.forks import after_fork
from octavo.plugins.host.answers import Answered
from octavo.plugins.host.catalogue import Catalogue
from octavo.plugins.host.client import Budget, Client
from octavo.plugins.host.endpoint import Endpoint, Plain
from octavo.plugins.host.mcp_http import EgressTransport
from octavo.plugins.host.names import identifier
from octavo.plugins.host.outcome import Failure
from octavo.plugins.host.registry import Registry
from octavo.plugins.host.source import PluginSource, Secret
from octavo.plugins.host.transport import quiet_thread
from octavo.plugins.schema import SchemaError, dereference, digest
from octavo.plugins.steps import step
from octavo.plugins.validation import check_schema
from octavo.plugins.values import json_fault

_LIST_AGE_S = 300.0
_CLOSE_S = 10.0
_MAX_TOOLS = 500
_METHOD = "MCP"
# The SDK's code for a connection that ended before the answer.
_CONNECTION_CLOSED = -32000
# Connections of a parent process.
_left_alone: list[Any] = []


class McpBridge:
    """The connection to one MCP server. Thread-safe.

    Raises:
        MissingDependencyError: the SDK is not installed.
    """

    def __init__(self, name: str, source: PluginSource) -> None:
        try:
            import anyio.from_thread
            import mcp
        except ImportError:
            raise MissingDependencyError(
                f"the MCP SDK is needed for the plugin {name!r}: pip install 'octavo[mcp]'"
            ) from None
        self._mcp, self._anyio = mcp, anyio
        self._name, self._source = name, source
        self._closed = False
        self._reset()
        after_fork(self, McpBridge._inherited)

    def _inherited(self) -> None:
        """In a child process: the thread of the parent's connection was not forked along, and nothing can close it."""
        # Their end would wait for that thread.
        _left_alone.append((self._stack, self._portal, self._serving, self._client, self._closing))
        self._reset()

    def _reset(self) -> None:
        """No connection."""
        self._lock = threading.Lock()
        self._stack: contextlib.ExitStack | None = None
        self._portal: Any = None
        self._serving: concurrent.futures.Future[None] | None = None
        self._client: Any = None
        self._closing: Any = None

    def tools(self, budget: Budget) -> list[Any]:
        """The tools of the server, from all pages.

        Raises:
            Failure: the server cannot be reached, or does not answer in time.
        """

        async def listed(client: Any) -> list[Any]:
            found: list[Any] = []
            cursor = None
            while len(found) <= _MAX_TOOLS:
                page = await client.list_tools(cursor=cursor)
                found += page.tools
                cursor = page.next_cursor
                if not cursor:
                    break
            return found

        found: list[Any] = self._run(budget, listed, sent=False)
        return found

    def call(self, budget: Budget, name: str, arguments: Mapping[str, Any]) -> Answered:
        """Calls a tool.

        Raises:
            Failure: there is no result, or the tool reports an error.
        """

        async def called(client: Any) -> Any:
            return await client.call_tool(name, dict(arguments))

        result = self._run(budget, called, sent=True)
        content, warnings = _content(result)
        if (reason := json_fault(content)) is not None:
            raise Failure("bad_response", f"the result of the tool {name!r} cannot be used: {reason}", sent=True)
        if result.is_error:
            text = content if isinstance(content, str) else str(content)
            raise Failure("internal", f"the tool {name!r} failed: {text[:1000]}", sent=True)
        return Answered(content, tuple(warnings))

    def _run(self, budget: Budget, work: Callable[[Any], Any], *, sent: bool) -> Any:
        """Runs work with the client on the thread of the connection, within the deadline."""
        client, portal = self._open(budget)
        left = budget.left()
        budget.requests += 1

        async def limited() -> Any:
            with self._anyio.fail_after(left):
                return await work(client)

        future = portal.start_task_soon(limited)
        try:
            return future.result(timeout=left + 1.0)
        except (TimeoutError, concurrent.futures.TimeoutError):
            future.cancel()
            raise Failure("timeout", f"the MCP server {self._name!r} did not answer in time", sent=sent) from None
        except self._mcp.MCPError as error:
            if error.code == _CONNECTION_CLOSED:
                self._drop(client)
                raise self._unavailable(error, sent) from None
            raise Failure("bad_response", f"the MCP server {self._name!r} refused: {error}"[:1000], sent=sent) from None
        except (Exception, concurrent.futures.CancelledError) as error:
            self._drop(client)
            raise self._unavailable(error, sent) from None

    def _drop(self, client: Any) -> None:
        """Closes the connection of a client that failed; the next call opens another."""
        with self._lock:
            if self._client is client:
                self._shut()

    def _unavailable(self, error: BaseException, sent: bool) -> Failure:
        refusals = _causes(error)
        refused = next((e for e in refusals if type(e).__name__ == "EgressError"), None)
        if refused is not None:
            return Failure("refused", f"the MCP server {self._name!r}: {refused}")
        reason = str(refusals[-1])[:300] or type(refusals[-1]).__name__
        return Failure("unavailable", f"the MCP server {self._name!r} cannot be used: {reason}", sent=sent)

    def _open(self, budget: Budget) -> tuple[Any, Any]:
        """(client, portal) of the connection, which is opened first if there is none."""
        if not self._lock.acquire(timeout=min(budget.left(), threading.TIMEOUT_MAX)):
            raise Failure("timeout", f"another call was still connecting to the MCP server {self._name!r}")
        try:
            if self._closed:
                raise Failure("unavailable", f"the connection to the MCP server {self._name!r} was closed")
            if self._serving is not None and not self._serving.done():
                return self._client, self._portal
            self._shut()
            self._connect(budget)
            return self._client, self._portal
        finally:
            self._lock.release()

    def _connect(self, budget: Budget) -> None:
        ready: concurrent.futures.Future[Any] = concurrent.futures.Future()
        stack = contextlib.ExitStack()
        portal = stack.enter_context(self._anyio.from_thread.start_blocking_portal("asyncio"))
        portal.call(quiet_thread)
        self._stack, self._portal = stack, portal
        self._serving = portal.start_task_soon(self._serve, ready)
        self._serving.add_done_callback(lambda done: _hand_on(done, ready))
        try:
            self._client, self._closing = ready.result(timeout=budget.left())
        except (TimeoutError, concurrent.futures.TimeoutError):
            self._shut()
            raise Failure("timeout", f"the MCP server {self._name!r} did not connect in time") from None
        except (Exception, concurrent.futures.CancelledError) as error:
            self._shut()
            raise self._unavailable(error, False) from None

    async def _serve(self, ready: concurrent.futures.Future[Any]) -> None:
        """Holds the connection open: the SDK wants it opened and closed by one task."""
        async with contextlib.AsyncExitStack() as stack:
            server = await self._server(stack)
            client = await stack.enter_async_context(self._mcp.Client(server, cache=None))
            closing = self._anyio.Event()
            ready.set_result((client, closing))
            await closing.wait()

    async def _server(self, stack: contextlib.AsyncExitStack) -> Any:
        if self._source.kind == "mcp_stdio":
            command, *args = self._source.command
            env = {k: v.reveal() if isinstance(v, Secret) else v for k, v in self._source.env.items()}
            return self._mcp.StdioServerParameters(command=command, args=args, env=env)
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        transport = EgressTransport(self._source.allow_private, self._source.response_bytes)
        client = httpx2.AsyncClient(
            headers=self._source.header_values(), timeout=self._source.timeout, transport=transport, trust_env=False
        )
        await stack.enter_async_context(client)
        return streamable_http_client(self._source.url.rstrip("/"), http_client=client)

    def _shut(self) -> None:
        serving, stack = self._serving, self._stack
        self._serving = self._stack = None
        if serving is None or stack is None:
            return
        if self._closing is not None:
            with contextlib.suppress(Exception):
                self._portal.start_task_soon(self._set, self._closing)
        else:
            serving.cancel()
        self._closing = None
        with contextlib.suppress(Exception, concurrent.futures.CancelledError):
            serving.result(timeout=_CLOSE_S)
        serving.cancel()
        stack.close()

    @staticmethod
    async def _set(event: Any) -> None:
        event.set()

    def close(self) -> None:
        """Closes the connection, and ends the server's process."""
        with self._lock:
            self._closed = True
            self._shut()


class McpRegistry(Registry):
    """The tools of an MCP server. It has no digests: its list is read again before calls."""

    def __init__(self, client: Client, clock: Callable[[], float], bridge: McpBridge) -> None:
        super().__init__(client, clock)
        self._bridge = bridge

    def _fetch(self, budget: Budget, reload: bool) -> Catalogue:
        endpoints: dict[tuple[str, int | None], Endpoint] = {}
        notes = []
        tools = self._bridge.tools(budget)
        if len(tools) > _MAX_TOOLS:
            notes.append(f"the server has more than {_MAX_TOOLS} tools: the rest is left out")
        for tool in tools[:_MAX_TOOLS]:
            try:
                endpoint = _endpoint(tool)
            except SchemaError as error:
                notes.append(f"the tool {str(tool.name)[:80]!r} is left out: {error}")
                continue
            if (endpoint.id, None) in endpoints:
                notes.append(f"the tool {str(tool.name)[:80]!r} is left out: its id {endpoint.id!r} is another's")
            endpoints.setdefault((endpoint.id, None), endpoint)
        self._checked = self._clock()
        return Catalogue(0, endpoints, expires=self._clock() + _LIST_AGE_S, notes=tuple(notes))

    def revalidate(self, budget: Budget, within: float = 0.0) -> Catalogue:
        """Reads the list again. Raises as `Registry.revalidate`."""
        kept = self.kept
        if kept is not None and self._clock() - self._checked < within:
            return kept
        return self.refresh(budget)


def _endpoint(tool: Any) -> Endpoint:
    step()
    if (reason := json_fault([tool.input_schema, tool.output_schema])) is not None:
        raise SchemaError(f"its schema cannot be used: {reason}")
    parameters = dereference(tool.input_schema)
    check_schema(parameters)
    result = dereference(tool.output_schema) if tool.output_schema is not None else None
    hints = tool.annotations
    reads = hints is not None and hints.read_only_hint is True
    return Endpoint(
        id=identifier(tool.name, "tool"),
        major=None,
        digest=digest(parameters, result),
        parameters=parameters,
        result=result,
        description=(tool.description or tool.title or "")[:4096],
        # A server that says nothing of a tool's effects may have any.
        consequential=not reads,
        idempotent=reads or (hints is not None and hints.idempotent_hint is True),
        plain=Plain(_METHOD, tool.name, ""),
    )


def _content(result: Any) -> tuple[Any, list[str]]:
    """(the structured result, else the text; what could not be taken over)."""
    if result.structured_content is not None:
        return result.structured_content, []
    texts = [block.text for block in result.content if block.type == "text"]
    other = sorted({block.type for block in result.content if block.type != "text"})
    warnings = [f"the result's {kind} content is left out: only text is used" for kind in other]
    return "\n".join(texts), warnings


def _hand_on(done: concurrent.futures.Future[None], ready: concurrent.futures.Future[Any]) -> None:
    """A connection that ended before it was ready."""
    if ready.done():
        return
    error = None if done.cancelled() else done.exception()
    ready.set_exception(error or ConnectionError("the connection ended"))


def _causes(error: BaseException) -> list[BaseException]:
    """The errors inside a group, and those that led to them; the innermost last."""
    found: list[BaseException] = []
    todo = [error]
    while todo and len(found) < 50:
        each = todo.pop(0)
        found.append(each)
        todo += getattr(each, "exceptions", ())
        inner = each.__cause__ or each.__context__
        todo += [inner] if inner is not None else []
    return found
