"""`octavo serve` as a process of its own, for a bench that was given no URL."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from octavo.errors import OctavoError


@contextlib.contextmanager
def own_server(arguments: Sequence[str]) -> Iterator[str]:
    """Starts a server on a free port of this machine; its URL. It ends with the block.

    Raises:
        OctavoError: it did not start; with its last words.
    """
    command = [sys.executable, "-m", "octavo", "serve", "--host", "127.0.0.1", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            yield _address(process.stderr)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(lines: Iterator[str]) -> str:
    last = ""
    for line in lines:
        last = line.strip() or last
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "address" in row:
                # Its log is read on, or the pipe would fill and stop it.
                threading.Thread(target=lambda: [None for _ in lines], daemon=True).start()
                return str(row["address"])
    raise OctavoError(f"the server did not start: {last.removeprefix('octavo: ') or 'it said nothing'}")
