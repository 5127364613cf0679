"""From `LLM.chat` to chats with plugins, which are built on `LLM` and on the stages of the server."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError, MissingDependencyError

if TYPE_CHECKING:
    from octavo.plugins.host.host import PluginHost
    from octavo.plugins.host.outcome import Outcome

__all__ = ["plugin_chat", "with_plugins"]


def with_plugins(
    plugins: PluginHost | None,
    max_rounds: int,
    approve: Callable[[Outcome], object] | None,
    template: dict[str, Any],
) -> Any:
    """What a chat with plugins is asked beside its messages; None without plugins."""
    if plugins is not None:
        return plugin_chat().Asked(plugins, max_rounds, approve, template)
    if approve is not None:
        raise InvalidRequestError("approve is given without plugins: give plugins, or leave it out")
    return None


def plugin_chat() -> Any:
    """The module of chats with plugins. It is built on `LLM` and on the server's stages, whose packages are extras."""
    try:
        return importlib.import_module("octavo.plugin_chat")
    except ModuleNotFoundError as error:
        if (error.name or "octavo").partition(".")[0] == "octavo":
            raise
        raise MissingDependencyError(
            f"plugins need {error.name}; install the extra: pip install 'octavo[plugins]'"
        ) from error
