"""A host that was used before a fork: each process has connections, threads and locks of its own."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from octavo.plugins.forks import after_fork
from octavo.plugins.host import PluginHost, PluginSource
from raw_server import RawServer, ok

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process, as JSON."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # No test may go on in the child.
        try:
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    return json.loads(found)


def test_a_child_uses_no_connection_of_its_parent(server: RawServer) -> None:
    with PluginHost({"w": PluginSource(server.url, timeout=30.0)}) as host:
        assert host.call("w__get", {"city": "Corrin"}).ok
        transport = host._own[0]
        pool = transport._pool
        assert in_child(lambda: transport._pool is not pool)
        assert transport._pool is pool
        server.answers = [ok("child"), ok("parent")]
        assert in_child(lambda: host.call("w__get", {"city": "Corrin"}).content) == "child"
        assert host.call("w__get", {"city": "Corrin"}).content == "parent"


def test_locks_that_were_held_do_not_stop_a_child(server: RawServer) -> None:
    with PluginHost({"w": PluginSource(server.url, timeout=30.0, concurrency=1)}) as host:
        state = host._states["w"]
        host.tools()
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with state._lock, state.registry._lock, state.breaker._lock:
                state._slots.acquire()
                held.set()
                done.wait(60)
                state._slots.release()

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(60)
        found = in_child(lambda: [host.call("w__get", {"city": "Corrin"}).status, len(host.tools())])
        done.set()
        thread.join(60)
    assert found == ["ok", 1]


def test_an_mcp_connection_is_opened_anew(serve: Callable[[Any], str]) -> None:
    pytest.importorskip("mcp")
    from octavo.plugins import Plugin

    plugin = Plugin("w", version="1.0.0")

    @plugin.operation
    def echo(n: int) -> int:
        return n

    url = serve(plugin.asgi_app)
    with PluginHost({"w": PluginSource.mcp(f"{url}/mcp", timeout=60.0)}) as host:
        assert host.call("w__echo", {"n": 1}).content == 1

        def child() -> Any:
            found = host.call("w__echo", {"n": 2}).content
            host.close()
            return found

        assert in_child(child) == 2
        assert host.call("w__echo", {"n": 3}).content == 3


def test_objects_that_are_gone_are_forgotten() -> None:
    class Owner:
        pass

    owner, seen = Owner(), []
    after_fork(owner, lambda found: seen.append(1))
    assert in_child(lambda: len(seen)) == 1
    del owner
    assert in_child(lambda: len(seen)) == 0
