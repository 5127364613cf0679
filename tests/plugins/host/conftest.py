"""Servers for the host's tests: real sockets on 127.0.0.1, and no network beyond."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from octavo.plugins.host import PluginHost, PluginSource
from raw_server import RawServer, raw_server


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """The base URL of an ASGI app under uvicorn."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        server = _Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert server.ready.wait(60)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Starts ASGI apps; each gives its base URL."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(serving(app))


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as found:
        yield found


@pytest.fixture
def pauses() -> list[float]:
    """The pauses before retries, instead of sleeping."""
    return []


@pytest.fixture
def host(server: RawServer, pauses: list[float]) -> Iterator[PluginHost]:
    """A host with the raw server as plugin `w`."""
    with PluginHost({"w": PluginSource(server.url, timeout=20.0)}, sleep=pauses.append, random=lambda: 1.0) as made:
        yield made
