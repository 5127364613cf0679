"""`RequestHandle`: a submitted request, for threads and for event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Generic, TypeVar

from octavo.dispatcher import Dispatcher
from octavo.outputs import EmbeddingRequestOutput, RequestOutput

if TYPE_CHECKING:
    from octavo import _core

__all__ = ["RequestHandle"]

Output = TypeVar("Output", RequestOutput, EmbeddingRequestOutput)


class RequestHandle(Generic[Output]):
    """A submitted request. Made by `LLM.submit` and `LLM.submit_embedding`; dropping it cancels the request.

    Each output holds what is new since the output before. Iterate over the handle (`for` or `async for`), call `next`
    from a thread, or `poll` after a wake-up from `watch`. Leaving an iteration cancels the request.

    Attributes:
        request_id: unique within the engine.
        prompt: the prompt, if it was given as text.
        done: the last output was read.
    """

    def __init__(
        self,
        stream: _core.Stream,
        dispatcher: Dispatcher,
        output_type: type[Output],
        prompt: str | None,
        owner: object,
    ) -> None:
        self._stream = stream
        self._dispatcher = dispatcher
        self._output_type: type[Output] = output_type
        # An LLM that is dropped closes its engine; it lives as long as its requests.
        self._owner = owner
        self.request_id = stream.request_id
        self.prompt = prompt
        self.done = False

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt as tokens."""
        return self._stream.prompt_token_ids

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return self._stream.num_prompt_tokens

    def poll(self) -> Output | None:
        """Everything new as one output; None if nothing is new. Does not wait."""
        delta = self.poll_delta()
        return None if delta is None else self._empty().add(delta)

    def poll_delta(self) -> _core.Delta | None:
        """`poll` without the conversion to an output, for servers."""
        return self._read(self._stream.poll())

    def next(self, timeout: float | None = None) -> Output | None:
        """The next output. Waits at most `timeout` seconds; None after that time, or after the last output."""
        delta = self._read(self._stream.next(timeout))
        return None if delta is None else self._empty().add(delta)

    def watch(
        self,
        wake: Callable[[], None],
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        only_end: bool = False,
    ) -> None:
        """Calls `wake` whenever the request has output; with `only_end` only when it has ended.

        Args:
            wake: must return quickly. Called again only after a `poll` that returned None, or at the end.
            loop: event loop that calls `wake`; None: a thread of the LLM calls it.

        Raises:
            EngineDeadError: the LLM is closed.
        """
        self._dispatcher.watch(self._stream, wake, loop, only_end=only_end)

    def unwatch(self) -> None:
        """Ends `watch`."""
        self._dispatcher.unwatch(self._stream)

    def cancel(self) -> None:
        """Ends the request. The last output then has the finish reason "abort". Idempotent."""
        self._stream.cancel()

    def __iter__(self) -> Iterator[Output]:
        """Outputs until the request ends; raises its error."""
        try:
            while (output := self.next()) is not None:
                yield from _raise_error(output)
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[Output, None]:
        """Outputs until the request ends, without blocking the event loop; raises its error."""
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                for output in _raise_error(self._empty().add(delta)):
                    yield output

    async def aresult(self) -> Output:
        """The complete output, without blocking the event loop; raises the error of the request."""
        output = self._empty()
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                output.add(delta)
        if output.error is not None:
            raise output.error
        return output

    async def _deltas(self) -> AsyncGenerator[_core.Delta, None]:
        arrived = asyncio.Event()
        try:
            self.watch(arrived.set, asyncio.get_running_loop())
            while not self.done:
                # Cleared before the poll: output that comes after the poll sets the event again.
                arrived.clear()
                while (delta := self.poll_delta()) is not None:
                    yield delta
                if not self.done:
                    await arrived.wait()
        finally:
            self.unwatch()
            self.cancel()

    def _read(self, delta: _core.Delta | None) -> _core.Delta | None:
        if delta is not None and delta.finished:
            self.done = True
            self.unwatch()
        return delta

    def _empty(self) -> Output:
        return self._output_type(self.request_id, self.prompt, self.prompt_token_ids)


def _raise_error(output: Output) -> Iterator[Output]:
    """Yields `output`, then raises its error, if it has one. A failed output without text is not yielded."""
    if output.error is None or (isinstance(output, RequestOutput) and output.text):
        yield output
    if output.error is not None:
        raise output.error
