"""The host: registered plugins, their tools, and calls that end with a typed outcome."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import random as _random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from types import TracebackType
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.plugins.host.catalogue import Catalogue, describe
from octavo.plugins.host.client import Budget, Client
from octavo.plugins.host.endpoint import Endpoint
from octavo.plugins.host.invoke import Call
from octavo.plugins.host.mcp_bridge import McpBridge, McpRegistry
from octavo.plugins.host.names import nearest, tool_name
from octavo.plugins.host.outcome import Failure, Outcome, Tool, ToolList, failure_text, result_text
from octavo.plugins.host.registry import Registry
from octavo.plugins.host.source import Approval, PluginSource, redact
from octavo.plugins.host.state import PluginState
from octavo.plugins.host.transport import HttpTransport, Transport
from octavo.plugins.problems import Problem
from octavo.plugins.protocol import SUPPORTED, is_plugin_name
from octavo.plugins.schema import SchemaError
from octavo.plugins.steps import OutOfTimeError, time_limit
from octavo.plugins.validation import faults


class PluginHost:
    """Calls the operations of registered plugins.

    Each plugin is at level 0, 1 or 2: a service with an OpenAPI document, one with a manifest, one whose digests guard
    each call. `call` never raises for a plugin's fault. All methods are thread-safe.

    Args:
        plugins: name -> base URL, or a `PluginSource`. A name has letters, digits, `_` and `-`, no `__`, and no `_` at
            its end.
        transport: sends the requests of all plugins; None: HTTP under the egress rules, with connections kept.
        clock: seconds that never go back; of deadlines and ages.
        sleep: waits some seconds before a retry.
        random: a number from 0 to 1, for the spread of retries.
        protocols: the protocol majors of this host -> their minors.

    Raises:
        InvalidRequestError: a wrong name, URL, header or secret.
        MissingDependencyError: a package of the extra `plugins` is missing.
    """

    def __init__(
        self,
        plugins: Mapping[str, str | PluginSource],
        *,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = _random.random,
        protocols: Mapping[int, int] = SUPPORTED,
    ) -> None:
        if not isinstance(plugins, Mapping):
            raise InvalidRequestError("plugins: give a dict of names and URLs, {'weather': 'http://127.0.0.1:9000'}")
        self._clock, self._sleep, self._random = clock, sleep, random
        self._states: dict[str, PluginState] = {}
        self._own: list[HttpTransport] = []
        # Tool name -> (plugin, operation), of the names that had to be shortened.
        self._short: dict[str, tuple[str, str]] = {}
        self._closed = False
        for name, given in plugins.items():
            if not isinstance(name, str) or not is_plugin_name(name):
                raise InvalidRequestError(
                    f"{name!r} is no name of a plugin: use a letter, then letters, digits, '-' and '_', without '__',"
                    " and with no '_' at its end"
                )
            source = given if isinstance(given, PluginSource) else PluginSource(given)
            self._states[name] = self._state(name, source, transport, protocols)

    def _state(
        self, name: str, source: PluginSource, transport: Transport | None, protocols: Mapping[int, int]
    ) -> PluginState:
        if source.kind != "http":
            bridge = McpBridge(name, source)
            client = Client(name, source, None)
            return PluginState(client, McpRegistry(client, self._clock, bridge), self._clock, bridge)
        if transport is None:
            transport = HttpTransport(
                allow_private=source.allow_private, connections=source.concurrency, clock=self._clock
            )
            self._own.append(transport)
        client = Client(name, source, transport)
        return PluginState(client, Registry(client, self._clock, protocols), self._clock)

    @property
    def names(self) -> list[str]:
        """The names of the plugins."""
        return list(self._states)

    def approval(self, name: str) -> Approval:
        """Which calls of a plugin wait for an approval, as its source says.

        Raises:
            InvalidRequestError: a name that is not registered.
        """
        self._checked([name])
        return self._states[name].source.approval

    def tools(self, names: Sequence[str] | None = None, *, deadline: float | None = None) -> ToolList:
        """The tools of plugins, in the order of registration.

        Args:
            names: of plugins; None: all.
            deadline: seconds for each of them, all at the same time; None: each plugin's own timeout.

        Returns:
            The tools. Its `missing` has the plugins that could not be read: they harm no other.

        Raises:
            InvalidRequestError: a name that is not registered.
        """
        found, missing = ToolList([]), {}
        for name, read in self._read(self._checked(names), deadline).items():
            state = self._states[name]
            if isinstance(read, Failure):
                missing[name] = self._clean(state, read).to_problem()
                continue
            allowed = state.source.operations
            for endpoint in read.current(state.source.api).values():
                if allowed is None or endpoint.id in allowed:
                    state.show(endpoint)
                    found.append(self._tool(name, endpoint))
        found.missing = missing
        return found

    def _read(self, names: Sequence[str], deadline: float | None) -> dict[str, Catalogue | Failure]:
        """What each plugin offers. Those that must be asked are asked at the same time."""
        budgets = {name: self._budget(self._states[name], deadline) for name in names}
        asked = [name for name in names if not self._states[name].registry.fresh]
        futures = {}
        # With a caller's own transport all goes one after the other: a simulated clock has no threads.
        if len(asked) > 1 and self._own:
            for name in asked:
                state = self._states[name]
                futures[name] = state.submit(state.catalogue, budgets[name])
        found: dict[str, Catalogue | Failure] = {}
        for name in names:
            state, budget = self._states[name], budgets[name]
            try:
                if name in futures:
                    found[name] = futures[name].result(timeout=budget.left() + 1.0)
                else:
                    found[name] = state.catalogue(budget)
            except Failure as failure:
                found[name] = failure
            except (TimeoutError, FutureTimeoutError):
                futures[name].cancel()
                found[name] = state.busy()
            except Exception as error:
                # One plugin's odd answer must not take the tools of the others along.
                found[name] = _internal(error)
        return found

    def _tool(self, plugin: str, endpoint: Endpoint) -> Tool:
        name = tool_name(plugin, endpoint.id)
        if name != f"{plugin}__{endpoint.id}":
            self._short[name] = (plugin, endpoint.id)
        # A plugin sees its secrets, and its texts go into prompts.
        secrets = self._states[plugin].source.secrets()
        return Tool(
            name=name,
            plugin=plugin,
            operation=endpoint.id,
            description=redact(endpoint.description, secrets),
            parameters=redact(endpoint.parameters, secrets),
            consequential=endpoint.consequential,
            digest=endpoint.digest,
            result=redact(endpoint.result, secrets),
            deprecated=endpoint.deprecated,
        )

    def call(
        self,
        tool_name: str,
        arguments: Mapping[str, Any],
        *,
        deadline: float | None = None,
        approved: bool = False,
        digest: str | None = None,
    ) -> Outcome:
        """Calls an operation.

        Args:
            tool_name: `plugin__operation`.
            arguments: a JSON object.
            deadline: seconds for the whole call; None: the plugin's timeout, which also bounds a longer one.
            approved: whether a person approved these arguments. Approved arguments are never repaired.
            digest: of the tool under which the arguments were made, `Tool.digest`; None: as it was last shown.

        Returns:
            The outcome. A plugin's fault is a typed outcome too.

        Raises:
            InvalidRequestError: the name of the plugin is not registered, the host is closed, or `approved` is no bool.
        """
        plugin, operation = self._resolve(tool_name)
        if not isinstance(approved, bool):
            raise InvalidRequestError(f"approved is a {type(approved).__name__}: True or False is expected")
        state = self._states[plugin]
        budget = self._budget(state, deadline)
        call = Call(state, budget, operation, arguments, digest, approved, self._sleep, self._random)
        failure, content, text, cut = None, None, "", list[str]()
        try:
            state.enter(budget)
            try:
                with time_limit(budget.left):
                    content = redact(self._result(call), state.source.secrets())
                text, cut = result_text(content)
            finally:
                state.leave()
        except Failure as found:
            failure = found
        except OutOfTimeError:
            failure = state.late()
        except Exception as error:
            # One plugin's odd answer must not end the request of the model.
            failure = _internal(error)
        if failure is not None:
            text = failure_text(self._clean(state, failure))
        return self._outcome(tool_name, call, failure, content, text, cut)

    async def acall(
        self,
        tool_name: str,
        arguments: Mapping[str, Any],
        *,
        deadline: float | None = None,
        approved: bool = False,
        digest: str | None = None,
    ) -> Outcome:
        """As `call`, on a thread of the plugin's own: the event loop runs on, and a slow plugin blocks no other.

        The deadline counts from here. A call whose task is cancelled before it has a thread is not made.
        """
        plugin, operation = self._resolve(tool_name)
        state = self._states[plugin]
        begun = self._budget(state, deadline)

        def run() -> Outcome:
            return self.call(tool_name, arguments, deadline=begun.left(), approved=approved, digest=digest)

        future = state.submit(contextvars.copy_context().run, run)
        waiting: asyncio.Future[Outcome] = asyncio.wrap_future(future)
        try:
            done, _ = await asyncio.wait((waiting,), timeout=begun.left())
        except asyncio.CancelledError:
            future.cancel()
            raise
        if not done and future.cancel():
            call = Call(state, begun, operation, arguments, digest, approved, self._sleep, self._random)
            busy = state.busy()
            return self._outcome(tool_name, call, busy, None, failure_text(busy))
        if done and waiting.cancelled():
            raise InvalidRequestError("the host was closed before the call began: make a new one")
        return await waiting

    def refresh(self, name: str | None = None) -> ToolList:
        """Reads manifests and documents again, past all caches; then as `tools`.

        Raises:
            InvalidRequestError: a name that is not registered.
        """
        names = self._checked(None if name is None else [name])
        for each in names:
            state = self._states[each]
            budget = self._budget(state, None)
            state.registry.expire()
            with contextlib.suppress(Exception), time_limit(budget.left):
                state.registry.refresh(budget, reload=True)  # `tools` asks once more, and reports
        return self.tools(names)

    def health(self) -> dict[str, dict[str, Any]]:
        """The kept state of each plugin, without a request: level, versions, notes, circuit."""
        found: dict[str, dict[str, Any]] = {}
        for name, state in self._states.items():
            kept = state.registry.kept
            found[name] = {"url": state.source.url, "circuit": state.breaker.state}
            known = describe(kept) if kept is not None else {"level": None}
            found[name] |= redact(known, state.source.secrets())
        return found

    def close(self) -> None:
        """Closes connections and threads. Calls that run end first, within their deadlines."""
        self._closed = True
        for state in self._states.values():
            state.close()
        for transport in self._own:
            transport.close()

    def __enter__(self) -> PluginHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PluginHost({self.names!r})"

    def _checked(self, names: Sequence[str] | None) -> list[str]:
        if self._closed:
            raise InvalidRequestError("the host is closed: make a new one")
        if names is None:
            return self.names
        if isinstance(names, str):
            raise InvalidRequestError(f"names={names!r}: give a list of names of plugins")
        for name in names:
            if name not in self._states:
                raise InvalidRequestError(f"no plugin {name!r} is registered{self._instead(name, self._states)}")
        return list(dict.fromkeys(names))

    def _resolve(self, name: str) -> tuple[str, str]:
        """(plugin, operation) of a tool's name."""
        if self._closed:
            raise InvalidRequestError("the host is closed: make a new one")
        if not isinstance(name, str):
            raise InvalidRequestError(f"the name of a tool must be a text, not {type(name).__name__}")
        if name in self._short:
            return self._short[name]
        plugin, mark, operation = name.partition("__")
        if not mark or plugin not in self._states or not operation:
            known = [tool_name(p, o) for p, s in self._states.items() for o in _kept_operations(s)]
            known = known or [f"{p}__" for p in self._states]
            raise InvalidRequestError(f"no plugin has the tool {name[:100]!r}{self._instead(name[:100], known)}")
        return plugin, operation

    def _instead(self, name: object, names: Any) -> str:
        found = nearest(str(name), names)
        return f": did you mean {', '.join(map(repr, found))}?" if found else f": registered are {self.names!r}"

    def _budget(self, state: PluginState, seconds: float | None) -> Budget:
        if seconds is not None and (not isinstance(seconds, (int, float)) or math.isnan(seconds)):
            raise InvalidRequestError(f"deadline={seconds!r}: give a number of seconds, or None")
        limit = state.source.timeout if seconds is None else min(seconds, state.source.timeout)
        now = self._clock()
        return Budget(self._clock, now + limit, now)

    def _result(self, call: Call) -> Any:
        answered = call.run()
        for text in answered.warnings:
            call.budget.warn(text)
        result = call.target.result if call.target is not None else None
        try:
            wrong = faults(result, answered.content) if result is not None else []
        except (SchemaError, OutOfTimeError) as error:
            reason = "it takes too long" if isinstance(error, OutOfTimeError) else str(error)
            call.budget.warn(f"the result was not checked against the operation's schema: {reason}")
            return answered.content
        if wrong:
            where = wrong[0].pointer or "the whole"
            call.budget.warn(f"the result does not fit the operation's schema at {where}: {wrong[0].detail}")
        return answered.content

    def _clean(self, state: PluginState, failure: Failure) -> Failure:
        """The failure without secrets: a server may send back what it got."""
        secrets = state.source.secrets()
        failure.detail = redact(failure.detail, secrets)
        if failure.problem is not None:
            problem = failure.problem
            failure.problem = Problem(
                redact(problem.code, secrets),
                redact(problem.detail, secrets),
                problem.status,
                redact(dict(problem.extensions), secrets),
                problem.retry_after if problem.retry_after is not None else failure.retry_after,
            )
        failure.schema = redact(failure.schema, secrets)
        return failure

    def _outcome(
        self, name: str, call: Call, failure: Failure | None, content: Any, text: str, cut: Sequence[str] = ()
    ) -> Outcome:
        secrets = call.state.source.secrets()
        return Outcome(
            tool=name,
            plugin=call.state.client.name,
            operation=call.operation,
            arguments=call.arguments,
            status="ok" if failure is None else failure.status,
            content=content,
            text=text,
            error=None if failure is None else failure.to_problem(),
            repairs=tuple(call.repairs),
            version=redact(call.version, secrets),
            digest=call.target.digest if call.target is not None else "",
            requests=call.budget.requests,
            seconds=self._clock() - call.budget.started,
            warnings=tuple(redact([*call.budget.warnings, *cut], secrets)),
            schema=None if failure is None else failure.schema,
            sent=failure is None or failure.sent,
            deprecated=call.deprecated or bool(call.target and call.target.deprecated),
        )


def _internal(error: Exception) -> Failure:
    """The failure of a fault of the host itself. The text of the error may have secrets."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    line = f"{where.tb_frame.f_code.co_name}:{where.tb_lineno}" if where is not None else "?"
    return Failure("internal", f"the host failed with {type(error).__name__} at {line}: report it", sent=True)


def _kept_operations(state: PluginState) -> list[str]:
    kept = state.registry.kept
    return list(kept.current(state.source.api)) if kept is not None else []
