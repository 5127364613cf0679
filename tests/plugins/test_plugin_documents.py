"""The examples of docs/plugins.md run as they are written: only URLs and frameworks around them are of the test."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fastapi
import flask
import pytest
from octavo.plugins import Plugin, Request

TEXT = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def block(words: str) -> str:
    (found,) = [text for text in BLOCKS if words in text]
    return found


def called(plugin: Plugin, path: str, **arguments: Any) -> Any:
    body = json.dumps({"arguments": arguments}).encode()
    found = plugin.handle(Request("POST", path, {"content-type": "application/json"}, body))
    assert found.status == 200, found.body
    return json.loads(found.body)["result"]


def test_the_plugin_and_its_next_major() -> None:
    space: dict[str, Any] = {}
    exec(block("async def send_report"), space)
    assert called(space["plugin"], "/v1/invoke/get_forecast", city="Corrin")["highs"] == [20.0] * 3
    space |= {"fastapi_app": fastapi.FastAPI(), "flask_app": flask.Flask("a")}
    exec(block("fastapi_app.mount"), space)
    # The next major keeps the operation, and serves the old one through the converter.
    operation = block("async def send_report").split('@plugin.operation(since="1.0")')[1].split("@plugin.operation")[0]
    converter = block("@plugin.convert")
    first, rest = converter.split("\n", 1)
    exec(first + '\n@plugin.operation(since="1.0")' + operation + rest, space)
    assert called(space["plugin"], "/v1/invoke/get_forecast", town="Corrin") == [20.0] * 3


def test_the_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mcp")
    monkeypatch.setenv("MAPS_TOKEN", "t0ken-of-maps")
    code = re.sub(r"https?://[a-z0-9.]+(:\d+)?", "http://127.0.0.1:1", block("PluginHost("))
    exec(code, {})
    # None of the plugins answers here: each is an outcome.
    assert capsys.readouterr().out.count("unavailable") == 3
