"""When streams send: one alone at its interval, many together less often, the end at once."""

from __future__ import annotations

import asyncio
import time

import pytest
from octavo.server.generation import StreamThrottle


def burn(seconds: float) -> None:
    """CPU time of this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize(
    ("streams", "cost", "interval"),
    [
        (1, 0.0, 0.02),
        # Sixteen pieces of 50 us: 0.8 ms, which is 2 % of 40 ms.
        (16, 50e-6, 0.04),
        # More than a tenth of a core would be needed for that.
        (16, 1e-3, 0.1),
    ],
)
def test_the_interval_follows_what_sending_costs(streams: int, cost: float, interval: float) -> None:
    throttle = StreamThrottle(0.02)
    found: list[float] = []

    async def stream(loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(4):
            event = asyncio.Event()
            throttle.set_next(event, loop)
            await event.wait()
            burn(cost)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(5):
            await asyncio.gather(*(stream(loop) for _ in range(streams)))
            await asyncio.sleep(0)
            found.append(throttle._rounds[loop].interval)

    asyncio.run(main())
    # Of the CPU time that was seen, the least: waking costs something of its own.
    assert interval <= min(found) <= 2 * interval


def test_streams_send_together() -> None:
    """Those that begin at different times are woken in the same round."""
    throttle = StreamThrottle(0.05)
    rounds: dict[int, list[int]] = {}
    count = 0

    async def main() -> None:
        nonlocal count
        loop = asyncio.get_running_loop()

        async def stream(number: int) -> None:
            await asyncio.sleep(number * 0.002)
            for _ in range(3):
                event = asyncio.Event()
                throttle.set_next(event, loop)
                await event.wait()
                rounds.setdefault(count, []).append(number)

        tasks = [asyncio.create_task(stream(i)) for i in range(5)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.01)
            count += 1

    asyncio.run(main())
    assert max(len(numbers) for numbers in rounds.values()) == 5
