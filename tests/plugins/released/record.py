"""Records the wire traffic of a release: `python tests/plugins/released/record.py 1.1`.

The folder needs its plugin.py. It then gets traffic.json, and never changes again.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from octavo.plugins import Plugin, Request
from octavo.plugins.host import HttpAnswer, HttpRequest, PluginHost, PluginSource

HERE = Path(__file__).parent
BASE = "http://weather.test/base/"
# What is asked of a host: tool, arguments, whether a person approved.
CALLS: list[tuple[str, dict[str, Any], bool]] = [
    ("weather__get_forecast", {"city": "Corrin", "days": 2}, False),
    ("weather__get_forecast", {"city": "Corrin"}, False),
    ("weather__get_forecast", {"city": "Corrin", "days": 9}, False),
    ("weather__get_forecast", {"city": "nowhere"}, False),
    ("weather__remind", {"text": "abc"}, True),
]
# What old and strange clients send: path, headers, body.
RAW: list[tuple[str, dict[str, str], str]] = [
    ("v2/invoke/get_forecast", {}, '{"arguments": {"city": "Corrin"}}'),
    ("v1/invoke/get_forecast", {"Octavo-Protocol": "1"}, '{"arguments": {"place": "Corrin"}}'),
    ("v2/invoke/get_forecast", {"Octavo-Protocol": "1.7, 9"}, '{"arguments": {"city": "Corrin"}, "colour": "blue"}'),
    ("v2/invoke/get_forecast", {"Octavo-Protocol": "9"}, '{"arguments": {"city": "Corrin"}}'),
    ("v2/invoke/get_forecast", {"Octavo-Digest": "sha256:0"}, '{"arguments": {"city": "Corrin"}}'),
    ("v2/invoke/get_forecst", {}, '{"arguments": {}}'),
    ("v2/invoke/get_forecast", {}, '{"arguments": {"town": 3}}'),
]


class Recorder:
    """A transport to a plugin in the same process, that keeps what it carries."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self.exchanges: list[dict[str, Any]] = []

    def send(self, request: HttpRequest) -> HttpAnswer:
        path = request.url.removeprefix(BASE)
        answer = exchange(self._plugin, request.method, path, request.headers, request.body or b"")
        sent = {"method": request.method, "path": path, "headers": dict(request.headers)}
        self.exchanges.append({**sent, "body": (request.body or b"").decode(), "answer": answer})
        return HttpAnswer(answer["status"], answer["headers"], answer["body"].encode())


def exchange(plugin: Plugin, method: str, path: str, headers: Any, body: bytes) -> dict[str, Any]:
    answer = plugin.handle(Request(method, path, headers, body))
    kept = {name.lower(): value for name, value in answer.headers.items()}
    return {"status": answer.status, "headers": kept, "body": answer.body.decode()}


def load(folder: Path) -> Plugin:
    """The plugin of a release."""
    spec = importlib.util.spec_from_file_location(f"released_{folder.name.replace('.', '_')}", folder / "plugin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    made: Plugin = module.build()
    return made


def host(transport: Any) -> PluginHost:
    source = PluginSource(BASE.rstrip("/"))
    return PluginHost({"weather": source}, transport=transport, sleep=lambda s: None, random=lambda: 0.0)


def calls(transport: Any) -> list[dict[str, Any]]:
    """What a host makes of `CALLS`."""
    with host(transport) as made:
        tools = {tool.name: tool for tool in made.tools()}
        found = []
        for name, arguments, approved in CALLS:
            outcome = made.call(name, arguments, approved=approved, digest=tools[name].digest)
            found.append({"status": outcome.status, "content": outcome.content, "digest": outcome.digest})
        return found


def record(folder: Path) -> dict[str, Any]:
    plugin = load(folder)
    recorder = Recorder(plugin)
    outcomes = calls(recorder)
    raw = [
        {"method": "POST", "path": path, "headers": headers, "body": body}
        | {"answer": exchange(plugin, "POST", path, {"Content-Type": "application/json", **headers}, body.encode())}
        for path, headers, body in RAW
    ]
    plugin.close()
    return {"outcomes": outcomes, "host": recorder.exchanges, "raw": raw}


if __name__ == "__main__":
    target = HERE / sys.argv[1] / "traffic.json"
    if target.exists():
        sys.exit(f"{target} is released: it never changes. Record a new version")
    target.write_text(json.dumps(record(target.parent), indent=1) + "\n", encoding="utf-8")
