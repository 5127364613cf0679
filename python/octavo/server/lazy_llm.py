"""The model of a server, loaded on first use."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from octavo.errors import EngineDeadError, OctavoError
from octavo.hub import embedded_model
from octavo.llm import LLM

State = Literal["new", "loading", "ready", "failed", "closed"]


class LazyLLM:
    """An LLM that a separate thread makes once."""

    def __init__(self, source: LLM | str | Callable[[], LLM] | None) -> None:
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._thread: threading.Thread | None = None
        self._llm: LLM | None = None
        self._error: Exception | None = None
        self._closed = False
        # The caller closes an LLM that it passed in.
        self.owned = not isinstance(source, LLM)
        if isinstance(source, LLM):
            self._llm = source
            self._settled.set()
        elif source is None or isinstance(source, str):
            model = source
            self._make: Callable[[], LLM] = lambda: LLM(model)
        else:
            self._make = source

    @property
    def state(self) -> State:
        if self._closed:
            return "closed"
        if self._llm is not None:
            return "ready"
        if self._error is not None:
            return "failed"
        return "new" if self._thread is None else "loading"

    @property
    def settled(self) -> bool:
        """True when `get` does not wait."""
        return self._settled.is_set()

    def start(self) -> None:
        """Starts loading, unless loading has started. Returns at once."""
        with self._lock:
            if self._thread is None and not self._settled.is_set():
                self._thread = threading.Thread(target=self._load, name="octavo-load", daemon=True)
                self._thread.start()

    def get(self) -> LLM:
        """The LLM; waits while it loads.

        Raises:
            EngineDeadError: loading failed, or the server was closed.
        """
        self.start()
        self._settled.wait()
        if self._closed:
            raise EngineDeadError("the server has been closed")
        if self._llm is None:
            raise EngineDeadError(f"the model could not be loaded: {self._error}") from self._error
        return self._llm

    def _load(self) -> None:
        try:
            llm = self._make()
            if not isinstance(llm, LLM):
                raise TypeError(f"the function for the LLM returned a {type(llm).__name__}")
            with self._lock:
                self._llm = llm
                late = self._closed
            if late:
                llm.close()
        except (OctavoError, OSError, ValueError, TypeError, MemoryError) as error:
            self._error = error
        finally:
            if self._llm is None and self._error is None:
                self._error = RuntimeError("the function for the LLM raised; its traceback is on stderr")
            self._settled.set()

    def close(self) -> None:
        """Closes the LLM if it was made here. Idempotent."""
        with self._lock:
            self._closed = True
            llm = self._llm
        self._settled.set()
        if llm is not None and self.owned:
            llm.close()


def model_name(llm: LLM) -> str:
    """Default name of a model: its hub id, or the name of its folder."""
    path = Path(llm.model)
    if path == embedded_model():
        return "octavo-embedded"
    cached = re.fullmatch(r"models--(.+)", path.parent.parent.name)
    if path.parent.name == "snapshots" and cached:
        return cached.group(1).replace("--", "/")
    return path.resolve().name
