"""Plugins of a request: which operations it may call, and the generation of all its rounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.plugins.host.outcome import Tool, ToolList
from octavo.plugins.loop import Offer, PluginCall, Rule
from octavo.plugins.values import json_fault
from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request
from octavo.server.fields.requests import ApprovalFilter, ApprovalFilters
from octavo.server.generation import Deltas, Generation
from octavo.server.harmless import harmless_tool, has_special
from octavo.server.rounds import Ran, Rounds

if TYPE_CHECKING:
    from octavo.plugins.host.host import PluginHost

# Seconds between two checks whether a synchronous client is still connected.
_CLIENT_CHECK_SECONDS = 0.25

# An operation whose schema nests deeper, or is longer, is not offered: the grammar takes no more, and the prompt
# would have no room for anything else.
_MOST_LEVELS = 48
_MOST_CHARACTERS = 32 << 10

Approval = str | ApprovalFilters | None


class RanCalls(list[Any]):
    """A portion of output without text: the calls of a round have ended.

    Attributes:
        ran: the calls and their outcomes.
        error: why no further round could follow; None: one follows, or the answer has ended.
    """

    def __init__(self, ran: Ran, error: ApiError | None = None) -> None:
        super().__init__()
        self.ran = ran
        self.error = error

    def __bool__(self) -> bool:
        # An empty portion means that there is nothing to send.
        return True


class RoundsGeneration(Generation):
    """The generations of all rounds of an answer, as one.

    Args:
        begin: starts the generation of the next round.
    """

    def __init__(self, rounds: Rounds, begin: Callable[[], Generation]) -> None:
        super().__init__([])
        self._rounds = rounds
        self._begin = begin
        self._now: Generation | None = None
        self._closed = False
        if not rounds.calls():
            self._next()

    def close(self) -> None:
        self._closed = True
        if self._now is not None:
            self._now.close()

    def _next(self) -> Generation:
        made = self._begin()
        self._now = made
        self.handles += made.handles
        self._rounds.prompt_tokens = made.handles[0].num_prompt_tokens
        if self._closed:
            # The client has left while the round was made.
            made.close()
        return made

    def deltas(self, is_connected: Callable[[], bool], timeout: float) -> Iterator[Deltas]:
        try:
            yield from self._missing()
            while True:
                try:
                    if self._now is None and self._rounds.loop.rounds:
                        self._next()
                    if self._now is not None:
                        yield from map(self._numbered, self._now.deltas(is_connected, timeout))
                except ApiError as error:
                    yield self._failed(error)
                    return
                calls = self._rounds.calls()
                if not calls:
                    return
                thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-plugins")
                try:
                    running = thread.submit(self._rounds.loop.run, calls)
                    for connected in _waiting(running, is_connected, timeout):
                        if not connected:
                            return
                        yield []
                finally:
                    # A client that has left does not wait for the calls: each has its own deadline.
                    thread.shutdown(wait=False)
                ran = self._rounds.take(calls, running.result())
                yield RanCalls(ran)
                if ran.reason is not None:
                    return
                self._now = None
        finally:
            self.close()

    async def adeltas(self, timeout: float) -> AsyncIterator[Deltas]:
        try:
            for deltas in self._missing():
                yield deltas
            while True:
                try:
                    if self._now is None and self._rounds.loop.rounds:
                        await asyncio.to_thread(self._next)
                    if self._now is not None:
                        async with contextlib.aclosing(self._now.adeltas(timeout)) as batches:  # type: ignore[type-var]
                            async for deltas in batches:
                                yield self._numbered(deltas)
                except ApiError as error:
                    yield self._failed(error)
                    return
                calls = self._rounds.calls()
                if not calls:
                    return
                running = asyncio.create_task(self._rounds.loop.arun(calls))
                try:
                    while not (await asyncio.wait({running}, timeout=timeout))[0]:
                        yield []
                finally:
                    running.cancel()
                ran = self._rounds.take(calls, running.result())
                yield RanCalls(ran)
                if ran.reason is not None:
                    return
                self._now = None
        finally:
            self.close()

    def _failed(self, error: ApiError) -> RanCalls:
        """The end of an answer that cannot go on. What its calls did must reach the client.

        Raises:
            ApiError: `error`, if no call has run.
        """
        if not self._rounds.loop.rounds:
            raise error
        return RanCalls(Ran((), (), "length" if error.code == "context_length_exceeded" else "error"), error)

    def _missing(self) -> Iterator[Deltas]:
        """Plugins that could not be asked for their operations, as calls without a name."""
        missing = self._rounds.loop.missing
        if missing:
            yield RanCalls(Ran(tuple(PluginCall("", "", "{}") for _ in missing), missing, None))

    def _numbered(self, deltas: Deltas) -> Deltas:
        """Output with the number of its round, under which its handle stands."""
        return [(len(self.handles) - 1, delta) for _, delta in deltas]


def _waiting(running: Future[Any], is_connected: Callable[[], bool], timeout: float) -> Iterator[bool]:
    """Waits for `running`. Yields True after each `timeout` seconds, and False when the client has left."""
    waited = 0.0
    while not wait_for([running], _CLIENT_CHECK_SECONDS).done:
        if not is_connected():
            yield False
        waited += _CLIENT_CHECK_SECONDS
        if waited >= timeout:
            waited = 0.0
            yield True


def offers(
    context: Context,
    name: str,
    where: str,
    *,
    field: str = "",
    allowed: Sequence[str] | ApprovalFilter | None,
    approval: Approval,
) -> tuple[list[Offer], str | None]:
    """The operations of a plugin that a request may call, and why there are none if its plugin does not answer.

    Args:
        name: of the plugin.
        where: path of the object that names it, or of its name.
        field: of the object that has the name; "": the name is at `where`.

    Raises:
        ApiError: 400 for a plugin or an operation that does not exist.
    """
    named = f"{where}.{field}" if field else where
    if context.config.plugins is None:
        message = f"{named} is {name[:80]!r}: this server has no plugins, start it with --plugin NAME=URL"
        raise bad_request(message, named)
    host = host_of(context)
    try:
        tools: ToolList = host.tools([name])
    except InvalidRequestError as error:
        raise bad_request(f"{named}: {error}", named) from error
    missing = tools.missing.get(name)
    if missing is not None:
        return [], missing.detail or missing.code
    known = [tool.operation for tool in tools]
    for at, given in (("allowed_tools", allowed), *(("require_approval", each) for each in _filters(approval))):
        names = (given.tool_names if isinstance(given, ApprovalFilter) else given) or ()
        unknown = next((n for n in names if n not in known), None)
        if unknown is not None:
            message = f"the plugin {name!r} has no operation {unknown[:80]!r}; it has {', '.join(known)[:400]}"
            raise bad_request(f"{where}.{at}: {message}", f"{where}.{at}")
    chosen = [tool for tool in tools if allowed is None or _matches(tool, allowed)]
    # Of the operator's rule and the client's the stricter one holds.
    operators = "always" if host.approval(name) == "always" else context.config.plugin_approvals.get(name)
    usable = [tool for tool in chosen if is_usable(context, tool)]
    size, most = sum(len(json.dumps(tool.openai())) for tool in usable), context.config.limits.tools_bytes
    if size > most:
        message = f"{where}: the operations of the plugin {name!r} have {size} bytes, and {most} are taken: name fewer"
        raise bad_request(f"{message} of them in allowed_tools", f"{where}.allowed_tools")
    return [Offer(tool, _rule(tool, approval, operators)) for tool in usable], None


# Fields of OpenAI's tool that only an operator may set here.
_OPERATORS = {
    "server_url": "no URL is taken from a request: name a plugin that the server was started with",
    "connector_id": "there are no connectors: name a plugin of the server",
    "tunnel_id": "there are no tunnels: name a plugin of the server",
    "authorization": "credentials of plugins are set where the server is started: --plugin-secret-env",
    "headers": "headers of plugins are set where the server is started: --plugin-secret-env",
}


def refuse_operators_fields(given: Mapping[str, Any], where: str) -> None:
    """Refuses what a client may not set of a plugin.

    Raises:
        ApiError: 400.
    """
    for name, remedy in _OPERATORS.items():
        if given.get(name):
            raise bad_request(f"{where}.{name} is refused: {remedy}", f"{where}.{name}")


def is_usable(context: Context, tool: Tool) -> bool:
    """Whether the model can be offered the tool. One that it cannot must not harm the others; the log names it."""
    why = _unusable(context, tool)
    if why is not None:
        context.warn_once(f"operation {tool.name}", f"the operation %.64s is not offered: {why}", tool.name)
    return why is None


def _unusable(context: Context, tool: Tool) -> str | None:
    if json_fault(tool.parameters, _MOST_LEVELS) is not None:
        return f"its schema nests deeper than {_MOST_LEVELS} levels"
    text = json.dumps(tool.openai(), ensure_ascii=False)
    if len(text) > _MOST_CHARACTERS:
        return f"its schema and descriptions have {len(text)} characters, more than {_MOST_CHARACTERS}"
    # Outside of descriptions no special token of the model may stand.
    if has_special(context.llm, json.dumps(harmless_tool(context.llm, tool.openai()), ensure_ascii=False)):
        return "its schema has special tokens of the model"
    return None


def host_of(context: Context) -> PluginHost:
    """The host of a server that has plugins."""
    assert context.config.plugins is not None
    return context.config.plugins


def _filters(approval: Approval) -> list[ApprovalFilter]:
    if not isinstance(approval, ApprovalFilters):
        return []
    return [found for found in (approval.always, approval.never) if found is not None]


def _rule(tool: Tool, approval: Approval, operators: str | None) -> Rule:
    if operators == "always" or (operators == "consequential" and tool.consequential):
        return "always"
    if approval == "never":
        return "never"
    if approval == "always":
        return "always"
    if isinstance(approval, ApprovalFilters):
        # Of two rules the stricter one holds.
        if approval.always is not None and _matches(tool, approval.always):
            return "always"
        if approval.never is not None and _matches(tool, approval.never):
            return "never"
    return "host"


def _matches(tool: Tool, wanted: Sequence[str] | ApprovalFilter) -> bool:
    if not isinstance(wanted, ApprovalFilter):
        return tool.operation in wanted
    if wanted.tool_names is not None and tool.operation not in wanted.tool_names:
        return False
    return wanted.read_only is None or wanted.read_only != tool.consequential
