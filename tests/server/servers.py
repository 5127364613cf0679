"""Servers to test against: `octavo serve` as users start it, and the applications in servers of this process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from werkzeug.serving import make_server

KEY = "key-for-tests"


class Process:
    """`octavo serve` on a free port."""

    def __init__(self, *arguments: str) -> None:
        self.log: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "octavo", "serve", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(180):
            self.stop()
            raise AssertionError(f"the server did not start: {self.log}")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            # Every line is a JSON object: that is a promise of its own.
            self.log.append(json.loads(line))
            if "address" in self.log[-1]:
                self._ready.set()
        self._ready.set()

    @property
    def url(self) -> str:
        return next(row["address"] for row in self.log if "address" in row)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.terminate()
        status = self.process.wait(120)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@contextmanager
def served(*arguments: str) -> Iterator[Process]:
    process = Process(*arguments)
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def uvicorn_in_thread(app: ASGIApp) -> Iterator[str]:
    """Serves `app` from a thread; its URL."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http="h11", ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "uvicorn started")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def werkzeug_in_thread(app: Any) -> Iterator[str]:
    """Serves a WSGI `app` from a thread, a thread per request; its URL."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(30)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds} s: {what}"
        time.sleep(0.005)


def memory_bytes(pid: int) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) << 10
