"""The host of plugins: it reads what plugins offer, and calls them. See docs/plugins.md."""

from octavo.plugins.host.host import PluginHost
from octavo.plugins.host.outcome import Outcome, Repair, Tool, ToolList
from octavo.plugins.host.source import PluginSource, Secret
from octavo.plugins.host.transport import HttpAnswer, HttpRequest, HttpTransport, Transport, TransportError

__all__ = [
    "HttpAnswer",
    "HttpRequest",
    "HttpTransport",
    "Outcome",
    "PluginHost",
    "PluginSource",
    "Repair",
    "Secret",
    "Tool",
    "ToolList",
    "Transport",
    "TransportError",
]
