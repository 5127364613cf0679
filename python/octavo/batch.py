"""Many prompts through one engine: its bounded queue is kept full, outputs keep their order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from octavo import _core
from octavo.errors import QueueFullError
from octavo.outputs import EmbeddingRequestOutput, RequestOutput
from octavo.params import SamplingParams

if TYPE_CHECKING:
    from types import TracebackType

# Seconds between looks at all running requests while the oldest one is waited for.
_SLICE = 0.05

Output = TypeVar("Output", RequestOutput, EmbeddingRequestOutput)


def run_batch(
    engine: _core.Engine, jobs: list[tuple[str | list[int], bool, SamplingParams]], progress: bool
) -> list[RequestOutput]:
    """Runs all jobs (prompt, add special tokens, parameters). Whatever interrupts it cancels what still runs.

    All jobs are checked before the first one starts, so that a fault in one costs no work on the others.
    """
    starts, outputs = [], []
    for prompt, special, params in jobs:
        ids = engine.tokenize(prompt, add_special_tokens=special) if isinstance(prompt, str) else prompt
        fields = params.as_dict()
        engine.check(ids, fields)
        starts.append(partial(engine.submit, ids, fields))
        outputs.append(RequestOutput(-1, prompt if isinstance(prompt, str) else None, ids))
    return _run(starts, outputs, progress)


def embed_batch(
    engine: _core.Engine, prompts: list[str | list[int]], fields: dict[str, Any], progress: bool
) -> list[EmbeddingRequestOutput]:
    """`run_batch` for embeddings."""
    starts, outputs = [], []
    for prompt in prompts:
        ids = engine.tokenize(prompt) if isinstance(prompt, str) else prompt
        engine.check_embed(ids, fields)
        starts.append(partial(engine.embed, ids, fields))
        outputs.append(EmbeddingRequestOutput(-1, prompt if isinstance(prompt, str) else None, ids))
    return _run(starts, outputs, progress)


def _run(starts: Sequence[Callable[[], _core.Stream]], outputs: list[Output], progress: bool) -> list[Output]:
    """Starts all requests, each as soon as the queue has a place, and gathers their outputs."""
    running: dict[int, _core.Stream] = {}
    with Progress(len(starts), progress) as bar:
        try:
            for i, start in enumerate(starts):
                while True:
                    try:
                        stream = start()
                        break
                    except QueueFullError:
                        # Without requests of our own in it the queue is full of others': wait for a place.
                        if not _collect(running, outputs, bar, wait=True):
                            time.sleep(_SLICE)
                outputs[i].request_id = stream.request_id
                running[i] = stream
            while running:
                _collect(running, outputs, bar, wait=True)
        finally:
            for stream in running.values():
                stream.cancel()
    return outputs


def _collect(running: dict[int, _core.Stream], outputs: list[Output], bar: Progress, *, wait: bool) -> bool:
    """Takes what is there, waiting a moment for the oldest request. True if any request of ours runs."""
    if not running:
        return False
    if wait:
        oldest = next(iter(running))
        delta = running[oldest].next(_SLICE)
        if delta is not None:
            _take(running, outputs, bar, oldest, delta)
    for i in list(running):
        while i in running and (delta := running[i].poll()) is not None:
            _take(running, outputs, bar, i, delta)
    return True


def _take(running: dict[int, _core.Stream], outputs: list[Output], bar: Progress, i: int, delta: _core.Delta) -> None:
    outputs[i].add(delta)
    bar.tokens(sum(len(o.token_ids) for o in delta.outputs))
    if delta.finished:
        del running[i]
        bar.finished()


class Progress:
    """A progress bar over requests that shows tokens per second; nothing if it is off."""

    def __init__(self, total: int, show: bool) -> None:
        self._bar: Any = None
        self._tokens = 0
        self._begin = time.monotonic()
        if show:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc="octavo", unit="prompt", file=sys.stderr, dynamic_ncols=True)

    def tokens(self, count: int) -> None:
        self._tokens += count
        if self._bar is not None and count:
            rate = self._tokens / max(time.monotonic() - self._begin, 1e-9)
            self._bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
            self._bar.update(0)

    def finished(self) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
