"""Many prompts through one engine: its bounded queue is kept full, outputs keep their order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from octavo import _core
from octavo.outputs import EmbeddingRequestOutput, RequestOutput
from octavo.params import SamplingParams

if TYPE_CHECKING:
    from types import TracebackType

# Seconds between two polls of all running requests.
_SLICE = 0.05

Output = TypeVar("Output", RequestOutput, EmbeddingRequestOutput)


def run_batch(
    engine: _core.Engine,
    prompts: Sequence[str | list[int]],
    sampling_params: Sequence[SamplingParams],
    *,
    add_special_tokens: bool,
    progress: bool,
) -> list[RequestOutput]:
    """Runs all prompts. What interrupts it cancels the unfinished ones.

    All prompts are checked before the first one starts: an error in one costs no work on the others.
    """
    parsed = [p.for_engine() for p in sampling_params]
    submit = partial(engine.submit_many, prompts, parsed, add_special_tokens=add_special_tokens)
    return _run(submit, RequestOutput, prompts, progress)


def embed_batch(
    engine: _core.Engine, prompts: Sequence[str | list[int]], fields: dict[str, Any], progress: bool
) -> list[EmbeddingRequestOutput]:
    """`run_batch` for embeddings."""
    return _run(partial(engine.embed_many, prompts, fields), EmbeddingRequestOutput, prompts, progress)


def single_error(outputs: list[Output]) -> list[Output]:
    """Raises the error of the only output, if it has one."""
    if len(outputs) == 1 and outputs[0].error is not None:
        raise outputs[0].error
    return outputs


def _run(
    submit: Callable[..., list[_core.Stream]],
    kind: type[Output],
    prompts: Sequence[str | list[int]],
    progress: bool,
) -> list[Output]:
    """Starts all requests, each as soon as the queue has room, and gathers their outputs."""
    outputs: list[Output] = []
    running: dict[int, _core.Stream] = {}
    with Progress(len(prompts), progress and len(prompts) > 1) as bar:

        def add(streams: list[_core.Stream]) -> None:
            for stream in streams:
                prompt = prompts[len(outputs)]
                running[len(outputs)] = stream
                text = prompt if isinstance(prompt, str) else None
                outputs.append(kind(stream.request_id, text, stream.prompt_token_ids))

        def on_full(streams: list[_core.Stream]) -> None:
            add(streams)
            # Without requests of our own in it the queue is full of others': wait for room.
            if not _collect(running, outputs, bar):
                time.sleep(_SLICE)

        try:
            add(submit(on_full=on_full))
            while running:
                _collect(running, outputs, bar)
        finally:
            for stream in running.values():
                stream.cancel()
    return outputs


def _collect(running: dict[int, _core.Stream], outputs: list[Output], bar: Progress) -> bool:
    """Takes the output there is, waiting a moment for the oldest request. True if any request of ours runs."""
    if not running:
        return False
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
