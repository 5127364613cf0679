"""The clients that are compared: a schema frozen at the start, an exact version, and `PluginHost`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

from benches.plugin_drift.world import BASE, LateError, Network, ResetError


@dataclass(frozen=True)
class Shown:
    """A tool as the caller sees it."""

    name: str
    parameters: dict[str, Any]
    digest: str = ""


@dataclass(frozen=True)
class Answer:
    """What a client says of a call.

    Attributes:
        code: `ok`, or the failure's code.
        said: whether a failure has a sentence.
        schema: a new schema under which the caller may write the arguments again, and its digest.
    """

    code: str
    content: Any = None
    said: bool = True
    schema: dict[str, Any] | None = None
    digest: str = ""
    repairs: tuple[str, ...] = ()


class Client(Protocol):
    def tool(self) -> Shown | None:
        """The tool as it is shown now; None: the plugin has none."""

    def call(self, tool: Shown, arguments: dict[str, Any], digest: str) -> Answer:
        """Calls; `digest` is that of the schema under which the arguments were written."""

    def close(self) -> None: ...


MakeClient = Callable[[Network], Client]
_TIMEOUT = 10.0


class FrozenClient:
    """Reads the OpenAPI document once, and sends what fits it for ever."""

    checks_version = False

    def __init__(self, network: Network) -> None:
        self._network = network
        self._document = self._fetch()
        self._shown = self._read(self._document)

    def _fetch(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._network.send("GET", f"{BASE}/openapi.json", {}, b"", _TIMEOUT)[2])
        return found

    def _read(self, document: dict[str, Any]) -> tuple[str, str, Shown]:
        path, methods = next(iter(document["paths"].items()))
        method, operation = next(iter(methods.items()))
        if method == "get":
            listed = operation["parameters"]
            properties = {p["name"]: {**p["schema"], "description": p["description"]} for p in listed}
            required = [p["name"] for p in listed if p["required"]]
            schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        else:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            schema = schema["properties"].get("arguments", schema) if "/invoke/" in path else schema
        return method.upper(), path, Shown(operation["operationId"], schema)

    def tool(self) -> Shown | None:
        return self._shown[2]

    def call(self, tool: Shown, arguments: dict[str, Any], digest: str) -> Answer:
        try:
            if self.checks_version and self._fetch()["info"]["version"] != self._document["info"]["version"]:
                return Answer("version_differs")
            return self._send(arguments)
        except LateError:
            return Answer("timeout")
        except ResetError:
            return Answer("unavailable")

    def _send(self, arguments: dict[str, Any]) -> Answer:
        method, path, _ = self._shown
        wrapped = "/invoke/" in path
        url, body = f"{BASE}{path}", json.dumps({"arguments": arguments} if wrapped else arguments).encode()
        if method == "GET":
            texts = {k: json.dumps(v) if isinstance(v, bool) else v for k, v in arguments.items()}
            url, body = f"{url}?{urlencode(texts, doseq=True)}", b""
        status, headers, answer = self._network.send(method, url, _JSON, body, _TIMEOUT)
        if status != 200 or headers.get("Content-Type") != "application/json":
            return Answer(f"status_{status}")
        try:
            value = json.loads(answer)
        except ValueError:
            return Answer("bad_response")
        return Answer("ok", value.get("result") if wrapped else value)

    def close(self) -> None:
        pass


class ExactClient(FrozenClient):
    """As the frozen one, but refuses to call a version other than the one that it was made for."""

    checks_version = True


_JSON: Mapping[str, str] = {"Content-Type": "application/json"}
