"""`PluginHost` on the simulated network."""

from __future__ import annotations

import random
from typing import Any

from octavo.plugins.host import PluginHost, PluginSource
from octavo.plugins.host.outcome import Outcome
from octavo.plugins.host.transport import HttpAnswer, HttpRequest, TransportError

from benches.plugin_drift.clients import Answer, Shown
from benches.plugin_drift.world import BASE, LateError, Network, ResetError


class SimulatedTransport:
    """The host's transport: requests go to the simulated network."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def send(self, request: HttpRequest) -> HttpAnswer:
        network = self._network
        seconds = request.deadline - network.now
        try:
            status, headers, body = network.send(
                request.method, request.url, request.headers, request.body or b"", seconds
            )
        except LateError:
            raise TransportError("timeout", "no answer within the deadline", sent=True) from None
        except ResetError:
            raise TransportError("broken", "the connection ended in the middle", sent=True) from None
        return HttpAnswer(status, {name.lower(): value for name, value in headers.items()}, body)


class HostClient:
    """Calls through `PluginHost`, as the loop of a model does."""

    def __init__(self, network: Network) -> None:
        self.host = PluginHost(
            {"weather": PluginSource(BASE, approval="never")},
            transport=SimulatedTransport(network),
            clock=network.clock,
            sleep=network.sleep,
            random=random.Random(0).random,
        )
        self.host.tools()

    def tool(self) -> Shown | None:
        found = self.host.tools()
        return Shown(found[0].name, found[0].parameters, found[0].digest) if found else None

    def call(self, tool: Shown, arguments: dict[str, Any], digest: str) -> Answer:
        return read(self.host.call(tool.name, arguments, digest=digest))

    def close(self) -> None:
        self.host.close()


def read(outcome: Outcome) -> Answer:
    """What an outcome says to the caller."""
    said = outcome.ok or (outcome.error is not None and bool(outcome.error.detail) and bool(outcome.text))
    repairs = tuple(repair.kind for repair in outcome.repairs)
    return Answer(outcome.status, outcome.content, said, outcome.schema, outcome.digest, repairs)
