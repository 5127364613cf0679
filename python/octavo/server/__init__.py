"""The OpenAI-compatible server: an ASGI and a WSGI application over one service.

    import octavo.server
    app.mount("/llm", octavo.server.create_app(llm))          # FastAPI, Starlette, any ASGI server
    octavo.server.create_wsgi_app(llm)                        # Flask, any WSGI server

Needs `pip install 'octavo[server]'`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from octavo.errors import MissingDependencyError
from octavo.llm import LLM
from octavo.server.config import Limits, ServerConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

    from octavo.server.wsgi import WsgiApp

__all__ = ["Limits", "ServerConfig", "create_app", "create_wsgi_app"]

Model: TypeAlias = LLM | str | Callable[[], LLM] | None


def create_app(llm: Model = None, config: ServerConfig | None = None) -> FastAPI:
    """An ASGI application (a FastAPI instance) that serves `llm`; mount it anywhere, or run it with uvicorn.

    Args:
        llm: an LLM; a folder or hub id; None for the embedded model; or a function that makes an LLM. An LLM
            that is not made yet is loaded by the first request, in a separate thread: a mounted application gets no
            startup event. (A process that forks workers must not pass an LLM: threads do not survive a fork.)
        config: names, keys, limits.

    Raises:
        MissingDependencyError: FastAPI is not installed.
    """
    try:
        from octavo.server.asgi import build
    except ModuleNotFoundError as error:
        raise missing(error) from error
    return build(llm, config or ServerConfig())


def create_wsgi_app(llm: Model = None, config: ServerConfig | None = None) -> WsgiApp:
    """A WSGI application that serves `llm`, for Flask and other WSGI hosts. Arguments as `create_app`."""
    try:
        from octavo.server.wsgi import WsgiApp
    except ModuleNotFoundError as error:
        raise missing(error) from error
    return WsgiApp(llm, config or ServerConfig())


def missing(error: ModuleNotFoundError) -> MissingDependencyError:
    """An error that names the extra to install. A missing module of octavo itself is raised again."""
    if (error.name or "octavo").partition(".")[0] == "octavo":
        raise error
    return MissingDependencyError(f"the server needs {error.name}; install the extra: pip install 'octavo[server]'")
