"""When streams send: one alone at its interval, many together less often, the end at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from octavo.server import generation
from octavo.server.generation import StreamThrottle


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
def test_the_interval_follows_what_sending_costs(
    streams: int, cost: float, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # CPU time of the thread, as this test counts it.
    used = 0.0
    monkeypatch.setattr(generation, "time", SimpleNamespace(thread_time=lambda: used))
    throttle = StreamThrottle(0.02)
    found: list[float] = []

    async def stream(loop: asyncio.AbstractEventLoop) -> None:
        nonlocal used
        for _ in range(4):
            event = asyncio.Event()
            throttle.set_next(event, loop)
            await event.wait()
            used += cost

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(5):
            await asyncio.gather(*(stream(loop) for _ in range(streams)))
            await asyncio.sleep(0)
            found.append(throttle._rounds[loop].interval)

    asyncio.run(main())
    assert found == [pytest.approx(interval)] * 5


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
