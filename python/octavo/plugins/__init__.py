"""Plugins: operations that a model calls over REST, and whose calls survive a change of version.

from octavo.plugins import Plugin

plugin = Plugin("weather", version="1.0.0")

@plugin.operation()
def get_forecast(city: str, days: int = 3) -> list[float]:
    "The highest temperatures of the next days, in degrees Celsius."
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.plugins.exchange import Request, Response
    from octavo.plugins.host.host import PluginHost
    from octavo.plugins.host.source import PluginSource, Secret
    from octavo.plugins.manifest import Deprecation, Limits
    from octavo.plugins.plugin import Plugin, bearer
    from octavo.plugins.problems import Problem, ProblemError
    from octavo.plugins.sqlite_store import SqliteStore

__all__ = [
    "Deprecation",
    "Limits",
    "Plugin",
    "PluginHost",
    "PluginSource",
    "Problem",
    "ProblemError",
    "Request",
    "Response",
    "Secret",
    "SqliteStore",
    "bearer",
]

# Name -> the module that defines it: neither the plugin's side nor the host's loads the other.
_DEFINED_IN = {
    "Deprecation": "octavo.plugins.manifest",
    "Limits": "octavo.plugins.manifest",
    "Plugin": "octavo.plugins.plugin",
    "PluginHost": "octavo.plugins.host.host",
    "PluginSource": "octavo.plugins.host.source",
    "Problem": "octavo.plugins.problems",
    "ProblemError": "octavo.plugins.problems",
    "Request": "octavo.plugins.exchange",
    "Response": "octavo.plugins.exchange",
    "Secret": "octavo.plugins.host.source",
    "SqliteStore": "octavo.plugins.sqlite_store",
    "bearer": "octavo.plugins.plugin",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Imports a name when it is first used (PEP 562)."""
        if name not in _DEFINED_IN:
            raise AttributeError(f"module 'octavo.plugins' has no attribute {name!r}")
        globals()[name] = value = getattr(importlib.import_module(_DEFINED_IN[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
